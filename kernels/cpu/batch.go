package cpu

import (
	"fmt"

	"manta/kernels"
)

// checkBatch wants spans in row order that cover all rows, with a block for every
// position.
func checkBatch(b *kernels.Batch) error {
	if len(b.Positions) != len(b.Tokens) {
		return fmt.Errorf("%w: %d positions for %d tokens", ErrShape, len(b.Positions), len(b.Tokens))
	}
	next := 0
	for i := range b.Spans {
		s := &b.Spans[i]
		if s.Row != next || s.Count < 1 || s.Start < 0 || s.Row+s.Count > len(b.Tokens) {
			return fmt.Errorf("%w: span %d holds rows [%d, %d), want a start at %d and an end by %d", ErrShape, i, s.Row, s.Row+s.Count, next, len(b.Tokens))
		}
		for r := range s.Count {
			if int(b.Positions[s.Row+r]) != s.Start+r {
				return fmt.Errorf("%w: span %d: row %d is position %d, want %d", ErrShape, i, s.Row+r, b.Positions[s.Row+r], s.Start+r)
			}
		}
		for g, blocks := range s.Blocks {
			if len(blocks)*kernels.BlockTokens < s.Start+s.Count {
				return fmt.Errorf("%w: span %d, group %d: %d blocks for %d positions", ErrShape, i, g, len(blocks), s.Start+s.Count)
			}
		}
		next += s.Count
	}
	if next != len(b.Tokens) {
		return fmt.Errorf("%w: spans cover %d of %d rows", ErrShape, next, len(b.Tokens))
	}
	for i, r := range b.Wanted {
		if r < 0 || int(r) >= len(b.Tokens) || i > 0 && r <= b.Wanted[i-1] {
			return fmt.Errorf("%w: wanted row %d of %d rows", ErrShape, r, len(b.Tokens))
		}
	}
	return nil
}
