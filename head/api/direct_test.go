package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/node/wire"
	"manta/runtime/sample"
)

// An event that is put together from known parts is what the encoder makes of it.
func TestPlainChunksAreTheEncoders(t *testing.T) {
	for _, text := range []string{"a", " the", `"`, `\`, "\n\t", "\x00", "<&>", "é", "日本", "😀", "\u2028", "\u2029x", "\x7f", "\ufffd", "a\"b\\c\u001f"} {
		for name, form := range map[string]func(j *job) chunker{
			"chat": func(j *job) chunker { return &chatForm{job: j} },
			"text": func(j *job) chunker {
				return &textForm{job: j, echoed: []bool{true, true}, offsets: make([]int, 2)}
			},
		} {
			j := &job{model: &served{text: fakeText(t)}, n: 2, prompts: []prompt{{tokens: []int32{1}}}, stream: true, params: sample.Default()}
			j.model.Name = `a "model"`
			f := form(j)
			e := New(Config{}).newSSE(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), j, f)
			event := &dispatch.Event{Choice: 1, Text: text, Tokens: []int32{1}, Offset: 7}
			if !f.plain(1, event) {
				t.Fatalf("%s: %q is not plain", name, text)
			}
			if err := e.piece(0, event); err != nil {
				t.Fatal(err)
			}
			plain := bytes.Clone(e.buffer.Bytes())
			e.buffer.Reset()
			if err := e.event(f.chunk(1, event, nil)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(plain, e.buffer.Bytes()) {
				t.Errorf("%s: %s, the encoder gives %s", name, plain, e.buffer.Bytes())
			}
		}
	}
	j := &job{params: sample.Default()}
	for _, event := range []*dispatch.Event{{}, {Text: "a", Finish: wire.FinishStop}} {
		if j.plain(event) {
			t.Errorf("%+v is plain", event)
		}
	}
}

// A client whose connection takes little at a time gets what any other gets; after
// the stream the connection serves on.
func TestChunksInParts(t *testing.T) {
	b := newBench(t, nil)
	b.cluster.Script = dispatchtest.Repeat("some text of many parts, ")
	server := httptest.NewUnstartedServer(b.Config.Handler)
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if err := c.(*net.TCPConn).SetWriteBuffer(4096); err != nil {
			t.Error(err)
		}
		return withConnection(ctx, c)
	}
	server.Start()
	defer server.Close()
	opened := 0
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(32 << 10)
		}
		opened++
		return c, err
	}}}
	defer client.CloseIdleConnections()
	const body = `{"prompt":"x","max_tokens":500,"ignore_eos":true,"stream":true}`
	for range 2 {
		response, err := client.Post(server.URL+"/v1/completions", "", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, c := range chunks(t, wellFormed(t, response.Body)) {
			text += c.Choices[0].Text
		}
		response.Body.Close()
		if want := strings.Repeat("some text of many parts, ", 20); text != want {
			t.Fatalf("%d characters, want %d", len(text), len(want))
		}
	}
	if opened != 1 {
		t.Errorf("%d connections for two streams", opened)
	}
}

// wellFormed reads a stream, a little at a time, that must end with [DONE].
func wellFormed(t *testing.T, body io.Reader) []event {
	t.Helper()
	var data bytes.Buffer
	if _, err := io.CopyBuffer(struct{ io.Writer }{&data}, struct{ io.Reader }{body}, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	all := events(t, &data)
	if len(all) == 0 || all[len(all)-1].data != "[DONE]" {
		t.Fatal("the stream does not end with [DONE]")
	}
	return all[:len(all)-1]
}

// A client of HTTP/1.0 gets events without chunks around them, to the end of its
// connection.
func TestStreamOverHTTP10(t *testing.T) {
	b := newBench(t, nil)
	connection, err := net.DialTimeout("tcp", b.Listener.Addr().String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	body := `{"prompt":"x","max_tokens":5,"stream":true}`
	fmt.Fprintf(connection, "POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	data, err := io.ReadAll(connection)
	if err != nil {
		t.Fatal(err)
	}
	_, answer, _ := strings.Cut(string(data), "\r\n\r\n")
	if all := wellFormed(t, strings.NewReader(answer)); len(all) != 5 || !strings.HasPrefix(answer, "id: ") {
		t.Errorf("%d events: %s", len(all), data)
	}
}
