package api

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/head/state"
)

// still is a server whose requests go nowhere: what fuzzing wants is the way of
// a body up to the queue.
type still struct{ sent *dispatch.Request }

func (s still) Submit(r dispatch.Request) (*dispatch.Stream, error) {
	*s.sent = r
	return nil, errStill
}

func (still) Draining() bool              { return false }
func (still) Waiting(string) int          { return 0 }
func (still) Drain(context.Context) error { return nil }

var errStill = &Error{Status: 599, Type: "Still"}

// fuzzBody checks what must hold of any body: an answer in OpenAI's shape, never
// a fault of ours, and a request that was let through is within the limits.
func fuzzBody(f *testing.F, path string, seeds []string) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	var sent dispatch.Request
	cluster := dispatchtest.New()
	f.Cleanup(cluster.Close)
	cluster.Update(func(v *state.View) {
		v.Deployments["m"] = state.Deployment{Name: "m", Settings: state.Settings{MaxModelLen: 1000}}
	})
	server := New(Config{Views: cluster, Texts: fakeTexts{fakeText(f)}, Dispatch: still{&sent}}).Handler()
	f.Fuzz(func(t *testing.T, body []byte) {
		sent = dispatch.Request{}
		recorder := httptest.NewRecorder()
		server.ServeHTTP(recorder, newRequest(path, body))
		status := recorder.Code
		if status >= 500 && status != 599 {
			t.Fatalf("status %d: %s", status, recorder.Body)
		}
		var answer errorBody
		if err := parse(recorder.Body.Bytes(), &answer); err != nil || (status != 599 && answer.Error.Message == "") {
			t.Fatalf("status %d: %v, %s", status, err, recorder.Body)
		}
		if status != 599 {
			return
		}
		if err := sent.Params.Check(dispatchtest.Vocabulary); err != nil {
			t.Fatalf("a request outside the limits was let through: %v", err)
		}
		if n := len(sent.Prompt); n == 0 || n+sent.Params.MaxTokens > 1000 || sent.Choices < 1 {
			t.Fatalf("%d prompt tokens, %d to give, %d choices were let through", n, sent.Params.MaxTokens, sent.Choices)
		}
	})
}

func FuzzCompletionBody(f *testing.F) {
	fuzzBody(f, "/v1/completions", []string{
		`{"prompt":"a"}`, `{"prompt":["a",[1]],"n":2}`, `{"prompt":[1,2],"echo":true,"max_tokens":0,"logprobs":2}`,
		`{"prompt":"a","stop":["x"],"logit_bias":{"1":2},"stop_token_ids":[3],"min_tokens":1,"seed":-1}`,
		`{"prompt":"a","stream":true,"stream_options":{"include_usage":true}}`, `[]`, `{"prompt":null}`,
	})
}

func FuzzChatBody(f *testing.F) {
	fuzzBody(f, "/v1/chat/completions", []string{
		`{"messages":[{"role":"user","content":"a"}]}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"tools":[{"type":"function","function":{}}]}`,
		`{"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":"{}"}}]}],"continue_final_message":true}`,
		`{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"a":[1]},"documents":[{}],"echo":true}`,
		`{"messages":[{}],"top_logprobs":1,"logprobs":true}`,
	})
}

// An id that is read back is the one that was written; anything else is refused.
func FuzzLastEventID(f *testing.F) {
	f.Add(dispatch.EventID{Seed: 7, Attempt: 1, Choices: []dispatch.Seen{{Tokens: 3}, {Tokens: 9, Ended: true}}}.String())
	f.Add("00.1.2.3.4")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := dispatch.ParseEventID(text)
		if err != nil {
			if !errors.Is(err, dispatch.ErrNotFound) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if id.String() != text || len(id.Choices) == 0 {
			t.Fatalf("%q reads as %q", text, id)
		}
	})
}

func newRequest(path string, body []byte) *http.Request {
	return httptest.NewRequest("POST", path, bytes.NewReader(body))
}
