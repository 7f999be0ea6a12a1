package dispatchtest

import (
	"context"
	"io"

	"manta/head/dispatch"
)

// Reader runs a stream and hands its events out one by one, as fast as it is asked:
// the sink of a client that reads slowly.
type Reader struct {
	*dispatch.Stream
	events chan dispatch.Event
	ended  chan struct{} // closed when Run has returned; nil before the first Next
	err    error         // Run's, once ended
	stop   context.CancelFunc
	rest   []dispatch.Event // taken and not handed out yet; the sink's own
}

// Read makes a Reader; Close ends it and the stream.
func Read(s *dispatch.Stream) *Reader {
	return &Reader{Stream: s, events: make(chan dispatch.Event)}
}

// Next gives the next event, io.EOF after the last, or why the request failed.
func (r *Reader) Next(ctx context.Context) (dispatch.Event, error) {
	if r.ended == nil {
		running, stop := context.WithCancel(ctx)
		r.stop, r.ended = stop, make(chan struct{})
		go func() {
			defer close(r.ended)
			r.err = r.Run(running, sink{r, running})
		}()
	}
	select {
	case e := <-r.events:
		return e, nil
	case <-r.ended:
		if r.err == nil {
			return dispatch.Event{}, io.EOF
		}
		return dispatch.Event{}, r.err
	case <-ctx.Done():
		return dispatch.Event{}, ctx.Err()
	}
}

// Close withdraws the stream and waits for what ran it.
func (r *Reader) Close() {
	if r.ended != nil {
		r.stop()
		<-r.ended
	}
	r.Stream.Close()
}

type sink struct {
	r   *Reader
	ctx context.Context
}

// Take gives to who waits in Next, and keeps the rest until it may wait.
func (s sink) Take(events []dispatch.Event, mayWait bool) (bool, error) {
	r := s.r
	r.rest = append(r.rest, events...)
	for len(r.rest) > 0 {
		if !mayWait {
			select {
			case r.events <- r.rest[0]:
			default:
				return false, nil
			}
		} else {
			select {
			case r.events <- r.rest[0]:
			case <-s.ctx.Done():
				return false, s.ctx.Err()
			}
		}
		r.rest = r.rest[1:]
	}
	return true, nil
}
