package dispatch_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"manta/head/dispatch"
	"manta/head/dispatch/dispatchtest"
	"manta/head/state"
	"manta/node/wire"
	"manta/runtime/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a dispatcher over a cluster in this process.
type bench struct {
	*dispatch.Dispatcher
	cluster *dispatchtest.Cluster
	next    atomic.Uint32
}

// within runs a test in a bubble of fake time with a cluster and a dispatcher.
func within(t *testing.T, config dispatch.Config, test func(t *testing.T, b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		cluster := dispatchtest.New()
		config.Head, config.Views, config.Link, config.Meter = "head-0", cluster, cluster, dispatchtest.Meter{}
		d := dispatch.New(config)
		cluster.Attach(d)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		test(t, &bench{Dispatcher: d, cluster: cluster})
		stop()
		<-done
		cluster.Close()
	})
}

// request gives a request of its own id for deployment m.
func (b *bench) request(tokens int) dispatch.Request {
	return requested(wire.RequestID{byte(b.next.Add(1))}, tokens)
}

func requested(id wire.RequestID, tokens int) dispatch.Request {
	params := sample.Default()
	params.MaxTokens = tokens
	params.EndTokens = []int32{dispatchtest.EOS}
	return dispatch.Request{
		ID: id, Deployment: "m", Tokenizer: dispatchtest.Bytes{},
		Prompt: []int32{1, 2, 3}, Choices: 1, Params: params,
	}
}

// read reads a stream to its end and gives each choice's text and last event.
func read(t *testing.T, s *dispatchtest.Reader) (texts []string, last []dispatch.Event, err error) {
	t.Helper()
	defer s.Close()
	for {
		event, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return texts, last, nil
		}
		if err != nil {
			return texts, last, err
		}
		for len(texts) <= event.Choice {
			texts, last = append(texts, ""), append(last, dispatch.Event{})
		}
		texts[event.Choice] += event.Text
		last[event.Choice] = event
	}
}

// Submit gives a reader in the stream's place.
func (b *bench) Submit(r dispatch.Request) (*dispatchtest.Reader, error) {
	s, err := b.Dispatcher.Submit(r)
	if err != nil {
		return nil, err
	}
	return dispatchtest.Read(s), nil
}

func submit(t *testing.T, b *bench, r dispatch.Request) *dispatchtest.Reader {
	t.Helper()
	s, err := b.Submit(r)
	if err != nil {
		t.Fatalf("submit: %v", err)
	}
	return s
}

// A request's choices give their own texts, and end as the driver says.
func TestStreamGivesEveryChoice(t *testing.T) {
	for name, c := range map[string]struct {
		script func(*wire.Request, int, int) int32
		tokens int
		text   string
		finish wire.FinishReason
	}{
		"length":                   {dispatchtest.Repeat("héllo "), 7, "héllo ", wire.FinishLength},
		"end token":                {dispatchtest.Say("böse"), 50, "böse", wire.FinishStop},
		"cut character at the end": {dispatchtest.Repeat("aé"), 2, "a\uFFFD", wire.FinishLength},
	} {
		t.Run(name, func(t *testing.T) {
			within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
				b.cluster.Script = c.script
				b.cluster.AddReplica("m", "r1", "n1", 1, 8)
				r := b.request(c.tokens)
				r.Choices = 3
				texts, last, err := read(t, submit(t, b, r))
				if err != nil || len(texts) != 3 {
					t.Fatalf("texts %q, error %v", texts, err)
				}
				for i := range texts {
					if texts[i] != c.text || last[i].Finish != c.finish {
						t.Errorf("choice %d: %q %q, want %q %q", i, texts[i], last[i].Finish, c.text, c.finish)
					}
				}
			})
		})
	}
}

// A stop string ends the choice at the token that completes it: the driver is
// told, and nothing later counts.
func TestStopStringEndsTheChoiceAndCancels(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		r := b.request(100)
		r.Params.Stops = []string{"xx", "o h"}
		texts, last, err := read(t, submit(t, b, r))
		if err != nil || texts[0] != "hell" || last[0].StopString != "o h" || last[0].Offset != 7 {
			t.Fatalf("text %q, last %+v, error %v", texts, last, err)
		}
		synctest.Wait()
		if n := b.cluster.Running(); n != 0 {
			t.Errorf("%d requests still run on the driver", n)
		}
	})
}

// With two choices of which one ends by a stop string, only that one is withdrawn.
func TestStopStringWithdrawsOneChoice(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.Script = func(_ *wire.Request, choice, position int) int32 {
			return int32("stop here"[position%9]) + int32(choice)
		}
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		r := b.request(12)
		r.Choices, r.Params.Stops = 2, []string{"here"}
		_, last, err := read(t, submit(t, b, r))
		if err != nil || last[0].Offset != 9 || last[1].Offset != 12 {
			t.Fatalf("last %+v, error %v", last, err)
		}
		cancels := b.cluster.Cancelled()
		if len(cancels) != 1 || !slices.Equal(cancels[0].Choices, []int{0}) {
			t.Errorf("cancels %+v, want one of choice 0", cancels)
		}
	})
}

// A request whose driver dies goes on elsewhere: attempt raised, tokens known,
// and the client's text is what it would have been.
func TestLostDriverResumes(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.Script = dispatchtest.Repeat("a long story, ")
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		r := b.request(60)
		r.Choices = 2
		s := submit(t, b, r)
		var texts [2]string
		for range 20 {
			event, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			texts[event.Choice] += event.Text
		}
		b.cluster.Kill("n1")
		synctest.Wait()
		b.cluster.AddReplica("m", "r2", "n2", 9, 8)
		rest, _, err := read(t, s)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Repeat("a long story, ", 5)[:60]
		for i := range texts {
			if texts[i]+rest[i] != want {
				t.Errorf("choice %d: %q, want %q", i, texts[i]+rest[i], want)
			}
		}
		sent := b.cluster.Requests()
		if len(sent) != 2 || sent[1].Attempt != 2 || sent[1].Epoch != 9 || len(sent[1].Outputs[0]) != 10 {
			t.Errorf("second sending: %+v", sent[len(sent)-1])
		}
	})
}

// A gap in the offsets is a fault: the request is asked for again and its text
// is whole.
func TestGapIsAFaultAndMends(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.Tamper = func(f *wire.Frame) bool { return f.Attempt != 1 || f.Offset != 5 }
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		texts, _, err := read(t, submit(t, b, b.request(12)))
		if err != nil || texts[0] != "hello hello " {
			t.Fatalf("%q, %v", texts, err)
		}
		if n := len(b.cluster.Requests()); n != 2 {
			t.Errorf("sent %d times, want 2", n)
		}
	})
}

// Whatever gets lost without a trace, the request itself or its last frame, a driver
// that is silent for long is asked again, and the client's text is what it would have
// been. One that only takes its time goes on.
func TestSilentDriverIsAskedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		step  time.Duration
		loses func(*wire.Frame) bool
		sent  int
	}{
		"request":            {time.Millisecond, func(f *wire.Frame) bool { return f.Attempt == 1 }, 2},
		"last frame":         {time.Millisecond, func(f *wire.Frame) bool { return f.Attempt == 1 && f.Finish != wire.Unfinished }, 2},
		"last frame, thrice": {time.Millisecond, func(f *wire.Frame) bool { return f.Attempt <= 3 && f.Finish != wire.Unfinished }, 4},
		"nothing":            {4 * time.Second, func(*wire.Frame) bool { return false }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
				b.cluster.Step, b.cluster.Tamper = c.step, func(f *wire.Frame) bool { return !c.loses(f) }
				b.cluster.Script = dispatchtest.Repeat("a long story, ")
				b.cluster.AddReplica("m", "r1", "n1", 1, 8)
				texts, _, err := read(t, submit(t, b, b.request(20)))
				if want := "a long story, a long"; err != nil || texts[0] != want {
					t.Errorf("text %q, want %q; error %v", texts, want, err)
				}
				if n := len(b.cluster.Requests()); n != c.sent {
					t.Errorf("sent %d times, want %d", n, c.sent)
				}
			})
		})
	}
}

// Frames of an older attempt or another epoch are dropped.
func TestStaleFramesAreDropped(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 4, 8)
		r := b.request(6)
		s := submit(t, b, r)
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.Frame(&wire.Frame{Request: r.ID, Attempt: 0, Epoch: 4, Offset: 1, Tokens: []int32{'X'}})
		b.Frame(&wire.Frame{Request: r.ID, Attempt: 1, Epoch: 3, Offset: 1, Tokens: []int32{'X'}})
		texts, _, err := read(t, s)
		if err != nil || texts[0] != "ello " {
			t.Errorf("%q, %v", texts, err)
		}
	})
}

// Nothing is sent beyond credit, and what waits goes when credit comes back:
// by priority, then in order of arrival.
func TestCreditPriorityAndOrder(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 1)
		var streams []*dispatchtest.Reader
		for _, priority := range []int{0, 5, 5, -1, 0} {
			r := b.request(4)
			r.Priority = priority
			streams = append(streams, submit(t, b, r))
		}
		done := make(chan error, len(streams))
		for _, s := range streams {
			go func() {
				_, _, err := read(t, s)
				done <- err
			}()
		}
		for range streams {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		var order []byte
		for _, sent := range b.cluster.Requests() {
			order = append(order, sent.ID[0])
		}
		if want := []byte{1, 4, 5, 2, 3}; !slices.Equal(order, want) {
			t.Errorf("sent in order %v, want %v", order, want)
		}
	})
}

// A request of more choices than all credit runs alone rather than never, and
// what came after it waits for it.
func TestMoreChoicesThanCredit(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 2)
		r := b.request(3)
		r.Choices = 5
		large, small := submit(t, b, r), submit(t, b, b.request(3))
		done := make(chan error, 1)
		go func() {
			_, _, err := read(t, small)
			done <- err
		}()
		if texts, _, err := read(t, large); err != nil || len(texts) != 5 {
			t.Errorf("%q, %v", texts, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if sent := b.cluster.Requests(); len(sent) != 2 || sent[0].Choices != 5 {
			t.Errorf("sent %+v", sent)
		}
	})
}

// When the link to a node breaks, its requests are sent again there: the node
// lives, and its newer attempt takes the old one's place.
func TestDisconnectedNodeIsAskedAgain(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		s := submit(t, b, b.request(12))
		event, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.Disconnected("n1")
		rest, _, err := read(t, s)
		if err != nil || event.Text+rest[0] != "hello hello " {
			t.Errorf("%q and %q, %v", event.Text, rest, err)
		}
		if sent := b.cluster.Requests(); len(sent) != 2 || len(sent[1].Outputs[0]) == 0 {
			t.Errorf("sent %+v", sent)
		}
	})
}

// A full queue refuses with a time to try again; what was admitted is served.
func TestFullQueueRefuses(t *testing.T) {
	within(t, dispatch.Config{MaxQueue: 2}, func(t *testing.T, b *bench) {
		b.cluster.Update(func(v *state.View) { v.Deployments["m"] = state.Deployment{Name: "m"} })
		first, second := submit(t, b, b.request(3)), submit(t, b, b.request(3))
		_, err := b.Submit(b.request(3))
		var full *dispatch.QueueFullError
		if !errors.As(err, &full) || !errors.Is(err, dispatch.ErrQueueFull) || full.RetryAfter < time.Second {
			t.Fatalf("third: %v", err)
		}
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		for _, s := range []*dispatchtest.Reader{first, second} {
			if texts, _, err := read(t, s); err != nil || texts[0] != "hel" {
				t.Errorf("%q, %v", texts, err)
			}
		}
	})
}

// A request that no replica takes waits to its deadline, and not longer.
func TestDeadlineInTheQueue(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Update(func(v *state.View) { v.Deployments["m"] = state.Deployment{Name: "m"} })
		r := b.request(3)
		r.Deadline = time.Now().Add(time.Minute)
		start := time.Now()
		_, _, err := read(t, submit(t, b, r))
		if !errors.Is(err, dispatch.ErrUnavailable) || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if n := b.Waiting("m"); n != 0 {
			t.Errorf("%d requests still wait", n)
		}
	})
}

// Whoever goes away is taken off the driver, and its credit serves the next.
func TestCloseCancels(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 1)
		s := submit(t, b, b.request(1000))
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Close()
		s.Close()
		synctest.Wait()
		if n := b.cluster.Running(); n != 0 {
			t.Errorf("%d requests still run", n)
		}
		if texts, _, err := read(t, submit(t, b, b.request(3))); err != nil || texts[0] != "hel" {
			t.Errorf("the next: %q, %v", texts, err)
		}
	})
}

// A client that does not read is cut off within bounded memory.
func TestSlowReaderIsCutOff(t *testing.T) {
	within(t, dispatch.Config{MaxBacklog: 10_000}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		s := submit(t, b, b.request(4000))
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		for b.cluster.Running() > 0 {
			<-time.After(time.Second) // of the bubble's clock
		}
		if _, _, err := read(t, s); !errors.Is(err, dispatch.ErrSlowReader) {
			t.Errorf("error %v", err)
		}
	})
}

// A choice that its driver has finished gives its credit back though its reader
// has not come to it yet: a slow client must not keep others from the engine.
func TestSlowReaderHoldsNoCredit(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 2)
		r := b.request(12)
		r.Choices = 2
		slow := submit(t, b, r)
		if _, err := slow.Next(t.Context()); err != nil { // it is sent
			t.Fatal(err)
		}
		for range 2 { // and the second finds the credit of the first
			if texts, _, err := read(t, submit(t, b, b.request(3))); err != nil || texts[0] != "hel" {
				t.Errorf("another client: %q, %v", texts, err)
			}
		}
		if texts, _, err := read(t, slow); err != nil || len(texts) != 2 {
			t.Errorf("the slow client: %q, %v", texts, err)
		}
		if texts, _, err := read(t, submit(t, b, r)); err != nil || len(texts) != 2 {
			t.Errorf("afterwards, credit was lost: %q, %v", texts, err)
		}
		var long []*dispatchtest.Reader
		for range 3 {
			long = append(long, submit(t, b, b.request(100)))
		}
		if n := b.Waiting("m"); n != 1 {
			t.Errorf("%d wait of 3 with credit for 2: credit was given back twice", n)
		}
		for _, s := range long {
			s.Close()
		}
	})
}

// A client that comes back before its first connection is found dead takes the
// request over: the old stream ends, and the new one gives what follows.
func TestResumeSupersedes(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Step = time.Millisecond
		b.cluster.AddReplica("m", "r1", "n1", 1, 1)
		r := b.request(12)
		old := submit(t, b, r)
		event, err := old.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Submit(r); !errors.Is(err, dispatch.ErrInvalid) {
			t.Errorf("the same id without Seen: %v", err)
		}
		r.Attempt, r.Seen = old.Attempt(), []dispatch.Seen{{Tokens: event.Offset}}
		texts, _, err := read(t, submit(t, b, r))
		if err != nil || event.Text+texts[0] != "hello hello " {
			t.Errorf("%q and %q, %v", event.Text, texts, err)
		}
		if _, _, err := read(t, old); !errors.Is(err, dispatch.ErrSuperseded) {
			t.Errorf("the old stream: %v", err)
		}
		if texts, _, err := read(t, submit(t, b, b.request(3))); err != nil || texts[0] != "hel" {
			t.Errorf("credit was not given back: %q, %v", texts, err)
		}
	})
}

// A driver that refuses again and again fails the request, in bounded time.
func TestDriverThatAlwaysLosesFailsTheRequest(t *testing.T) {
	within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
		b.cluster.Tamper = func(f *wire.Frame) bool {
			f.Err = &wire.Error{Code: wire.ErrLost, Message: "no group"}
			return true
		}
		b.cluster.AddReplica("m", "r1", "n1", 1, 8)
		start := time.Now()
		_, _, err := read(t, submit(t, b, b.request(6)))
		if !errors.Is(err, dispatch.ErrReplica) || time.Since(start) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// A resumed stream, wherever it was cut, gives exactly what the client lacks.
func TestResumeGivesOnlyWhatFollows(t *testing.T) {
	const text = "naïve café — stop? no: END of it"
	for cut := range len(text) + 1 {
		within(t, dispatch.Config{}, func(t *testing.T, b *bench) {
			b.cluster.Script, b.cluster.Chunk = dispatchtest.Say(text), 1+cut%3
			b.cluster.AddReplica("m", "r1", "n1", 1, 8)
			r := b.request(100)
			r.Params.Stops = []string{"END"}
			whole := submit(t, b, r)
			var before string
			seen := dispatch.Seen{}
			for seen.Tokens < cut && !seen.Ended {
				event, err := whole.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				before += event.Text
				seen = dispatch.Seen{Tokens: event.Offset, Ended: event.Finish != ""}
			}
			attempt := whole.Attempt()
			whole.Close()
			synctest.Wait()
			b.cluster.Chunk = 1 + cut%2 // frames cut in other places change nothing
			r.Attempt, r.Seen = attempt, []dispatch.Seen{seen}
			after, _, err := read(t, submit(t, b, r))
			if err != nil {
				t.Fatal(err)
			}
			if got := before + strings.Join(after, ""); got != "naïve café — stop? no: " {
				t.Errorf("cut at %d: %q and %q", cut, before, after)
			}
		})
	}
}
