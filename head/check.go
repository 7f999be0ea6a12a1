package head

import (
	"fmt"
	"net/http"

	"manta/head/api"
	"manta/head/state"
	"manta/runtime/plan"
)

// check refuses a deployment that could never run, by the name of the flag.
func check(d state.Deployment) error {
	bad := func(field, format string, args ...any) error {
		return &api.Error{Status: http.StatusBadRequest, Type: "BadRequestError", Param: field, Message: fmt.Sprintf(format, args...)}
	}
	s := d.Settings
	for _, count := range []struct {
		field string
		value int
	}{{"max_model_len", s.MaxModelLen}, {"max_num_seqs", s.MaxNumSeqs}, {"max_num_batched_tokens", s.MaxNumBatchedTokens}} {
		if count.value < 0 {
			return bad(count.field, "%s must not be negative, got %d", count.field, count.value)
		}
	}
	if err := d.Layout.Check(d.Shapes.Shape()); err != nil {
		return bad("tensor_parallel_size", "%v", err)
	}
	if s.MaxModelLen > d.Shapes.Context {
		return bad("max_model_len", "max_model_len=%d is more than the model's context of %d", s.MaxModelLen, d.Shapes.Context)
	}
	if s.MaxNumBatchedTokens > 0 && s.MaxNumBatchedTokens < s.MaxNumSeqs {
		return bad("max_num_batched_tokens", "max_num_batched_tokens=%d is less than max_num_seqs=%d", s.MaxNumBatchedTokens, s.MaxNumSeqs)
	}
	if u := s.GPUMemoryUtilization; !(u >= 0 && u <= 1) { // so that NaN is refused too
		return bad("gpu_memory_utilization", "gpu_memory_utilization must be in (0, 1], got %v", s.GPUMemoryUtilization)
	}
	if err := plan.CheckDType(s.DType); err != nil {
		return bad("dtype", "%v", err)
	}
	if _, err := d.Shapes.CacheType("cpu", s.KVCacheDType, s.DType); err != nil {
		return bad("kv_cache_dtype", "%v", err)
	}
	if f := s.LoadFormat; f != "" && f != "auto" && f != "dummy" {
		return bad("load_format", "load_format must be auto or dummy, got %q", f)
	}
	return nil
}
