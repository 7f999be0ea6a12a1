package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// ErrCut says that a stream ended before its end and could not go on.
var ErrCut = errors.New("the stream was cut")

// maxRetries bounds the tries to go on without any progress between them.
const maxRetries = 30

// silence is how long a head may send nothing, once it is known to be one: heads
// comment on a silent stream twice a second. One that hangs is left for another. If
// it did take the connection the next gets twice as long, up to maxSilence: it may be
// the machine that is slow, and every new beginning costs a prompt.
const (
	silence    = 1500 * time.Millisecond
	maxSilence = 6 * time.Second
)

// maxLine bounds one line of a stream.
const maxLine = 8 << 20

// Stream posts a request and hands each event's data to each, until [DONE]. When
// the connection is cut it goes on after the last event, at any of the heads. An
// error that each returns ends the stream.
func (c *Client) Stream(ctx context.Context, path string, body any, each func(data []byte) error) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	s := &stream{client: c, path: path, body: data, each: each, silence: silence}
	first := int(c.first.Load())
	for tries := 0; ; tries++ {
		before := s.last
		err := s.once(ctx, (first+tries)%len(c.bases))
		if err == nil || ctx.Err() != nil || !s.mayGoOn(err, tries) {
			return err
		}
		if s.last != before {
			tries = 0
		}
		if errors.Is(err, errHangs) {
			c.http.CloseIdleConnections() // they may lead to where it was
			if s.connected.Load() {
				s.silence = min(2*s.silence, maxSilence)
			}
		}
		if tries+1 >= maxRetries {
			return fmt.Errorf("%w: %w", ErrCut, err)
		}
		if !s.events && (tries+1)%len(c.bases) != 0 {
			continue // another head may be there right now
		}
		if err := pause(ctx, wait(err, tries)); err != nil {
			return err
		}
	}
}

type stream struct {
	client *Client
	path   string
	body   []byte
	each   func([]byte) error
	last   string // id of the last event handed on
	events bool   // an event was handed on
	lively bool   // the server comments on silent streams

	silence   time.Duration // that the next head is given
	connected atomic.Bool   // the newest did take a new connection
}

// refusal marks an error that is each's own.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// mayGoOn tells whether another try can help and repeats nothing.
func (s *stream) mayGoOn(err error, tries int) bool {
	var own refusal
	var refused *Error
	switch {
	case errors.As(err, &own):
		return false
	case !s.events:
		// Nothing was given yet: where no one answers, or a head stops, the next may,
		// each of several twice: they may be restarted one after the other.
		heads := len(s.client.bases)
		return (!answered(err) || unavailable(err)) && heads > 1 && tries+1 < 2*heads
	case s.last == "":
		return false // a server without ids: a second try would repeat text
	case errors.As(err, &refused):
		return refused.Status == http.StatusServiceUnavailable || refused.Status == http.StatusTooManyRequests
	}
	return true
}

// once reads one connection to its end; nil means that the stream is complete.
func (s *stream) once(ctx context.Context, at int) error {
	s.connected.Store(false)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { s.connected.Store(!c.Reused) }})
	ctx, hangs := context.WithCancelCause(ctx)
	defer hangs(nil)
	alarm := time.AfterFunc(s.silence, func() { hangs(errHangs) })
	defer alarm.Stop()
	if s.last == "" {
		alarm.Stop() // it may be any server, or wait for a replica
	}
	// The key is not sent. It lets http.Transport take another connection when the server
	// had closed the one that it took, and nothing was answered yet.
	header := http.Header{"X-Idempotency-Key": nil}
	if s.last != "" {
		header.Set("Last-Event-ID", s.last)
	}
	response, err := s.client.send(ctx, at, http.MethodPost, s.path, s.body, header)
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	defer response.Body.Close()
	scanner := bufio.NewScanner(response.Body)
	scanner.Buffer(make([]byte, 0, 16<<10), maxLine)
	var id string
	var data []byte
	for scanner.Scan() {
		line := scanner.Bytes()
		s.lively = s.lively || bytes.HasPrefix(line, []byte(":"))
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0 && data != nil:
			if string(data) == "[DONE]" {
				return nil
			}
			alarm.Stop() // the caller may take its time
			if err := s.event(id, data); err != nil {
				return err
			}
			data = nil
		case string(field) == "id":
			id = string(value)
		case string(field) == "data":
			data = append(append([]byte{}, data...), value...)
		}
		if s.lively || s.last != "" {
			alarm.Reset(s.silence)
		}
	}
	if err := scanner.Err(); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return io.ErrUnexpectedEOF
}

// errHangs: the head says nothing, not even that it waits.
var errHangs = errors.New("the head does not answer")

// event hands data on. An error of the server's inside the stream ends it.
func (s *stream) event(id string, data []byte) error {
	var failed struct {
		Error *struct {
			Message string `json:"message"`
			Code    int    `json:"code"`
		} `json:"error"`
	}
	if bytes.HasPrefix(data, []byte(`{"error"`)) && json.Unmarshal(data, &failed) == nil && failed.Error != nil {
		return &Error{Status: failed.Error.Code, Message: failed.Error.Message}
	}
	if err := s.each(data); err != nil {
		return refusal{err}
	}
	s.last, s.events = id, true
	return nil
}

// wait is how long to pause before another try: what the server says, or a
// quarter of a second, doubling up to two.
func wait(err error, tries int) time.Duration {
	var refused *Error
	if errors.As(err, &refused) && refused.RetryAfter > 0 {
		return min(refused.RetryAfter, 10*time.Second)
	}
	return min(250*time.Millisecond<<min(tries, 3), 2*time.Second)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
