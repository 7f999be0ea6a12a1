package serve

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"manta/node/wire"
	"manta/parallel/shard"
	"manta/runtime/sample"
	"manta/runtime/weights"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const modelPath = "../../runtime/model/testdata/models/llama"

// head collects what a node sends it.
type head struct {
	t      *testing.T
	frames chan wire.Frame
}

func (h *head) Send(ctx context.Context, to, kind string, data []byte) error {
	var f wire.Frames
	if err := wire.Unmarshal(data, &f); err != nil || kind != wire.KindFrames {
		h.t.Errorf("message %s for %s: %v", kind, to, err)
	}
	for _, frame := range f.Frames {
		select {
		case h.frames <- frame:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// rig is a server on one CPU device that has been told to run the golden model.
type rig struct {
	*head
	server  *Server
	changed chan struct{}
	stop    func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newNode(t, "n1", &head{t: t, frames: make(chan wire.Frame, 1<<12)}, nil)
}

func newNode(t *testing.T, name string, h *head, peers Peers) *rig {
	t.Helper()
	r := &rig{head: h, changed: make(chan struct{}, 1)}
	r.server = New(Config{
		Node: name, Peers: peers, Devices: []Kind{CPU{Count: 1, Threads: 1, Memory: 1 << 30}}, Send: h, Logger: slog.New(slog.DiscardHandler),
		Library: func(string) *weights.Library { return weights.NewLibrary(t.TempDir()) },
		Changed: func() {
			select {
			case r.changed <- struct{}{}:
			default:
			}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.server.Run(ctx) }()
	r.stop = func() {
		cancel()
		<-ended
	}
	return r
}

func assignment(epoch uint64, model string) wire.Assignments {
	return wire.Assignments{Version: wire.Version, Index: epoch, Replicas: []wire.Assignment{{
		Replica: "r1", Deployment: "llama", Epoch: epoch, Model: model, Layout: shard.Layout{Tensor: 1, Pipeline: 1},
		Shards: []wire.Shard{{Node: "n1", Device: "cpu:0"}}, Blocks: []int{64}, MaxLen: 256,
		Settings: wire.Settings{MaxNumSeqs: 8, MaxNumBatchedTokens: 64, PrefixCaching: true},
	}}}
}

// await waits until the replica is in a phase of an epoch.
func (r *rig) await(epoch uint64, phase wire.Phase) wire.ReplicaReport {
	r.t.Helper()
	for {
		for _, report := range r.server.Report().Replicas {
			if report.Epoch == epoch && report.Phase == phase {
				return report
			}
			if report.Epoch == epoch && report.Phase == wire.PhaseFailed {
				r.t.Fatalf("replica failed: %s", report.Reason)
			}
		}
		<-r.changed
	}
}

func prompt(t *testing.T) (ids, greedy []int32) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(modelPath, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g struct {
		Prompts []struct{ IDs, Greedy []int32 }
	}
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	return g.Prompts[2].IDs, g.Prompts[2].Greedy
}

func request(ids []int32, id byte, attempt uint32, epoch uint64, tokens int) wire.Request {
	p := sample.Default()
	p.Temperature, p.MaxTokens, p.IgnoreEOS = 0, tokens, true
	return wire.Request{
		Version: wire.Version, ID: wire.RequestID{id}, Attempt: attempt, Replica: "r1", Epoch: epoch, Head: "h1",
		Prompt: ids, Choices: 1, Params: p, Owner: [32]byte{1},
	}
}

// finish collects a request's tokens, from the given ones on.
func (r *rig) finish(id byte, attempt uint32, given []int32) []int32 {
	r.t.Helper()
	tokens := slices.Clone(given)
	for {
		f := <-r.frames
		if f.Request != (wire.RequestID{id}) || f.Attempt != attempt {
			continue
		}
		if f.Err != nil {
			r.t.Fatalf("request %d: %v", id, f.Err)
		}
		if f.Offset != len(tokens) {
			r.t.Fatalf("request %d: offset %d after %d tokens", id, f.Offset, len(tokens))
		}
		tokens = append(tokens, f.Tokens...)
		if f.Finish != wire.Unfinished {
			return tokens
		}
	}
}

// flood gives epoch 1 more requests than it can end before the caller's next
// deed; all have come when it returns the last one's id, and the first run.
func (r *rig) flood(ids []int32) (last byte) {
	for last = 100; last < 200; last++ {
		r.server.Request(request(ids, last, 1, 1, 180))
	}
	<-r.frames
	return last - 1
}

func (r *rig) failure(id byte) *wire.Error {
	r.t.Helper()
	for {
		if f := <-r.frames; f.Request == (wire.RequestID{id}) && f.Err != nil {
			return f.Err
		}
	}
}

// An assigned model loads, proves itself with a step, and answers as the
// reference does; a new epoch does so on the same loaded weights.
func TestAssignedReplicaAnswers(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	ids, greedy := prompt(t)
	for epoch := uint64(1); epoch <= 2; epoch++ {
		r.server.Assign(assignment(epoch, modelPath))
		r.await(epoch, wire.PhaseReady)
		r.server.Request(request(ids, byte(epoch), 1, epoch, len(greedy)))
		if got := r.finish(byte(epoch), 1, nil); !slices.Equal(got, greedy) {
			t.Errorf("epoch %d: got %v, want %v", epoch, got, greedy)
		}
	}
	r.server.Assign(wire.Assignments{Version: wire.Version, Index: 9})
	if got := r.server.Report().Replicas; len(got) != 0 {
		t.Errorf("still runs %v", got)
	}
}

// A newer attempt of a running or ended request is given everything from the
// token that its head names, and goes on.
func TestNewerAttemptTakesOver(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	ids, greedy := prompt(t)
	r.server.Assign(assignment(1, modelPath))
	r.await(1, wire.PhaseReady)
	r.server.Request(request(ids, 1, 1, 1, len(greedy)))
	for attempt, given := range []int{0, 5, len(greedy)} {
		q := request(ids, 1, uint32(attempt)+2, 1, len(greedy))
		q.Outputs = [][]int32{greedy[:given]}
		r.server.Request(q)
		if got := r.finish(1, q.Attempt, greedy[:given]); !slices.Equal(got, greedy) {
			t.Errorf("attempt %d after %d tokens: got %v, want %v", q.Attempt, given, got, greedy)
		}
	}
}

// Whoever brings a request that must run alone does not wait for it: what comes
// after it is heard before it begins, and it begins all the same.
func TestAloneHoldsNobody(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	ids, greedy := prompt(t)
	r.server.Assign(assignment(1, modelPath))
	r.await(1, wire.PhaseReady)
	q := request(ids, 1, 1, 1, len(greedy))
	q.Alone = true
	r.server.Request(q)
	r.server.Request(request(ids, 2, 1, 1, 1))
	if err := r.failure(2); err.Code != wire.ErrBusy {
		t.Errorf("beside it: %v", err)
	}
	q.Attempt = 2
	r.server.Request(q)
	if got := r.finish(1, 2, nil); !slices.Equal(got, greedy) {
		t.Errorf("got %v, want %v", got, greedy)
	}
}

// What is stale, foreign or impossible is refused in words that the head acts on,
// and touches nothing else.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	ids, greedy := prompt(t)
	r.server.Assign(assignment(1, modelPath))
	r.await(1, wire.PhaseReady)
	r.server.Request(request(ids, 1, 2, 1, len(greedy)))
	if got := r.finish(1, 2, nil); !slices.Equal(got, greedy) {
		t.Fatalf("got %v, want %v", got, greedy)
	}
	foreign := request(ids, 1, 3, 1, 5)
	foreign.Owner = [32]byte{2}
	unknown := request(ids, 2, 1, 1, 5)
	unknown.Replica = "r9"
	tests := []struct {
		name string
		r    wire.Request
		want wire.ErrorCode
	}{
		{"stale attempt", request(ids, 1, 2, 1, 5), wire.ErrStale},
		{"another key", foreign, wire.ErrInvalid},
		{"stale epoch", request(ids, 2, 1, 7, 5), wire.ErrStale},
		{"unknown replica", unknown, wire.ErrStale},
		{"too long", request(make([]int32, 300), 3, 1, 1, 5), wire.ErrInvalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r.server.Request(test.r)
			if got := r.failure(test.r.ID[0]); got.Code != test.want {
				t.Errorf("got %v, want %s", got, test.want)
			}
		})
	}
}

// When an epoch ends, its requests are told so; a request of the new one runs.
func TestEpochEndLosesRequests(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	ids, greedy := prompt(t)
	r.server.Assign(assignment(1, modelPath))
	r.await(1, wire.PhaseReady)
	last := r.flood(ids)
	r.server.Assign(assignment(2, modelPath))
	if got := r.failure(last); got.Code != wire.ErrLost {
		t.Errorf("got %v, want lost", got)
	}
	r.await(2, wire.PhaseReady)
	r.server.Request(request(ids, 1, 2, 2, len(greedy)))
	if got := r.finish(1, 2, nil); !slices.Equal(got, greedy) {
		t.Errorf("got %v, want %v", got, greedy)
	}
}

// A model that can't be loaded is reported with the reason, and a later epoch may
// try again.
func TestFailedLoadIsReported(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	r.server.Assign(assignment(1, filepath.Join(t.TempDir(), "nothing-here")))
	for {
		reports := r.server.Report().Replicas
		if len(reports) == 1 && reports[0].Phase == wire.PhaseFailed {
			if reports[0].Reason == "" {
				t.Error("failed without a reason")
			}
			break
		}
		<-r.changed
	}
	r.server.Assign(assignment(2, modelPath))
	r.await(2, wire.PhaseReady)
}

// An order of a lower index is stale, but not when no other comes: then it is of heads
// that lost their disks, whose epochs count anew.
func TestHeadsThatForgotAreObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Logger: slog.New(slog.DiscardHandler)})
		epoch := func() uint64 {
			if r := s.Report().Replicas; len(r) > 0 {
				return r[0].Epoch
			}
			return 0
		}
		s.Assign(assignment(30, modelPath))
		for _, c := range []struct {
			after       time.Duration
			index, want uint64
		}{{forgotten - 1, 5, 30}, {0, 30, 30}, {forgotten - 1, 5, 30}, {1, 5, 0}, {0, 5, 5}, {0, 4, 5}} {
			<-time.After(c.after)
			s.Assign(assignment(c.index, modelPath))
			if got := epoch(); got != c.want {
				t.Errorf("%v later, index %d: epoch %d runs, want %d", c.after, c.index, got, c.want)
			}
		}
	})
}

// Draining lets what runs come to its end and takes nothing new.
func TestDrain(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	ids, greedy := prompt(t)
	r.server.Assign(assignment(1, modelPath))
	r.await(1, wire.PhaseReady)
	r.server.Request(request(ids, 1, 1, 1, len(greedy)))
	drained := make(chan error, 1)
	go func() { drained <- r.server.Drain(t.Context()) }()
	if got := r.finish(1, 1, nil); !slices.Equal(got, greedy) {
		t.Errorf("got %v, want %v", got, greedy)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	for _, c := range r.server.Credits(1) {
		if c.Choices != 0 {
			t.Errorf("credit of %d while draining", c.Choices)
		}
	}
}

// A node that is to go tells so, works on while heads leave its replicas to it, and
// is empty once they have taken the last; without a leader nobody would.
func TestEmpty(t *testing.T) {
	r := newRig(t)
	defer r.stop()
	ids, greedy := prompt(t)
	r.server.Assign(assignment(1, modelPath))
	r.await(1, wire.PhaseReady)
	empty := make(chan error, 1)
	go func() { empty <- r.server.Empty(t.Context(), true) }()
	for !r.server.Report().Leaving {
		<-r.changed
	}
	r.server.Request(request(ids, 1, 1, 1, len(greedy)))
	if got := r.finish(1, 1, nil); !slices.Equal(got, greedy) {
		t.Errorf("a request while shards are to move: %v, want %v", got, greedy)
	}
	r.server.Assign(wire.Assignments{Version: wire.Version, Index: 100})
	if err := <-empty; err != nil {
		t.Error(err)
	}
	r.server.Stay()
	if report := r.server.Report(); report.Draining || report.Leaving {
		t.Errorf("it stays: %+v", report)
	}
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Logger: slog.New(slog.DiscardHandler)})
		s.replicas["m/0"] = nil
		if err := s.Empty(t.Context(), false); !errors.Is(err, ErrNoLeader) {
			t.Errorf("without a leader: %v", err)
		}
	})
}
