package ref

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"testing"

	"manta/kernels"
)

// Block formats are GGUF's: the same bits as the gguf package's own
// dequantization of random blocks, subnormal scales among them.
func TestDequantizeAgainstGGUF(t *testing.T) {
	data, err := os.ReadFile("testdata/dequantize.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Formats []struct{ Type, Blocks, Values string }
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	types := map[string]kernels.DType{}
	for d := kernels.F32; d <= kernels.Q6_K; d++ {
		types[d.String()] = d
	}
	if len(golden.Formats) != 8 {
		t.Fatalf("%d formats in the golden file, want 8", len(golden.Formats))
	}
	for _, f := range golden.Formats {
		t.Run(f.Type, func(t *testing.T) {
			blocks, _ := hex.DecodeString(f.Blocks)
			want, _ := hex.DecodeString(f.Values)
			d := types[f.Type]
			m := kernels.Matrix{Type: d, Rows: 2, Cols: len(want) / 4, Stride: len(blocks), Data: append(make([]byte, len(blocks)), blocks...)}
			if err := CheckMatrix(m); err != nil {
				t.Fatal(err)
			}
			got := make([]float32, m.Cols)
			Dequantize(m, 1, got)
			for i, v := range got {
				if w := math.Float32frombits(binary.LittleEndian.Uint32(want[4*i:])); v != w {
					t.Fatalf("value %d is %g, want %g", i, v, w)
				}
			}
		})
	}
}

// Every 16-bit pattern survives the way to float32 and back, and a float32
// rounds to the nearer neighbour, ties to even (IEEE 754-2019, §4.3.1).
func TestNarrowFloats(t *testing.T) {
	formats := []struct {
		name   string
		widen  func(uint16) float32
		narrow func(float32) uint16
		top    uint16 // infinity
	}{
		{"binary16", Half, ToHalf, 0x7c00},
		{"bfloat16", Brain, ToBrain, 0x7f80},
	}
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			for bits := range uint16(0xffff) {
				if x := f.widen(bits); x == x && f.narrow(x) != bits {
					t.Fatalf("%#04x widens to %g and comes back as %#04x", bits, x, f.narrow(x))
				}
			}
			for bits := uint16(0); bits < f.top-1; bits++ {
				low, high := f.widen(bits), f.widen(bits+1)
				middle := float32((float64(low) + float64(high)) / 2)
				even := bits + bits&1
				if got := f.narrow(middle); got != even {
					t.Fatalf("between %#04x and the next: got %#04x, want %#04x", bits, got, even)
				}
				if got := f.narrow(-math.Nextafter32(middle, 0)); got != bits|0x8000 {
					t.Fatalf("below the middle of %#04x: got %#04x", bits, got)
				}
				if got := f.narrow(math.Nextafter32(middle, high)); got != bits+1 {
					t.Fatalf("above the middle of %#04x: got %#04x", bits, got)
				}
			}
			if nan := float32(math.NaN()); f.widen(f.narrow(nan)) == f.widen(f.narrow(nan)) {
				t.Error("not a number became one")
			}
		})
	}
}

// A matrix whose data are shorter than its shape is refused before it is read.
func TestCheckMatrix(t *testing.T) {
	for _, c := range []struct {
		name string
		m    kernels.Matrix
		ok   bool
	}{
		{"whole", kernels.Matrix{Type: kernels.Q8_0, Rows: 2, Cols: 64, Stride: 68, Data: make([]byte, 136)}, true},
		{"cut short", kernels.Matrix{Type: kernels.Q8_0, Rows: 2, Cols: 64, Stride: 68, Data: make([]byte, 135)}, false},
		{"part of a block", kernels.Matrix{Type: kernels.Q8_0, Rows: 1, Cols: 63, Stride: 68, Data: make([]byte, 136)}, false},
		{"no rows", kernels.Matrix{Type: kernels.F32, Cols: 3}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := CheckMatrix(c.m); (err == nil) != c.ok {
				t.Errorf("got %v, want ok=%v", err, c.ok)
			}
		})
	}
}
