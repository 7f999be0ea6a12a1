package serve

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"manta/node/wire"
	"manta/parallel/shard"
)

// wires joins servers as links would; a cut one loses everything.
type wires struct {
	mu      sync.Mutex // guards what follows
	servers map[string]*Server
	cut     map[string]bool
}

func (w *wires) to(node string) (*Server, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut[node] || w.servers[node] == nil {
		return nil, errors.New("no connection")
	}
	return w.servers[node], nil
}

// wiresOf are a node's own ends.
type wiresOf struct {
	*wires
	self string
}

func (w wiresOf) Send(_ context.Context, node, _ string, _ bool, kind string, parts ...[]byte) error {
	s, err := w.to(node)
	if err != nil {
		return err
	}
	var m wire.Ranks
	if err := wire.Unmarshal(slices.Concat(parts...), &m); err != nil {
		return err
	}
	s.Peer(w.self, kind, m)
	return nil
}

func (w wiresOf) Call(ctx context.Context, node, _, kind string, data []byte) ([]byte, error) {
	s, err := w.to(node)
	if err != nil || kind == wire.KindPing {
		return nil, err
	}
	var m wire.Ranks
	if err := wire.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	return nil, s.Join(ctx, m)
}

// cluster is nodes n1, n2, … that share a head.
func cluster(t *testing.T, nodes int) (*wires, []*rig) {
	t.Helper()
	w := &wires{servers: make(map[string]*Server), cut: make(map[string]bool)}
	h := &head{t: t, frames: make(chan wire.Frame, 1<<12)}
	var rigs []*rig
	for i := range nodes {
		name := fmt.Sprint("n", i+1)
		r := newNode(t, name, h, wiresOf{w, name})
		w.servers[name] = r.server
		rigs = append(rigs, r)
	}
	return w, rigs
}

// spread assigns the golden model's ranks to nodes in turn.
func spread(epoch uint64, layout shard.Layout, nodes ...string) wire.Assignments {
	a := assignment(epoch, modelPath)
	r := &a.Replicas[0]
	r.Layout, r.Shards = layout, nil
	for i := range layout.Ranks() {
		r.Shards = append(r.Shards, wire.Shard{Stage: i / layout.Tensor, Rank: i % layout.Tensor, Node: nodes[i%len(nodes)], Device: "cpu:0"})
	}
	return a
}

// A replica whose ranks live on several nodes gives the reference's tokens,
// whether its stages or its tensor ranks are apart.
func TestRanksOnSeveralNodes(t *testing.T) {
	ids, greedy := prompt(t)
	for _, layout := range []shard.Layout{{Tensor: 1, Pipeline: 2}, {Tensor: 2, Pipeline: 1}, {Tensor: 2, Pipeline: 2}, {Tensor: 1, Pipeline: 3}} {
		t.Run(fmt.Sprintf("%d x %d", layout.Tensor, layout.Pipeline), func(t *testing.T) {
			_, rigs := cluster(t, 2)
			for _, r := range rigs {
				defer r.stop()
				r.server.Assign(spread(1, layout, "n1", "n2"))
			}
			rigs[0].await(1, wire.PhaseReady)
			for id := range byte(6) {
				rigs[0].server.Request(request(ids, id+1, 1, 1, len(greedy)))
			}
			for id, got := range all(rigs[0], 6) {
				if !slices.Equal(got, greedy) {
					t.Errorf("request %d: got %v, want %v", id, got, greedy)
				}
			}
		})
	}
}

// all collects the tokens of requests 1 to n.
func all(r *rig, n int) map[byte][]int32 {
	tokens := make(map[byte][]int32)
	for open := n; open > 0; {
		f := <-r.frames
		id := f.Request[0]
		if f.Err != nil || f.Offset != len(tokens[id]) {
			r.t.Fatalf("request %d: offset %d after %d tokens, error %v", id, f.Offset, len(tokens[id]), f.Err)
		}
		if tokens[id] = append(tokens[id], f.Tokens...); f.Finish != wire.Unfinished {
			open--
		}
	}
	return tokens
}

// When a node of a group is lost the epoch ends, its requests are told so, and in
// the next epoch, with the lost rank elsewhere, the survivors go on with the
// weights that they have.
func TestLostNodeEndsTheEpoch(t *testing.T) {
	ids, greedy := prompt(t)
	w, rigs := cluster(t, 3)
	for _, r := range rigs {
		defer r.stop()
	}
	stages := shard.Layout{Tensor: 1, Pipeline: 2}
	for _, r := range rigs[:2] {
		r.server.Assign(spread(1, stages, "n1", "n2"))
	}
	rigs[0].await(1, wire.PhaseReady)
	last := rigs[0].flood(ids)
	w.mu.Lock()
	w.cut["n2"] = true
	w.mu.Unlock()
	if got := rigs[0].failure(last); got.Code != wire.ErrLost {
		t.Fatalf("got %v, want lost", got)
	}
	if report := rigs[0].broken(1); !slices.Equal(report.Lost, []string{"n2"}) {
		t.Errorf("reported %+v, want n2 lost", report)
	}
	for _, r := range []*rig{rigs[0], rigs[2]} {
		r.server.Assign(spread(2, stages, "n1", "n3"))
	}
	rigs[0].await(2, wire.PhaseReady)
	rigs[0].server.Request(request(ids, 1, 2, 2, len(greedy)))
	if got := rigs[0].finish(1, 2, nil); !slices.Equal(got, greedy) {
		t.Errorf("got %v, want %v", got, greedy)
	}
}

// broken waits until the replica's epoch has failed.
func (r *rig) broken(epoch uint64) wire.ReplicaReport {
	for {
		for _, report := range r.server.Report().Replicas {
			if report.Epoch == epoch && report.Phase == wire.PhaseFailed {
				return report
			}
		}
		<-r.changed
	}
}

// A node to which a message was lost, but that says it lives, is not reported as
// lost: the same ranks may start again where they are.
func TestLostMessageIsNoLostNode(t *testing.T) {
	_, rigs := cluster(t, 2)
	for _, r := range rigs {
		defer r.stop()
		r.server.Assign(spread(1, shard.Layout{Tensor: 1, Pipeline: 2}, "n1", "n2"))
	}
	rigs[0].await(1, wire.PhaseReady)
	rigs[0].server.Lost("n3", errors.New("not one of the group"))
	rigs[0].server.Lost("n2", errors.New("the connection broke"))
	if report := rigs[0].broken(1); len(report.Lost) > 0 {
		t.Errorf("reported %+v, want nobody lost", report)
	}
}

// Messages of another epoch, of nothing that runs here, or of a node that has no
// rank in the group are dropped; nonsense ends the epoch that it names and nothing
// else.
func TestPeerMessagesAreChecked(t *testing.T) {
	ids, greedy := prompt(t)
	_, rigs := cluster(t, 2)
	r := rigs[0]
	for _, r := range rigs {
		defer r.stop()
		r.server.Assign(spread(1, shard.Layout{Tensor: 1, Pipeline: 2}, "n1", "n2"))
	}
	r.await(1, wire.PhaseReady)
	for _, kind := range []string{wire.KindStep, wire.KindAnswer, wire.KindMesh} {
		r.server.Peer("n3", kind, wire.Ranks{Version: wire.Version, Replica: "r1", Epoch: 1, Payload: []byte("x")})
	}
	for _, m := range []wire.Ranks{
		{Version: wire.Version, Replica: "r1", Epoch: 7, Payload: []byte("x")},
		{Version: wire.Version, Replica: "r9", Epoch: 1, Payload: []byte("x")},
		{Version: wire.Version + 1, Replica: "r1", Epoch: 1, Payload: []byte("x")},
	} {
		for _, kind := range []string{wire.KindStep, wire.KindAnswer, wire.KindMesh} {
			r.server.Peer("n2", kind, m)
		}
	}
	r.server.Request(request(ids, 1, 1, 1, len(greedy)))
	if got := r.finish(1, 1, nil); !slices.Equal(got, greedy) {
		t.Errorf("got %v, want %v", got, greedy)
	}
	if err := r.server.Join(t.Context(), wire.Ranks{Version: wire.Version, Replica: "r9", Epoch: 1}); err == nil {
		t.Error("joined a replica that is not here")
	}
	r.server.Peer("n2", wire.KindMesh, wire.Ranks{Version: wire.Version, Replica: "r1", Epoch: 1, Payload: []byte("x")})
	r.broken(1)
}
