package plan

import (
	"fmt"

	"manta/kernels"
)

// largeDevice is the memory from which on vLLM takes 1,024 sequences for 256 (its
// get_batch_defaults): an H100's, say. Fewer steps for the same tokens are faster.
const largeDevice = 70 << 30

// Defaults fills what a deployment leaves open, by the kind and the memory of its
// smallest device.
func (b Budget) Defaults(kind string, memory int64) Budget {
	sequences, rows := 256, 8192
	switch {
	case kind == "cpu":
		// A chunk of 512 keeps the others' next token within half a second on two cores.
		sequences, rows = 64, 512
	case memory >= largeDevice:
		sequences = 1024
	}
	if b.MaxSequences == 0 {
		b.MaxSequences = sequences
		if b.MaxRows > 0 {
			b.MaxSequences = min(sequences, b.MaxRows)
		}
	}
	if b.MaxRows == 0 {
		b.MaxRows = max(rows, b.MaxSequences)
	}
	return b
}

// Wanted is the number of rows of a step whose logits may be wanted.
func Wanted(maxSequences int) int { return max(maxSequences, 32) }

// CheckDType refuses what is no type of activations on any device. Which of them one
// takes it says itself.
func CheckDType(name string) error {
	switch name {
	case "", "auto", "float32", "float", "bfloat16", "float16", "half", "int16", "int8":
		return nil
	}
	return fmt.Errorf("plan: dtype %q: give auto, float32, int16 or int8 on a CPU, auto, bfloat16, float16 or float32 on a GPU", name)
}

// CacheType is the type of stored keys and values for vLLM's kv_cache_dtype. auto
// takes two bytes a number; on a CPU four, where all else is exact too: float32
// weights, or dtype float32.
func (s Shapes) CacheType(kind, name, dtype string) (kernels.DType, error) {
	switch name {
	case "", "auto":
		switch {
		case kind == "cpu" && (dtype == "float32" || s.WeightType == kernels.F32):
			return kernels.F32, nil
		case kind == "cpu":
			return kernels.F16, nil
		}
		return kernels.BF16, nil
	case "float32":
		return kernels.F32, nil
	case "float16", "half":
		return kernels.F16, nil
	case "bfloat16":
		return kernels.BF16, nil
	}
	return 0, fmt.Errorf("plan: kv_cache_dtype %q: give auto, float32, float16 or bfloat16", name)
}
