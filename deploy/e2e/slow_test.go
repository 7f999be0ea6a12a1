//go:build e2e && unix

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"manta/internal/processtest"
)

// Clients that read nothing of answers of some 9 MB, more than the kernel's
// buffers take, and that asked for all the sequences there are, hold neither the
// engine nor other clients: what their sequences held is free again, and others
// have their answers, while their connections still stand.
func TestSlowReader(t *testing.T) {
	s := start(t, "", tiny(t), "--max-num-seqs", "16")
	goroutines, rows := s.metric(t, "go_goroutines"), s.metric(t, "manta_engine_rows_total")
	began := time.Now()
	body := object{"prompt": "hello", "max_tokens": 480, "n": 16, "logprobs": 20, "ignore_eos": true, "temperature": 1, "stream": true}
	slow := []net.Conn{unread(t, s, body), unread(t, s, body)} // the second waits for the first
	processtest.Eventually(t, func() error {                   // the first has begun; a counter, since all may be over at the next look
		if computed := s.metric(t, "manta_engine_rows_total") - rows; computed < 16 {
			return fmt.Errorf("%v rows are computed", computed)
		}
		return nil
	})
	if _, err := s.whole(t.Context(), "/v1/completions", object{"prompt": "hello", "max_tokens": 8}); err != nil {
		t.Error(err)
	}
	other := time.Since(began)
	processtest.Eventually(t, func() error {
		for _, name := range []string{"manta_engine_sequences_running", "manta_engine_sequences_waiting", "vllm:kv_cache_usage_perc"} {
			if value := s.metric(t, name); value != 0 {
				return fmt.Errorf("%s is %v", name, value)
			}
		}
		return nil
	})
	t.Logf("another client had its answer after %s, the engine was done after %s", other, time.Since(began))
	// Until now nobody has lost patience with them, unless this machine is slow too.
	if running := s.metric(t, "vllm:num_requests_running"); running != 2 && time.Since(began) < 30*time.Second {
		t.Errorf("%v slow clients of 2 are there: others may have waited for that", running)
	}
	if heap := s.metric(t, "go_memstats_heap_inuse_bytes"); heap > 128<<20 {
		t.Errorf("%v bytes of heap for two slow clients", heap)
	}
	for _, client := range slow {
		client.Close()
	}
	s.idle(t, goroutines)
	if log := s.Err.String(); strings.Contains(log, " failed\"") {
		t.Errorf("what clients do is logged as a fault:\n%s", log)
	}
}

// unread posts a body and reads nothing.
func unread(t *testing.T, s *server, body object) net.Conn {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(s.url, "http://")
	connection, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	if err := connection.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(connection, "POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", host, len(data), data); err != nil {
		t.Fatal(err)
	}
	return connection
}

// A body beyond the limit is refused before it is held, and one that is not JSON
// is refused by name.
func TestBodies(t *testing.T) {
	for name, c := range map[string]struct {
		body   string
		status int
	}{
		"20 MiB":      {`{"prompt": "` + strings.Repeat("a", 20<<20) + `"}`, http.StatusRequestEntityTooLarge},
		"nothing":     {"", http.StatusBadRequest},
		"no JSON":     {"prompt=hello", http.StatusBadRequest},
		"half":        {`{"prompt": "hel`, http.StatusBadRequest},
		"two":         {`{"prompt": "a"}{"prompt": "b"}`, http.StatusBadRequest},
		"a list":      {`["a"]`, http.StatusBadRequest},
		"nested deep": {strings.Repeat(`{"a":`, 20000), http.StatusBadRequest},
		"not UTF-8":   {"{\"prompt\": \"\xff\xfe\"}", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := browser.Post(shared.url+"/v1/completions", "application/json", bytes.NewReader([]byte(c.body)))
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			data, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != c.status || !json.Valid(data) {
				t.Errorf("status %d, want %d: %.300s, %v", answer.StatusCode, c.status, data, err)
			}
		})
	}
}
