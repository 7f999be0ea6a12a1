package plan

import "testing"

// A deployment that names no counts gets those of its devices, and never more sequences
// than a step has rows.
func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		name            string
		kind            string
		memory          int64
		given           Budget
		sequences, rows int
	}{
		{"a CPU, whatever its memory", "cpu", 512 << 30, Budget{}, 64, 512},
		{"a GPU of 24 GiB", "cuda", 24 << 30, Budget{}, 256, 8192},
		{"a GPU of 80 GB", "cuda", 80e9, Budget{}, 1024, 8192},
		{"an H200", "cuda", 141 << 30, Budget{}, 1024, 8192},
		{"sequences given", "cuda", 141 << 30, Budget{MaxSequences: 16}, 16, 8192},
		{"more sequences than rows", "cuda", 141 << 30, Budget{MaxSequences: 10000}, 10000, 10000},
		{"few rows given", "cuda", 141 << 30, Budget{MaxRows: 512}, 512, 512},
	} {
		t.Run(c.name, func(t *testing.T) {
			if b := c.given.Defaults(c.kind, c.memory); b.MaxSequences != c.sequences || b.MaxRows != c.rows {
				t.Fatalf("%d sequences, %d rows; want %d, %d", b.MaxSequences, b.MaxRows, c.sequences, c.rows)
			}
		})
	}
}
