package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/head/state"
	"manta/runtime/chat"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a server over a cluster in this process, with deployment "m" on one
// replica, its tokens bytes, and a template that writes "role: content\n".
type bench struct {
	*httptest.Server
	t       testing.TB
	cluster *dispatchtest.Cluster
	client  *http.Client
}

type fakeTexts struct{ text *Text }

func (f fakeTexts) Text(context.Context, state.Deployment) (*Text, error) { return f.text, nil }

const testTemplate = `{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}`

// fakeText is a byte tokenizer with a small template.
func fakeText(t testing.TB) *Text {
	parsed, err := chat.Parse(testTemplate)
	if err != nil {
		t.Fatal(err)
	}
	return &Text{
		Tokenizer: dispatchtest.Bytes{}, Template: template{parsed: parsed, bos: "<s>", eos: "</s>"},
		Vocabulary: dispatchtest.Vocabulary, EndToken: dispatchtest.EOS,
	}
}

// newBench starts a server. Change adapts its configuration; nil changes nothing.
func newBench(t testing.TB, change func(*Config, *dispatch.Config)) *bench {
	t.Helper()
	cluster := dispatchtest.New()
	d := dispatch.Config{Head: "head-0", Views: cluster, Link: cluster, Meter: dispatchtest.Meter{}}
	config := Config{Views: cluster, Texts: fakeTexts{fakeText(t)}, Cluster: &fakeControl{}}
	if change != nil {
		change(&config, &d)
	}
	dispatcher := dispatch.New(d)
	config.Dispatch = dispatcher
	cluster.Attach(dispatcher)
	cluster.AddReplica("m", "r1", "n1", 1, 256)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- dispatcher.Run(ctx) }()
	server := httptest.NewUnstartedServer(New(config).Handler())
	server.Config.ConnContext = withConnection
	server.Start()
	b := &bench{
		Server: server, t: t, cluster: cluster,
		client: &http.Client{Transport: &http.Transport{}, Timeout: 2 * time.Minute},
	}
	t.Cleanup(func() {
		b.client.CloseIdleConnections()
		b.Server.Close()
		stop()
		<-done
		cluster.Close()
	})
	return b
}

// do sends a request and gives the status, the headers and the body.
func (b *bench) do(method, path, body string, headers ...string) (int, http.Header, string) {
	b.t.Helper()
	response := b.open(method, path, body, headers...)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(data)
}

func (b *bench) open(method, path, body string, headers ...string) *http.Response {
	b.t.Helper()
	request, err := http.NewRequest(method, b.URL+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := b.client.Do(request)
	if err != nil {
		b.t.Fatal(err)
	}
	return response
}

// post sends JSON, expects the status, and decodes the answer.
func post[T any](b *bench, path, body string, status int) T {
	b.t.Helper()
	got, _, text := b.do("POST", path, body)
	if got != status {
		b.t.Fatalf("%s %s: status %d, want %d: %s", path, body, got, status, text)
	}
	var answer T
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		b.t.Fatalf("%s: %v in %s", path, err, text)
	}
	return answer
}

// event is one server-sent event.
type event struct{ id, data string }

// events reads a stream to its end.
func events(t testing.TB, body io.Reader) []event {
	t.Helper()
	var all []event
	var current event
	scanner := bufio.NewScanner(body)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		switch {
		case strings.HasPrefix(line, "id: "):
			current.id = line[4:]
		case strings.HasPrefix(line, "data: "):
			current.data = line[6:]
		case line == "" && current.data != "":
			all = append(all, current)
			current = event{}
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// streamed posts and gives the events before [DONE], which must come.
func (b *bench) streamed(path, body string, headers ...string) []event {
	b.t.Helper()
	response := b.open("POST", path, body, headers...)
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(response.Body)
		b.t.Fatalf("status %d: %s", response.StatusCode, data)
	}
	all := events(b.t, response.Body)
	if len(all) == 0 || all[len(all)-1].data != "[DONE]" {
		b.t.Fatalf("the stream does not end with [DONE]: %+v", all)
	}
	return all[:len(all)-1]
}

// chunk is any form of streamed chunk.
type chunk struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Choices []struct {
		Index        int           `json:"index"`
		Delta        chatMessage   `json:"delta"`
		Text         string        `json:"text"`
		FinishReason *string       `json:"finish_reason"`
		StopReason   any           `json:"stop_reason"`
		Logprobs     *chatLogprobs `json:"logprobs"`
	} `json:"choices"`
	Usage *usage       `json:"usage"`
	Error *errorFields `json:"error"`
}

func chunks(t testing.TB, all []event) []chunk {
	t.Helper()
	var out []chunk
	for _, e := range all {
		var c chunk
		if err := json.NewDecoder(bytes.NewReader([]byte(e.data))).Decode(&c); err != nil {
			t.Fatalf("%v in %s", err, e.data)
		}
		out = append(out, c)
	}
	return out
}
