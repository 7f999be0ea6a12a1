package head

import (
	"errors"
	"testing"

	"manta/head/api"
	"manta/head/state"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// What could never run is refused when it is asked for, by the field at fault.
func TestCheckNamesTheField(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(d *state.Deployment)
		want string // the field; empty: it is accepted
	}{
		"plain":              {func(*state.Deployment) {}, ""},
		"of a CPU":           {func(d *state.Deployment) { d.Settings.DType = "int16" }, ""},
		"of a GPU":           {func(d *state.Deployment) { d.Settings.DType = "half" }, ""},
		"a misspelt type":    {func(d *state.Deployment) { d.Settings.DType = "bf16" }, "dtype"},
		"a type of keys":     {func(d *state.Deployment) { d.Settings.KVCacheDType = "fp8" }, "kv_cache_dtype"},
		"a negative length":  {func(d *state.Deployment) { d.Settings.MaxModelLen = -1 }, "max_model_len"},
		"too long":           {func(d *state.Deployment) { d.Settings.MaxModelLen = 129 }, "max_model_len"},
		"steps too small":    {func(d *state.Deployment) { d.Settings.MaxNumSeqs, d.Settings.MaxNumBatchedTokens = 8, 4 }, "max_num_batched_tokens"},
		"too much memory":    {func(d *state.Deployment) { d.Settings.GPUMemoryUtilization = 1.1 }, "gpu_memory_utilization"},
		"more ranks than it": {func(d *state.Deployment) { d.Layout.Tensor = 5 }, "tensor_parallel_size"},
		"another format":     {func(d *state.Deployment) { d.Settings.LoadFormat = "pickle" }, "load_format"},
	} {
		d := state.Deployment{
			Layout: shard.Layout{Tensor: 1, Pipeline: 1},
			Shapes: plan.Shapes{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 2, FFN: 8, Vocab: 8, Unit: 1, Context: 128},
		}
		c.set(&d)
		err := check(d)
		var refused *api.Error
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &refused) || refused.Param != c.want) {
			t.Errorf("%s: %v, want the field %q", name, err, c.want)
		}
	}
}
