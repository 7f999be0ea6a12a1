package engine_test

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"manta/internal/processtest"
	"manta/kernels"
	"manta/kernels/cpu"
	"manta/parallel/shard"
	"manta/runtime/engine"
	"manta/runtime/sched"
)

// counting is a device that counts the bytes of the weights that it is given. The
// first comes to it once all ranks have their first.
type counting struct {
	kernels.Ops
	bytes int64
	begun bool
	meet  func() error
}

func (c *counting) Weight(parts ...kernels.Matrix) (kernels.Weight, error) {
	if err := c.count(parts...); err != nil {
		return nil, err
	}
	return c.Ops.Weight(parts...)
}

func (c *counting) Pair(gate, up kernels.Matrix) (kernels.Weight, error) {
	if err := c.count(gate, up); err != nil {
		return nil, err
	}
	return c.Ops.Pair(gate, up)
}

func (c *counting) count(parts ...kernels.Matrix) error {
	if !c.begun {
		c.begun = true
		if err := c.meet(); err != nil {
			return err
		}
	}
	for _, m := range parts {
		c.bytes += int64(m.Rows) * int64(m.Type.Bytes(m.Cols))
	}
	return nil
}

// loadedBytes loads a model on ranks and gives what each was given to read, and the
// model's embedding.
func loadedBytes(t *testing.T, path string, layout shard.Layout) (each []int64, embedding int64) {
	t.Helper()
	w, spec := opened(t, path)
	var all sync.WaitGroup
	all.Add(layout.Ranks())
	met := make(chan struct{})
	go func() { all.Wait(); close(met) }()
	meet := func() error {
		all.Done()
		select {
		case <-met:
			return nil
		case <-time.After(processtest.Patience):
			return errors.New("the other ranks do not load beside this one")
		}
	}
	devices := make([]*counting, layout.Ranks())
	local, err := engine.LoadLocal(engine.LocalConfig{
		Weights: w, Spec: spec, Layout: layout, CacheType: kernels.F32,
		Limits: sched.Limits{Blocks: []int{8}, MaxSequences: 1, MaxRows: 4, MaxWanted: 1, MaxLen: 64},
		Open: func(stage, rank int) (kernels.Ops, error) {
			ops, err := cpu.New(cpu.Options{Threads: 1})
			device := &counting{Ops: ops, meet: meet}
			devices[stage*layout.Tensor+rank] = device
			return device, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := local.Close(); err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		each = append(each, d.bytes)
	}
	return each, spec.Shapes().EmbeddingBytes
}

// Each rank is given its slices alone, and all load at once: together the ranks read
// the model once, and each of the first stage the embedding, which it has whole.
func TestRanksLoadTheirSlicesAtOnce(t *testing.T) {
	path := filepath.Join("..", "model", "testdata", "models", "llama-kv4")
	alone, embedding := loadedBytes(t, path, shard.Layout{Tensor: 1, Pipeline: 1})
	for _, layout := range []shard.Layout{{Tensor: 2, Pipeline: 1}, {Tensor: 4, Pipeline: 1}, {Tensor: 1, Pipeline: 2}, {Tensor: 2, Pipeline: 2}} {
		each, _ := loadedBytes(t, path, layout)
		sum, most := int64(0), int64(0)
		for _, n := range each {
			sum, most = sum+n, max(most, n)
		}
		if want := alone[0] + int64(layout.Tensor-1)*embedding; sum != want {
			t.Errorf("%+v: the ranks read %d bytes together, want %d", layout, sum, want)
		}
		t.Logf("%d × %d: the model's %d bytes, of them at most %d a rank", layout.Tensor, layout.Pipeline, alone[0], most)
	}
}
