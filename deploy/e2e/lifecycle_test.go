//go:build e2e && unix

package e2e

import (
	"context"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"manta/internal/processtest"
)

// long is a stream of seconds: it is under way still when a test that hardly gets to
// run has done something to its server.
const long = 400

// paced are devices on which a token of a tiny model takes some 15 ms, and no less on
// any machine: what must be seen while a stream is under way is not over before.
var paced = []string{"--devices", "sim:1@0.005"}

func story(tokens int) object {
	return object{"prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0, "seed": 1, "ignore_eos": true}
}

// running is a stream in progress, read by a goroutine of its own.
type running struct {
	got   chan event // one for each event, up to its bound
	ended chan struct{}
	last  event  // read it after ended
	all   answer // read it after ended
	err   error  // read it after ended
}

// begin starts a stream and waits for its first events.
func (s *server) begin(t *testing.T, ctx context.Context, body object, events int, header ...string) *running {
	t.Helper()
	r := &running{got: make(chan event, events), ended: make(chan struct{})}
	go func() { // ends with the stream
		defer close(r.ended)
		r.err = s.stream(ctx, "/v1/completions", streaming(body), func(e event) error {
			r.last = e
			select {
			case r.got <- e:
			default:
			}
			return r.all.add([]byte(e.data))
		}, header...)
	}()
	for range events {
		select {
		case <-r.got:
		case <-r.ended:
			t.Fatalf("the stream ended early: %v", r.err)
		case <-time.After(processtest.Patience):
			t.Fatal("the stream has no events")
		}
	}
	return r
}

func (r *running) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(processtest.Patience):
		t.Fatal("the stream does not end")
	}
}

// refusesNew waits until new requests get 503, by which it is stopping.
func (s *server) refusesNew(t *testing.T) {
	t.Helper()
	processtest.Eventually(t, func() error {
		answer, err := s.post(t.Context(), "/v1/completions", story(1))
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusServiceUnavailable {
			return &statusError{status: answer.StatusCode}
		}
		if answer.Header.Get("Retry-After") == "" {
			t.Error("503 without Retry-After")
		}
		return nil
	})
}

// After kill -9 in the middle of a stream, the same folder serves the same
// deployment again without being told, and the client's stream goes on where it
// was: with the seed in its last event's id, the rest is computed again.
func TestKilledAndStartedAgain(t *testing.T) {
	first := start(t, "", *realModel, "--served-model-name", "survivor,other", "--max-model-len", "512")
	body := object{"prompt": "Once upon a time", "max_tokens": long, "temperature": 1.1, "ignore_eos": true}
	cut := first.begin(t, t.Context(), body, 8)
	first.Kill()
	cut.wait(t)
	if cut.err == nil {
		t.Fatal("the stream was over before the kill")
	}

	second := start(t, first.dir, "")
	if status, health, err := get(t.Context(), second.url+"/health"); err != nil || status != http.StatusOK || !strings.Contains(health, `"survivor"`) {
		t.Fatalf("/health: %d %s, %v", status, health, err)
	}
	if _, models, err := get(t.Context(), second.url+"/v1/models"); err != nil || !strings.Contains(models, `"other"`) || !strings.Contains(models, `"max_model_len":512`) {
		t.Fatalf("/v1/models: %s, %v", models, err)
	}
	rest, err := second.streamed(t.Context(), "/v1/completions", body, "Last-Event-ID", cut.last.id)
	if err != nil {
		t.Fatal(err)
	}
	again, err := second.streamed(t.Context(), "/v1/completions", body, "Last-Event-ID", atStart(t, cut.last.id))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := cut.all.Choices[0].Text+rest.Choices[0].Text, again.Choices[0].Text; got != want {
		t.Errorf("the two parts are\n%q, the same seed from the start gives\n%q", got, want)
	}
	if rest.Tokens != long {
		t.Errorf("usage counts %d tokens", rest.Tokens)
	}
}

// At SIGTERM a stream in progress goes on to its end, new requests get 503, and
// the exit code is 0.
func TestTerminationDrains(t *testing.T) {
	s := start(t, "", tiny(t), paced...)
	want, err := s.whole(t.Context(), "/v1/completions", story(long))
	if err != nil {
		t.Fatal(err)
	}
	r := s.begin(t, t.Context(), story(long), 2)
	s.Signal(t, syscall.SIGTERM)
	s.refusesNew(t)
	for path, want := range map[string]int{"/readyz": http.StatusServiceUnavailable, "/health": http.StatusServiceUnavailable, "/livez": http.StatusOK} {
		if status, body, err := get(t.Context(), s.url+path); err != nil || status != want {
			t.Errorf("%s while it stops: %d %s, %v", path, status, body, err)
		}
	}
	r.wait(t)
	if r.err != nil || r.all.Choices[0].Text != want.Choices[0].Text || r.all.Choices[0].Finish != "length" {
		t.Errorf("the stream gave %+v, %v, want %+v", r.all, r.err, want)
	}
	if code := s.Wait(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, s.Err)
	}
}

// A second signal does not wait for anything.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	s := start(t, "", tiny(t), paced...)
	r := s.begin(t, t.Context(), story(long), 1)
	s.Signal(t, syscall.SIGTERM)
	s.refusesNew(t)
	began := time.Now()
	again := time.NewTicker(50 * time.Millisecond) // one that comes with the first is taken for the same
	defer again.Stop()
	for ended := false; !ended; {
		select {
		case <-s.Ended:
			ended = true
		case <-again.C:
			_ = s.Send(syscall.SIGTERM) // it may have just ended
		case <-time.After(processtest.Patience):
			t.Fatal("it goes on")
		}
	}
	if code := s.Wait(t); code == 0 {
		t.Error("exit code 0")
	}
	t.Logf("it took %s", time.Since(began))
	r.wait(t)
	if r.err == nil {
		t.Error("the stream ended as if it were whole")
	}
}

// Requests that don't end within --shutdown-timeout are cut off then.
func TestShutdownTimeout(t *testing.T) {
	s := start(t, "", *realModel, "--shutdown-timeout", "1s")
	r := s.begin(t, t.Context(), story(4000), 1)
	began := time.Now()
	s.Signal(t, syscall.SIGTERM)
	s.Wait(t)
	t.Logf("it took %s", time.Since(began))
	r.wait(t)
	if r.err == nil {
		t.Error("the stream ended as if it were whole")
	}
}
