package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cutting is a server that gives "abcdef" a letter an event, and cuts the
// connection after every n events.
func cutting(t *testing.T, n int, ids bool) (*Client, *[]string) {
	asked := &[]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		*asked = append(*asked, r.Header.Get("Last-Event-ID"))
		start := 0
		if last := r.Header.Get("Last-Event-ID"); last != "" {
			if _, err := fmt.Sscanf(last, "at-%d", &start); err != nil {
				t.Errorf("Last-Event-ID %q", last)
			}
		}
		for i := start; i < min(start+n, 6); i++ {
			if ids {
				fmt.Fprintf(w, "id: at-%d\n", i+1)
			}
			fmt.Fprintf(w, ": a comment\ndata: {\"choices\":[{\"text\":\"%c\"}]}\n\n", 'a'+i)
		}
		if start+n >= 6 {
			fmt.Fprint(w, "data: {\"choices\":[],\"usage\":{\"completion_tokens\":6}}\n\ndata: [DONE]\n\n")
		}
	}))
	t.Cleanup(server.Close)
	c := New("", server.URL)
	t.Cleanup(c.Close)
	return c, asked
}

// A stream that is cut again and again goes on after the last event: each piece
// comes once.
func TestStreamGoesOn(t *testing.T) {
	c, asked := cutting(t, 2, true)
	var text strings.Builder
	used, err := c.Complete(t.Context(), "m", "x", Options{}, func(p Piece) error {
		text.WriteString(p.Text)
		return nil
	})
	if err != nil || text.String() != "abcdef" || used.CompletionTokens != 6 {
		t.Errorf("%q, %+v, %v", text.String(), used, err)
	}
	if got := strings.Join(*asked, " "); got != " at-2 at-4" {
		t.Errorf("asked %q", got)
	}
}

// A connection that the server closed just as it was used again is no failure.
func TestClosedConnectionIsReplaced(t *testing.T) {
	var connections, requests atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Idempotency-Key") != "" {
			t.Error("the mark was sent")
		}
		if requests.Add(1) == 2 { // the first on a used connection
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, "id: at-1\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n")
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c := New("", server.URL)
	defer c.Close()
	for range 2 {
		if _, err := c.Complete(t.Context(), "m", "x", Options{}, func(Piece) error { return nil }); err != nil {
			t.Error(err)
		}
	}
	if connections.Load() != 2 || requests.Load() != 3 {
		t.Errorf("%d connections, %d requests", connections.Load(), requests.Load())
	}
}

// A head that hangs in the middle of a stream is left for the next one.
func TestHangingHeadIsLeft(t *testing.T) {
	hung := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "id: at-2\ndata: {\"choices\":[{\"text\":\"ab\"}]}\n\n")
		w.(http.Flusher).Flush()
		<-hung
	}))
	defer hanging.Close()
	defer close(hung)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Last-Event-ID"); got != "at-2" {
			t.Errorf("asked to go on after %q", got)
		}
		fmt.Fprint(w, "id: at-6\ndata: {\"choices\":[{\"text\":\"cdef\"}]}\n\ndata: [DONE]\n\n")
	}))
	defer other.Close()
	c := New("", hanging.URL, other.URL)
	defer c.Close()
	var text strings.Builder
	_, err := c.Complete(t.Context(), "m", "x", Options{}, func(p Piece) error {
		text.WriteString(p.Text)
		return nil
	})
	if err != nil || text.String() != "abcdef" {
		t.Errorf("%q, %v", text.String(), err)
	}
}

// A server without ids can't go on: asking again would repeat text.
func TestStreamWithoutIDsEnds(t *testing.T) {
	c, asked := cutting(t, 2, false)
	_, err := c.Complete(t.Context(), "m", "x", Options{}, func(Piece) error { return nil })
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(*asked) != 1 {
		t.Errorf("%v after %d requests", err, len(*asked))
	}
}

// What the caller refuses is not tried again.
func TestStreamEndsWithTheCaller(t *testing.T) {
	c, asked := cutting(t, 2, true)
	stop := errors.New("enough")
	_, err := c.Complete(t.Context(), "m", "x", Options{}, func(Piece) error { return stop })
	if !errors.Is(err, stop) || len(*asked) != 1 {
		t.Errorf("%v after %d requests", err, len(*asked))
	}
}

// An error has the server's words, and the next head is asked when one is gone.
func TestErrorsAndOtherHeads(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"error":{"message":"the queue is full","code":429}}`)
	}))
	defer server.Close()
	c := New("key", "http://127.0.0.1:1", server.URL+"/v1/")
	defer c.Close()
	_, err := c.Models(t.Context())
	var refused *Error
	if !errors.As(err, &refused) || refused.Status != 429 || refused.Message != "the queue is full" || refused.RetryAfter.Seconds() != 3 {
		t.Errorf("%v", err)
	}
	if _, err := c.Chat(t.Context(), "m", nil, Options{}, func(Piece) error { return nil }); !errors.As(err, &refused) {
		t.Errorf("stream: %v", err)
	}
}

// Who answered last is asked first: a head that is gone costs one try, not one a request.
func TestTheHeadThatAnswersIsKept(t *testing.T) {
	var asked atomic.Int64
	gone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer gone.Close()
	there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprint(w, `{"data":[{"id":"m"}]}`)
			return
		}
		fmt.Fprint(w, "id: at-1\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n")
	}))
	defer there.Close()
	c := New("", gone.URL, there.URL)
	defer c.Close()
	for range 3 {
		if _, err := c.Complete(t.Context(), "m", "x", Options{}, func(Piece) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Models(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the head that is gone was asked %d times", n)
	}
}

// A stream that nothing was given of finds the one head that is there at once, and
// is tried at each a second time: heads are restarted one after the other.
func TestStreamBeginsWhereAHeadIs(t *testing.T) {
	stopping := func(until int64) *httptest.Server {
		var asked atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) <= until {
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			fmt.Fprint(w, "id: at-1\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n")
		}))
		t.Cleanup(server.Close)
		return server
	}
	for name, bases := range map[string][]string{
		"the last of three":    {"http://127.0.0.1:1", stopping(9).URL, stopping(0).URL},
		"the first, but later": {stopping(1).URL, "http://127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			c := New("", bases...)
			defer c.Close()
			var text string
			_, err := c.Complete(ctx, "m", "x", Options{}, func(p Piece) error { text += p.Text; return nil })
			if err != nil || text != "a" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
}
