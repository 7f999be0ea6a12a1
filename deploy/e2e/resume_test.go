//go:build e2e && unix

package e2e

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
)

// atStart is the event id of a client that has seen nothing of one choice.
func atStart(t *testing.T, id string) string {
	t.Helper()
	end := strings.LastIndexByte(id, '.')
	if end < 0 {
		t.Fatalf("event id %q", id)
	}
	return id[:end] + ".0"
}

// A client whose connection broke repeats its POST with the last event's id and
// gets exactly what it lacks, wherever it was cut, whatever the parameters.
func TestResume(t *testing.T) {
	for name, body := range map[string]object{
		"greedy":       {"prompt": "The sea is", "max_tokens": 24, "temperature": 0},
		"seeded":       {"prompt": "The sea is", "max_tokens": 24, "temperature": 1.2, "seed": 11, "logprobs": 2},
		"choices":      {"prompt": "The sea is", "max_tokens": 12, "temperature": 1, "seed": 12, "n": 2},
		"penalties":    {"prompt": "one two one two", "max_tokens": 24, "temperature": 0, "frequency_penalty": 1, "repetition_penalty": 1.3},
		"stop strings": {"prompt": "The sea is", "max_tokens": 40, "temperature": 1, "seed": 13, "stop": []string{" of", "."}},
		"many prompts": {"prompt": []string{"The sea is", "A ship"}, "max_tokens": 8, "temperature": 0},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := shared.whole(t.Context(), "/v1/completions", body)
			if err != nil {
				t.Fatal(err)
			}
			for _, events := range []int{1, 3} {
				ctx, leave := context.WithCancel(t.Context())
				got := &answer{}
				last, seen := "", 0
				err := shared.stream(ctx, "/v1/completions", streaming(body), func(e event) error {
					last = e.id
					if err := got.add([]byte(e.data)); err != nil {
						return err
					}
					if seen++; seen == events {
						return errEnough
					}
					return nil
				})
				leave()
				if err != nil && !errors.Is(err, errEnough) {
					t.Fatal(err)
				}
				if err := shared.stream(t.Context(), "/v1/completions", streaming(body), func(e event) error {
					return got.add([]byte(e.data))
				}, "Last-Event-ID", last); err != nil {
					t.Fatalf("after %d events: %v", events, err)
				}
				same(t, got, want)
			}
		})
	}
}

// same compares what two clients have at the end.
func same(t *testing.T, got, want *answer) {
	t.Helper()
	if len(got.Choices) != len(want.Choices) || got.Tokens != want.Tokens {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for i, c := range got.Choices {
		w := want.Choices[i]
		if c.Text != w.Text || c.Finish != w.Finish || len(c.Logprobs) != len(w.Logprobs) {
			t.Errorf("choice %d: got %+v, want %+v", i, c, w)
		}
	}
}

// A chat resumes too, and its seed, which the server drew, is the id's.
func TestResumeChat(t *testing.T) {
	body := object{"messages": []object{{"role": "user", "content": "Name a colour."}}, "max_tokens": 24, "temperature": 1.5, "ignore_eos": true}
	var got answer
	first, last, seen := "", "", 0
	err := shared.stream(t.Context(), "/v1/chat/completions", streaming(body), func(e event) error {
		if first == "" {
			first = e.id
		}
		last = e.id
		if err := got.add([]byte(e.data)); err != nil {
			return err
		}
		if seen++; seen == 4 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	for range 2 { // also a second time, from the same place
		rest, err := shared.streamed(t.Context(), "/v1/chat/completions", body, "Last-Event-ID", last)
		if err != nil {
			t.Fatal(err)
		}
		again, err := shared.streamed(t.Context(), "/v1/chat/completions", body, "Last-Event-ID", atStart(t, first))
		if err != nil {
			t.Fatal(err)
		}
		if parts, whole := got.Choices[0].Text+rest.Choices[0].Text, again.Choices[0].Text; parts != whole {
			t.Errorf("the two parts are\n%q, the whole is\n%q", parts, whole)
		}
	}
}

// Whoever has another key, or asks for something else, does not learn that the
// request exists. A server beyond loopback demands the key but for probes.
func TestKeysAndOwners(t *testing.T) {
	keys := t.TempDir() + "/keys"
	write(t, keys, []byte("# for tests\nfirst-key\n\nsecond-key\n"))
	s := start(t, "", tiny(t), "--host", "0.0.0.0", "--api-key", "@"+keys)
	body := object{"prompt": "hello", "max_tokens": 16, "temperature": 1, "seed": 3, "ignore_eos": true}
	bearer := func(key string) []string { return []string{"Authorization", "Bearer " + key} }

	for _, path := range []string{"/health", "/livez", "/readyz", "/metrics"} {
		if status, _, err := get(t.Context(), s.url+path); err != nil || status != http.StatusOK {
			t.Errorf("%s without a key: %d, %v", path, status, err)
		}
	}
	for _, path := range []string{"/v1/models", "/api/cluster", "/version", "/no/such/path"} {
		if status, _, err := get(t.Context(), s.url+path); err != nil || status != http.StatusUnauthorized {
			t.Errorf("%s without a key: %d, %v", path, status, err)
		}
	}
	for name, header := range map[string][]string{"no key": nil, "another key": bearer("third-key"), "the file's comment": bearer("# for tests")} {
		for _, path := range []string{"/v1/completions", "/v1/chat/completions", "/generate", "/batch-generate", "/tokenize"} {
			if status, data, err := s.ask(t.Context(), path, body, header...); err != nil || status != http.StatusUnauthorized {
				t.Errorf("%s with %s: %d %s, %v", path, name, status, data, err)
			}
		}
	}

	var whole answer
	var third string
	seen := 0
	if err := s.stream(t.Context(), "/v1/completions", streaming(body), func(e event) error {
		if seen++; seen == 3 {
			third = e.id
		}
		return whole.add([]byte(e.data))
	}, bearer("first-key")...); err != nil {
		t.Fatal(err)
	}
	changed := "0" + third[1:]
	if changed == third { // ids are random
		changed = "1" + third[1:]
	}
	other := object{"prompt": "hello", "max_tokens": 17, "temperature": 1, "seed": 3, "ignore_eos": true}
	for name, c := range map[string]struct {
		key    string
		body   object
		id     string
		status int
	}{
		"another key":  {"second-key", body, third, http.StatusNotFound},
		"another body": {"first-key", other, third, http.StatusNotFound},
		"changed id":   {"first-key", body, changed, http.StatusNotFound},
		"no id at all": {"first-key", body, "nonsense", http.StatusNotFound},
	} {
		header := append(bearer(c.key), "Last-Event-ID", c.id)
		if status, data, err := s.ask(t.Context(), "/v1/completions", streaming(c.body), header...); err != nil || status != c.status {
			t.Errorf("%s: %d %s, %v", name, status, data, err)
		}
	}
	rest, err := s.streamed(t.Context(), "/v1/completions", body, append(bearer("first-key"), "Last-Event-ID", third)...)
	if err != nil || !strings.HasSuffix(whole.Choices[0].Text, rest.Choices[0].Text) || rest.Tokens != 16 {
		t.Errorf("with key and body: %+v, %v, the whole is %+v", rest, err, whole)
	}
}
