//go:build cuda

package cuda

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"unsafe"

	"gorgonia.org/cu"

	"manta/kernels"
)

// A seatCall is a Seat or a Feed that the next step makes good first.
type seatCall struct {
	seat           int32
	prompt, output []int32
	feed           bool
	token          int32
}

// Seat prepares a sampler seat. Like Feed it stands between steps; the slices stay
// untouched until the next step has ended.
func (o *Ops) Seat(seat int32, prompt, output []int32) {
	o.checkSeat(seat)
	o.seats = append(o.seats, seatCall{seat: seat, prompt: prompt, output: output})
}

// Feed sets the token last sampled for a seat.
func (o *Ops) Feed(seat, token int32) {
	o.checkSeat(seat)
	o.seats = append(o.seats, seatCall{seat: seat, feed: true, token: token})
}

func (o *Ops) checkSeat(seat int32) {
	if seat < 0 || int(seat) >= o.options.Seats {
		o.fail(fmt.Errorf("%w: seat %d of %d: raise Options.Seats to the number of sequences", ErrDevice, seat, o.options.Seats)) //nolint:errcheck // sticks
	}
}

// seat runs on the worker's thread. Seats that came before the vocabulary was known
// are counted again when it is; what was sampled last for them then stays.
func (o *Ops) seat(calls []seatCall, again bool) error {
	for _, c := range calls {
		a := seatArguments{last: o.last + pointer(4*c.seat), token: c.token}
		if again {
			a.last = 0
		}
		if o.counts == 0 && !c.feed {
			o.early[c.seat] = c
		}
		name, threads := "feed", 1
		if !c.feed {
			name, threads = "seat", 1024
			a.prompt, a.output = int32(len(c.prompt)), int32(len(c.output))
			if o.counts != 0 {
				a.counts, a.vocabulary = o.counts+pointer(4*int(c.seat)*o.words), int32(o.words)
			}
			tokens := append(append(make([]int32, 0, len(c.prompt)+len(c.output)), c.prompt...), c.output...)
			if len(tokens) > 0 {
				a.tokens = o.seatTokens(len(tokens))
				if err := o.sticky(); err != nil {
					return err
				}
				if err := cu.MemcpyHtoDAsync(cu.DevicePtr(a.tokens), unsafe.Pointer(&tokens[0]), int64(4*len(tokens)), o.stream); err != nil {
					return fmt.Errorf("%w: seat: %v", ErrDevice, err)
				}
			}
		}
		k := o.kernels[name]
		l := []launch{{function: k.function, x: 1, y: 1, z: 1, threads: uint32(threads)}}
		if err := launchAll(o.stream, l, bytesOf(&a), false, func(int) string { return name }); err != nil {
			return err
		}
	}
	return nil
}

// seatTokens gives room for a sequence's tokens, on the worker's thread.
func (o *Ops) seatTokens(n int) pointer {
	b := o.seatRoom
	if b.bytes < 4*n {
		size := 1 << 16
		for size < 4*n {
			size *= 2
		}
		d, err := cu.MemAlloc(int64(size))
		if err != nil {
			o.fail(fmt.Errorf("%w: %d bytes for a sequence's tokens: %v", ErrDevice, size, err)) //nolint:errcheck // sticks
			return 0
		}
		o.allocated = append(o.allocated, d)
		o.seatRoom = buffer{at: pointer(d), bytes: size}
	}
	return o.seatRoom.at
}

// Vocabulary sets the number of tokens that seats count; without it the first
// Sample does.
func (o *Ops) Vocabulary(tokens int) error {
	if o.counts != 0 && tokens == o.words {
		return nil
	}
	at, err := o.allocate(4 * o.options.Seats * tokens)
	if err != nil {
		return err
	}
	return o.do(func() error {
		o.counts, o.words = at, tokens
		early := slices.Collect(maps.Values(o.early))
		clear(o.early)
		return o.seat(early, true)
	})
}

// Sample draws a token for each row, on the device: only what was drawn comes back.
func (o *Ops) Sample(logits kernels.Tensor, rows []kernels.SampleRow) {
	s := o.step
	if len(rows) == 0 {
		return
	}
	check(!bufferOf(logits).narrow, "sample", logits)
	if o.counts == 0 || o.words != logits.Cols {
		o.fail(o.Vocabulary(logits.Cols)) //nolint:errcheck // sticks
	}
	var lists []int32
	list := make([]sampleRow, len(rows))
	adjusted, scored := false, false
	for i, r := range rows {
		if r.Target < 0 {
			o.checkSeat(max(r.Seat, 0))
		}
		d := &list[i]
		d.row, d.seat, d.target, d.temperature, d.topK, d.topP = r.Row, r.Seat, r.Target, r.Temperature, r.TopK, r.TopP
		d.presence, d.frequency, d.repetition = r.PresencePenalty, r.FrequencyPenalty, r.RepetitionPenalty
		d.uniform = uint32(kernels.Uniform(r.Seed, r.Choice, r.Position) * (1 << 24))
		d.minLog = float32(math.Inf(-1))
		if r.MinP > 0 {
			d.minLog = float32(math.Log(float64(min(r.MinP, 1))))
		}
		if r.Temperature < 1e-5 { // ref's greedyBelow
			d.flags |= 2
		}
		if r.Seat >= 0 && (r.PresencePenalty != 0 || r.FrequencyPenalty != 0 || r.RepetitionPenalty != 1) {
			d.flags |= 4
		}
		d.maskWords = -1
		if len(r.Bias) > 0 || len(r.Banned) > 0 || r.Mask != nil || d.flags&4 != 0 {
			d.flags |= 1
			adjusted = adjusted || r.Target < 0
		}
		d.biasAt, d.biases = int32(len(lists)), int32(len(r.Bias))
		for _, b := range r.Bias {
			lists = append(lists, b.Token, int32(math.Float32bits(b.Bias)))
		}
		d.bannedAt, d.banned = int32(len(lists)), int32(len(r.Banned))
		lists = append(lists, r.Banned...)
		if r.Mask != nil {
			d.maskAt, d.maskWords = int32(len(lists)), int32(2*len(r.Mask))
			for _, m := range r.Mask {
				lists = append(lists, int32(uint32(m)), int32(uint32(m>>32)))
			}
		}
		d.top = r.TopLogprobs
		if r.TopLogprobs >= 0 {
			scored = true
			d.top, d.topAt = min(r.TopLogprobs, int32(logits.Cols)), int32(s.tops)
			s.tops += int(d.top)
		}
	}
	if len(s.samples) > 0 {
		panic("cuda: a second Sample in one step")
	}
	s.samples, s.vocabulary, s.scored = rows, logits.Cols, scored
	s.lists = append(append(s.lists[:0], listBytes(list)...), listBytes(lists)...)
	if len(s.meta)+len(s.lists)+16 <= s.metaRoom { // one upload less
		s.listsAt, s.lists = s.put(s.lists), s.lists[:0]
	} else {
		s.listsAt = o.need("samples", len(s.lists)).at
	}
	s.drawn, s.top = o.need("drawn", 16*len(rows)).at, o.need("top", 8*s.tops).at
	a := sampleArguments{logits: bufferOf(logits).at, rows: s.listsAt, lists: s.listsAt + pointer(len(list))*pointer(unsafe.Sizeof(list[0])),
		counts: o.counts, last: o.last, drawn: s.drawn, top: s.top, posted: o.posted,
		vocabulary: int32(logits.Cols), stride: int32(logits.Cols), seats: int32(o.options.Seats)}
	if adjusted {
		a.adjusted = o.need("adjusted", 4*len(rows)*logits.Cols).at
		o.launch("adjust", len(rows), 1, 1, 1024, 0, bytesOf(&a))
	}
	blocks := 1 // that search a row: as many as there is room for
	for o.overlap && blocks < 8 && 2*blocks*len(rows) <= o.info.Multiprocessor {
		blocks *= 2
	}
	o.launchClusters("draw", len(rows), 1, blocks, 1024, 0, blocks, bytesOf(&a))
	if scored {
		o.launch("scoreTokens", len(rows), 1, 1, 1024, 0, bytesOf(&a))
	}
}
