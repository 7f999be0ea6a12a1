package wire

import (
	"bytes"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// drawFrames gives frames of every form that drivers send.
func drawFrames(draw *rand.Rand) Frames {
	all := Frames{Version: Version, Frames: make([]Frame, draw.IntN(5))}
	for i := range all.Frames {
		f := &all.Frames[i]
		*f = Frame{Version: Version, Attempt: draw.Uint32() >> draw.IntN(33), Epoch: draw.Uint64() >> draw.IntN(65), Choice: draw.IntN(3), Offset: draw.IntN(1 << draw.IntN(20))}
		for j := range f.Request {
			f.Request[j] = byte(draw.Uint32())
		}
		for range draw.IntN(4) {
			f.Tokens = append(f.Tokens, int32(draw.Uint32())>>draw.IntN(32))
		}
		switch draw.IntN(8) {
		case 0:
			f.Finish = []FinishReason{FinishStop, FinishLength, FinishAbort, "other"}[draw.IntN(4)]
		case 1:
			f.Cached = draw.IntN(1000)
		case 2:
			f.Logprobs = []Logprob{{Token: 1, Logprob: -1, Rank: 2}}
		case 3:
			f.Err = &Error{Code: ErrLost, Message: "gone"}
		}
	}
	return all
}

// What is read without reflection is what is read with it.
func TestUnmarshalFramesAgrees(t *testing.T) {
	for seed := range uint64(2000) {
		want := drawFrames(rand.New(rand.NewPCG(seed, 1)))
		data, err := Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got, generic Frames
		if err := UnmarshalFrames(data, &got); err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(data, &generic); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, generic) {
			t.Fatalf("seed %d: %+v, want %+v", seed, got, generic)
		}
	}
}

// The usual message is read without reflection: one piece of memory for the frames,
// few for all their tokens.
func TestUnmarshalFramesAllocates(t *testing.T) {
	frames := Frames{Version: Version, Frames: make([]Frame, 32)}
	for i := range frames.Frames {
		frames.Frames[i] = Frame{Version: Version, Attempt: 1, Epoch: math.MaxUint32, Offset: 1000, Tokens: []int32{128_000}}
	}
	data, err := Marshal(frames)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		var got Frames
		if err := UnmarshalFrames(data, &got); err != nil {
			t.Fatal(err)
		}
	}); n > 8 {
		t.Errorf("%v allocations", n)
	}
}

// A later version may add a field, and lengths may lie. What was read is compared as
// it is written again: a logprob that is not a number is not equal to itself.
func FuzzUnmarshalFrames(f *testing.F) {
	for seed := range uint64(20) {
		data, err := Marshal(drawFrames(rand.New(rand.NewPCG(seed, 2))))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	later, err := cbor.Marshal(map[int]any{1: 9, 2: []any{map[int]any{1: 9, 99: "new"}}, 3: 4})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(later)
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, generic Frames
		fast, slow := UnmarshalFrames(data, &got), Unmarshal(data, &generic)
		if slow != nil {
			return
		}
		if fast != nil {
			t.Fatalf("%v, want %+v", fast, generic)
		}
		a, err := Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Marshal(generic)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%+v, want %+v", got, generic)
		}
	})
}
