package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"manta/head/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echoing is a server whose chat answers with the number of messages and the last.
func echoing(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Messages    []client.Message `json:"messages"`
			Prompt      string           `json:"prompt"`
			MaxTokens   int              `json:"max_tokens"`
			Temperature *float64         `json:"temperature"`
		}
		if r.URL.Path == "/v1/models" {
			fmt.Fprint(w, `{"data":[{"id":"one"},{"id":"two"}]}`)
			return
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		if body.Prompt == "fail" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":{"message":"no"}}`)
			return
		}
		text := fmt.Sprintf("%s/%d", body.Prompt, body.MaxTokens)
		if n := len(body.Messages); n > 0 {
			text = fmt.Sprintf("%d:%s", n, body.Messages[n-1].Content)
		}
		if body.Temperature != nil {
			text += fmt.Sprintf(" at %v", *body.Temperature)
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"text\":%q}]}\n\ndata: [DONE]\n\n", text)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// run executes a command of this package.
func run(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "manta", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Commands(nil)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SetIn(strings.NewReader(in))
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// Without a terminal each line is a turn of one chat, and commands work.
func TestPlainChat(t *testing.T) {
	url := echoing(t)
	for in, want := range map[string]string{
		"a\n\nb\n":                           "1:a\n3:b\n",
		"a\n/clear\nb\n":                     "1:a\n1:b\n",
		"/system s\na\n/clear\nb":            "2:a\n2:b\n",
		"/system s\n/system\na":              "1:a\n",
		"/set temperature 0.5\na\n/bye\nb\n": "1:a at 0.5\n",
		"a\n/show\n":                         "1:a\nuser: a\nassistant: 1:a\n",
		"/model\n/model two\na\n":            "one\ntwo\n1:a\n",
	} {
		if out, err := run(t, in, "chat", "--url", url); err != nil || out != want {
			t.Errorf("%q: %q, %v; want %q", in, out, err, want)
		}
	}
	for _, in := range []string{"/nope", "/set x 1", "/set top_k a", "/model three"} {
		if _, err := run(t, in, "chat", "--url", url); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

// generate takes its prompt from the arguments or the input, and fails aloud.
func TestGenerate(t *testing.T) {
	url := echoing(t)
	if out, err := run(t, "", "generate", "--url", url, "one", "two"); err != nil || out != "one two/256\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := run(t, "in", "generate", "--url", url, "--max-tokens", "3", "--temperature", "0"); err != nil || out != "in/3 at 0\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := run(t, "", "generate", "--url", url, "fail"); err == nil || out != "" {
		t.Errorf("%q, %v", out, err)
	}
}

// Ctrl-C at the prompt gives an empty line; keys after it are kept.
func TestInterrupts(t *testing.T) {
	keys := &interrupts{in: strings.NewReader("abc\x03d")}
	got, err := io.ReadAll(keys)
	if err != nil || !keys.seen || string(got) != "\x05\x15\rd" {
		t.Errorf("%q, %v, seen %v", got, err, keys.seen)
	}
}

// Who gives no scheme means HTTP; who finds nobody is told what to do.
func TestAddresses(t *testing.T) {
	url := echoing(t)
	if out, err := run(t, "", "generate", "--url", strings.TrimPrefix(url, "http://"), "one"); err != nil || out != "one/256\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run(t, "", "keys", "list", "--url", "127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), ": start a server with manta up, or give its address with --url") {
		t.Errorf("%v", err)
	}
}
