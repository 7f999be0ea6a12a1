package weights

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"manta/kernels"
	"manta/runtime/weights/weightstest"
)

// withHeader puts the length before a header and n bytes behind it.
func withHeader(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

// Every field of a header is checked; the error names tensor and field.
func TestSafetensorsRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		data []byte
		is   error
		says string
	}{
		{"empty", nil, ErrCorrupt, "header length needs 8 bytes"},
		{"header length", binary.LittleEndian.AppendUint64(nil, 1<<40), ErrCorrupt, "header length 1099511627776"},
		{"header longer than file", binary.LittleEndian.AppendUint64(nil, 9), ErrCorrupt, "header length 9"},
		{"no object", withHeader(`[]`, 0), ErrCorrupt, "not a JSON object"},
		{"no end", withHeader(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}`, 4), ErrCorrupt, "does not end"},
		{"text after", withHeader(`{} {}`, 0), ErrCorrupt, "text after"},
		{"twice", withHeader(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4), ErrCorrupt, `"a" appears twice`},
		{"bad entry", withHeader(`{"a":5}`, 0), ErrCorrupt, `tensor "a"`},
		{"one offset", withHeader(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}`, 4), ErrCorrupt, "data_offsets has 1"},
		{"offsets swapped", withHeader(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}`, 4), ErrCorrupt, "data_offsets [4, 0]"},
		{"offset past the end", withHeader(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 4), ErrCorrupt, "pass the end at 4"},
		{"shape too small", withHeader(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}`, 8), ErrCorrupt, "hold 8 bytes"},
		{"shape overflows", withHeader(`{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}`, 8), ErrCorrupt, "overflows"},
		{"negative shape", withHeader(`{"a":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}`, 4), ErrCorrupt, "dimension of -1"},
		{"overlap", withHeader(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8), ErrCorrupt, `"a" and "b" overlap`},
		{"gap", withHeader(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8), ErrCorrupt, "take 4 bytes, the file has 8"},
		{"fp8", withHeader(`{"a.weight":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}`, 4), ErrUnsupported, "FP8"},
		{"gptq", withHeader(`{"a.qweight":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}`, 4), ErrUnsupported, "GPTQ"},
		{"unknown type", withHeader(`{"a":{"dtype":"X9","shape":[4],"data_offsets":[0,4]}}`, 4), ErrUnsupported, `"X9"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseSafetensors(c.data)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v saying %q", err, c.is, c.says)
			}
		})
	}
}

// Masks and position tables of older files are passed over, not refused.
func TestSafetensorsBuffers(t *testing.T) {
	s, err := parseSafetensors(withHeader(`{"attn.bias":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}`, 4+4))
	if err != nil || len(s.tensors) != 1 || !slices.Equal(s.skipped, []string{"attn.bias"}) {
		t.Errorf("got %+v, %v", s, err)
	}
}

// Any bytes are a file or an error; what is accepted lies within the bytes.
func FuzzSafetensors(f *testing.F) {
	f.Add(weightstest.Safetensors([]weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 2, 2), weightstest.Ramp("b", kernels.BF16, 0, 3)}))
	f.Add(withHeader(`{"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}`, 4))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parseSafetensors(data); err == nil {
			checkWithin(t, s.tensors, len(data))
		}
	})
}
