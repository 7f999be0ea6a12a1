//go:build e2e && unix

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"manta/internal/processtest"
)

// object is a JSON object of a request.
type object = map[string]any

// browser is a client whose connections end with the answer, so that what it
// leaves behind on the server can be counted.
var browser = &http.Client{Transport: &http.Transport{
	DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: processtest.Patience}).DialContext,
}}

// post sends a body, with headers given as name, value, name, value …
func (s *server) post(ctx context.Context, path string, body any, header ...string) (*http.Response, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	return browser.Do(request)
}

// ask gives the status and the whole of an answer.
func (s *server) ask(ctx context.Context, path string, body any, header ...string) (int, []byte, error) {
	answer, err := s.post(ctx, path, body, header...)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	return answer.StatusCode, data, err
}

// get gives the status and the body at a whole address.
func get(ctx context.Context, url string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	answer, err := browser.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(data), err
}

// event is one server-sent event.
type event struct{ id, data string }

// statusError is an answer other than 200.
type statusError struct {
	status     int
	retryAfter string
	body       string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

// errCut says that a stream ended before its [DONE].
var errCut = errors.New("the stream was cut")

// errEnough ends a stream from the client's side.
var errEnough = errors.New("enough")

// stream posts a request and hands on its events until the end, or until the
// connection breaks, or until take has an error. Leaving closes the connection.
func (s *server) stream(ctx context.Context, path string, body any, take func(event) error, header ...string) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	answer, err := s.post(ctx, path, body, header...)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		data, err := io.ReadAll(answer.Body)
		return errors.Join(&statusError{answer.StatusCode, answer.Header.Get("Retry-After"), string(data)}, err)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	var id string
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "id":
			id = value
		case name == "data" && value == "[DONE]":
			return nil
		case name == "data":
			if err := take(event{id, value}); err != nil {
				return err
			}
		}
	}
	return errors.Join(errCut, lines.Err())
}

// choice is one answer in a form in which streamed and whole ones compare.
type choice struct {
	Text     string
	Finish   string
	Stop     any
	Logprobs []any
}

// answer is all that a client gets for a request.
type answer struct {
	Choices []choice
	Tokens  int // of all choices
}

// chunk is a chat's or completion's body, whole or a part.
type chunk struct {
	Error   json.RawMessage
	Choices []struct {
		Index   int
		Text    string
		Message struct{ Content string }
		Delta   struct{ Content string }
		Finish  string `json:"finish_reason"`
		Stop    any    `json:"stop_reason"`

		Logprobs *struct {
			Content  []any
			Tokens   []string
			Values   []any `json:"token_logprobs"`
			TopFirst []any `json:"top_logprobs"`
		}
	}
	Usage *struct {
		Completion int `json:"completion_tokens"`
	}
}

// add takes a body, whole or a part, into the answer.
func (a *answer) add(data []byte) error {
	var c chunk
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("%w: %s", err, data)
	}
	if c.Error != nil {
		return fmt.Errorf("an error in the stream: %s", c.Error)
	}
	for _, part := range c.Choices {
		for part.Index >= len(a.Choices) {
			a.Choices = append(a.Choices, choice{})
		}
		to := &a.Choices[part.Index]
		to.Text += part.Text + part.Message.Content + part.Delta.Content
		if part.Finish != "" {
			to.Finish, to.Stop = part.Finish, part.Stop
		}
		if part.Logprobs == nil {
			continue
		}
		to.Logprobs = append(to.Logprobs, part.Logprobs.Content...)
		for i, token := range part.Logprobs.Tokens {
			to.Logprobs = append(to.Logprobs, []any{token, part.Logprobs.Values[i], part.Logprobs.TopFirst[i]})
		}
	}
	if c.Usage != nil {
		a.Tokens = c.Usage.Completion
	}
	return nil
}

// whole asks without a stream.
func (s *server) whole(ctx context.Context, path string, body object) (*answer, error) {
	status, data, err := s.ask(ctx, path, body)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, &statusError{status: status, body: string(data)}
	}
	var a answer
	return &a, a.add(data)
}

// streamed asks for the same as a stream.
func (s *server) streamed(ctx context.Context, path string, body object, header ...string) (*answer, error) {
	var a answer
	err := s.stream(ctx, path, streaming(body), func(e event) error { return a.add([]byte(e.data)) }, header...)
	return &a, err
}

// streaming is a body that asks for a stream with its usage.
func streaming(body object) object {
	with := object{"stream": true, "stream_options": object{"include_usage": true}}
	for name, value := range body {
		with[name] = value
	}
	return with
}

// metric sums the series of a name whose labels hold all of the given texts.
func metric(exposition, name string, labels ...string) (sum float64, found bool) {
lines:
	for line := range strings.Lines(exposition) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if of, _, _ := strings.Cut(series, "{"); of != name {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(series, label) {
				continue lines
			}
		}
		if number, err := strconv.ParseFloat(value, 64); err == nil {
			sum, found = sum+number, true
		}
	}
	return sum, found
}

func (s *server) exposition(t *testing.T) string {
	t.Helper()
	status, body, err := get(t.Context(), s.url+"/metrics")
	if err != nil || status != http.StatusOK {
		t.Fatalf("/metrics: %d, %v", status, err)
	}
	return body
}

func (s *server) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	value, found := metric(s.exposition(t), name, labels...)
	if !found {
		t.Fatalf("/metrics lacks %s", name)
	}
	return value
}

// errOld says that the engine's figures may be of before.
var errOld = errors.New("the engine has not reported since")

// reportEvery is longer than what passes between two of the engine's reports.
const reportEvery = 700 * time.Millisecond

// idle waits until nothing runs or waits, no sequence holds a block, and there
// are no more goroutines than before.
func (s *server) idle(t *testing.T, goroutines float64) {
	t.Helper()
	var since time.Time
	processtest.Eventually(t, func() (err error) {
		defer func() {
			if err != nil && err != errOld {
				since = time.Time{}
			}
		}()
		text := s.exposition(t)
		for _, name := range []string{
			"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
			"manta_engine_sequences_running", "manta_engine_sequences_waiting", "manta_engine_slots",
		} {
			if value, found := metric(text, name); !found || value != 0 {
				return fmt.Errorf("%s is %v", name, value)
			}
		}
		// The scrape itself has a connection; others may be about to close.
		if now, _ := metric(text, "go_goroutines"); now > goroutines+4 {
			return fmt.Errorf("%v goroutines, there were %v", now, goroutines)
		}
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) < reportEvery {
			return errOld
		}
		return nil
	})
}
