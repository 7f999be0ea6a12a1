package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func environment(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

// The seed guide's variables win over the file; what can't work is refused by name.
func TestDeployment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "deployment.json")
	if err := os.WriteFile(file, []byte(`{"name":"chat","model":"a/b","replicas":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		file string
		env  map[string]string
		want string // a part of the body
		fail string
	}{
		"file alone":          {file: file, want: `"model":"a/b"`},
		"environment wins":    {file: file, env: map[string]string{"MODEL_NAME": "c/d"}, want: `"model":"c/d"`},
		"no file":             {env: map[string]string{"MODEL_NAME": "c/d"}, want: `"name":"c/d"`},
		"tensor ranks":        {file: file, env: map[string]string{"TENSOR_PARALLEL_SIZE": "4"}, want: `"tensor_parallel_size":4`},
		"memory":              {file: file, env: map[string]string{"GPU_MEMORY_UTILIZATION": "0.85"}, want: `"gpu_memory_utilization":0.85`},
		"no model":            {fail: "MODEL_NAME"},
		"no number":           {file: file, env: map[string]string{"TENSOR_PARALLEL_SIZE": "four"}, fail: `TENSOR_PARALLEL_SIZE: want a number from 1, got "four"`},
		"too much memory":     {file: file, env: map[string]string{"GPU_MEMORY_UTILIZATION": "90"}, fail: "GPU_MEMORY_UTILIZATION"},
		"not a number at all": {file: file, env: map[string]string{"GPU_MEMORY_UTILIZATION": "NaN"}, fail: "GPU_MEMORY_UTILIZATION"},
	} {
		t.Run(name, func(t *testing.T) {
			body, _, err := deployment(test.file, environment(test.env))
			if test.fail != "" {
				if err == nil || !strings.Contains(err.Error(), test.fail) {
					t.Fatalf("got %v, want an error with %q", err, test.fail)
				}
				return
			}
			if err != nil || !strings.Contains(string(body), test.want) {
				t.Fatalf("got %s, %v, want %s", body, err, test.want)
			}
		})
	}
}

// heads answers each call with the next of its answers, and with the last for ever.
type heads struct {
	answers []string // "STATUS BODY"
	asked   []string
	key     string
}

func (h *heads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.asked = append(h.asked, r.Method+" "+r.URL.EscapedPath()+" "+string(body))
	h.key = r.Header.Get("Authorization")
	status, text, _ := strings.Cut(h.answers[0], " ")
	if len(h.answers) > 1 {
		h.answers = h.answers[1:]
	}
	code := map[string]int{"200": 200, "201": 201, "400": 400, "404": 404, "503": 503}[status]
	w.WriteHeader(code)
	io.WriteString(w, text)
}

func declared(t *testing.T, h *heads) (string, error) {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	var out strings.Builder
	c := &client{base: server.URL, key: "k", pause: time.Millisecond, out: &out}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	err := c.declare(ctx, []byte(`{"name":"a/b"}`))
	if err == nil {
		err = c.ready(ctx, "a/b")
	}
	return out.String(), err
}

// A head that can't take it now is asked again; the wait names its reason once.
func TestDeclareWaits(t *testing.T) {
	h := &heads{answers: []string{
		`503 {"error":{"message":"no leader"}}`, `503 {"error":{"message":"no leader"}}`, `201 {}`,
		`404 {}`, `200 {"replicas":1,"ready":0,"replica_states":[{"phase":"loading","reason":"weights"}]}`, `200 {"replicas":1,"ready":1}`,
	}}
	out, err := declared(t, h)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(out, "waiting: no leader (503)") != 1 || !strings.Contains(out, "waiting: a replica is loading: weights") {
		t.Errorf("got %q", out)
	}
	if len(h.asked) != 6 || h.asked[5] != "GET /api/cluster/deployments/a%2Fb " || h.key != "Bearer k" {
		t.Errorf("asked %q with %q", h.asked, h.key)
	}
}

// What the head refuses is not asked again: the user must change it.
func TestDeclareRefused(t *testing.T) {
	h := &heads{answers: []string{`400 {"error":{"message":"max_model_len must not be negative"}}`}}
	_, err := declared(t, h)
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "max_model_len must not be negative (400)") || len(h.asked) != 1 {
		t.Fatalf("got %v after %d calls", err, len(h.asked))
	}
}

// An end without success says what it waited for; --timeout is one.
func TestDeclareGivesUp(t *testing.T) {
	server := httptest.NewServer(&heads{answers: []string{`503 {"error":{"message":"no node has joined"}}`}})
	defer server.Close()
	model := environment(map[string]string{"MODEL_NAME": "a/b"})
	ctx, stop := context.WithCancel(t.Context())
	err := run(ctx, []string{"--url", server.URL}, model, written(stop))
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "no node has joined") {
		t.Errorf("got %v", err)
	}
	err = run(t.Context(), []string{"--url", server.URL, "--timeout", "1ms"}, model, io.Discard)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// written is told of each line.
type written func()

func (w written) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}
