package token

import (
	"fmt"
	"hash/maphash"
	"strings"
	"unicode/utf8"
)

// spaceMark is U+2581, which SentencePiece writes for a space.
const spaceMark = "▁"

// vocabulary holds what every id stands for and finds ids by it.
//
// In a byte-level vocabulary a piece is kept as the bytes it stands for
// ("Ġthe" as " the"), else as the vocabulary's text ("▁the", "<0x0A>").
type vocabulary struct {
	byteLevel bool
	own       int      // number of the model's own tokens
	pieces    []string // by id; "" for an id that is not there
	present   []bool
	literal   []bool // byteLevel only: the piece is no byte-level text and kept as it is
	isAdded   []bool
	special   []bool

	lexicon lexicon          // the model's own pieces, without literal ones
	other   map[string]int32 // added and literal tokens by their text
}

func (v *vocabulary) has(id int32) bool {
	return id >= 0 && int(id) < len(v.present) && v.present[id]
}

// find gives the id of a token by the vocabulary's text.
func (v *vocabulary) find(text string) (int32, bool) {
	if id, ok := v.other[text]; ok {
		return id, true
	}
	if !v.byteLevel {
		return v.lexicon.find(v.pieces, text)
	}
	piece, ok := appendUnmapped(nil, []byte(text))
	if !ok {
		return 0, false
	}
	return v.lexicon.find(v.pieces, string(piece))
}

// text gives the vocabulary's text of an id, which decoders work on.
func (v *vocabulary) text(id int32) string {
	piece := v.pieces[id]
	if !v.byteLevel || v.literal[id] {
		return piece
	}
	return string(appendMapped(nil, piece))
}

// vocabularyBuilder collects pieces in one allocation. A piece set twice keeps
// the last text, an id set twice too.
type vocabularyBuilder struct {
	byteLevel bool
	arena     []byte
	entries   []builderEntry
}

type builderEntry struct {
	id         int32
	start, end uint32
	literal    bool
}

// add records the text of an id.
func (b *vocabularyBuilder) add(id int64, text []byte) error {
	if id < 0 || id > 1<<30 {
		return fmt.Errorf("%w: token %q has id %d", ErrMalformed, clip(text), id)
	}
	if int64(len(b.arena))+int64(len(text)) > 1<<31 {
		return fmt.Errorf("%w: the vocabulary's texts are longer than 2 GiB", ErrMalformed)
	}
	e := builderEntry{id: int32(id), start: uint32(len(b.arena))}
	if b.byteLevel {
		arena, ok := appendUnmapped(b.arena, text)
		if ok {
			b.arena = arena
		} else {
			b.arena, e.literal = append(b.arena, text...), true
		}
	} else {
		b.arena = append(b.arena, text...)
	}
	e.end = uint32(len(b.arena))
	b.entries = append(b.entries, e)
	return nil
}

// build makes the vocabulary.
func (b *vocabularyBuilder) build() (*vocabulary, error) {
	largest := int64(-1)
	for _, e := range b.entries {
		largest = max(largest, int64(e.id))
	}
	if largest >= 16*int64(len(b.entries))+1<<16 { // a small file makes no large table
		return nil, fmt.Errorf("%w: id %d in a vocabulary of %d tokens", ErrMalformed, largest, len(b.entries))
	}
	n := int(largest) + 1
	v := &vocabulary{
		byteLevel: b.byteLevel,
		own:       len(b.entries),
		pieces:    make([]string, n),
		present:   make([]bool, n),
		literal:   make([]bool, n),
		isAdded:   make([]bool, n),
		special:   make([]bool, n),
		other:     map[string]int32{},
	}
	arena := string(b.arena)
	v.lexicon.grow(len(b.entries))
	for _, e := range b.entries {
		if v.present[e.id] {
			return nil, fmt.Errorf("%w: tokens %q and %q have the same id %d", ErrMalformed,
				clip([]byte(v.pieces[e.id])), clip([]byte(arena[e.start:e.end])), e.id)
		}
		v.pieces[e.id], v.present[e.id], v.literal[e.id] = arena[e.start:e.end], true, e.literal
		if e.literal {
			v.other[v.pieces[e.id]] = e.id
		} else {
			v.lexicon.set(v.pieces, e.id)
		}
	}
	return v, nil
}

// lexicon is a hash table from piece to id, with open addressing. A slot holds
// 32 bits of the piece's hash and the id plus one; 0 is an empty slot.
type lexicon struct {
	seed  maphash.Seed
	slots []uint64
	mask  uint64
}

func (x *lexicon) grow(n int) {
	size := 16
	for size*2 < n*3 {
		size *= 2
	}
	x.seed, x.slots, x.mask = maphash.MakeSeed(), make([]uint64, size), uint64(size-1)
}

func (x *lexicon) set(pieces []string, id int32) {
	h := maphash.String(x.seed, pieces[id])
	for at := h & x.mask; ; at = (at + 1) & x.mask {
		slot := x.slots[at]
		if slot == 0 || slot>>32 == h>>32 && pieces[uint32(slot)-1] == pieces[id] {
			x.slots[at] = h>>32<<32 | uint64(uint32(id)+1)
			return
		}
	}
}

func (x *lexicon) find(pieces []string, piece string) (int32, bool) {
	return x.findHash(pieces, piece, maphash.String(x.seed, piece))
}

func (x *lexicon) findHash(pieces []string, piece string, h uint64) (int32, bool) {
	for at := h & x.mask; ; at = (at + 1) & x.mask {
		slot := x.slots[at]
		if slot == 0 {
			return 0, false
		}
		if id := uint32(slot) - 1; slot>>32 == h>>32 && pieces[id] == piece {
			return int32(id), true
		}
	}
}

// byteRune gives the character that stands for a byte in a byte-level
// vocabulary: itself where it prints, else one from U+0100 on
// (bytes_to_unicode in GPT-2's encoder.py).
func byteRune(b byte) rune {
	switch {
	case b <= ' ':
		return 0x100 + rune(b)
	case b < 0x7f:
		return rune(b)
	case b <= 0xa0:
		return 0x100 + 33 + rune(b-0x7f)
	case b == 0xad:
		return 0x143
	}
	return rune(b)
}

// runeByte is the inverse of byteRune.
func runeByte(r rune) (byte, bool) {
	switch {
	case r > ' ' && r < 0x7f, r > 0xa0 && r <= 0xff && r != 0xad:
		return byte(r), true
	case r >= 0x100 && r <= 0x120:
		return byte(r - 0x100), true
	case r >= 0x121 && r <= 0x142:
		return byte(r - 0x121 + 0x7f), true
	case r == 0x143:
		return 0xad, true
	}
	return 0, false
}

// appendUnmapped turns byte-level text into its bytes; false where a character
// stands for no byte.
func appendUnmapped(dst, text []byte) ([]byte, bool) {
	for i := 0; i < len(text); {
		if c := text[i]; c < utf8.RuneSelf {
			if c <= ' ' || c == 0x7f {
				return dst, false
			}
			dst = append(dst, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		b, ok := runeByte(r)
		if !ok {
			return dst, false
		}
		dst = append(dst, b)
		i += n
	}
	return dst, true
}

// appendMapped turns bytes into byte-level text.
func appendMapped(dst []byte, piece string) []byte {
	for i := 0; i < len(piece); i++ {
		dst = utf8.AppendRune(dst, byteRune(piece[i]))
	}
	return dst
}

// byteToken reads the byte of a fallback token, "<0x0A>".
func byteToken(text string) (byte, bool) {
	if len(text) != 6 || !strings.HasPrefix(text, "<0x") || text[5] != '>' {
		return 0, false
	}
	high, low := hexDigit(text[3]), hexDigit(text[4])
	if high < 0 || low < 0 {
		return 0, false
	}
	return byte(high<<4 | low), true
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// clip shortens a text for an error message.
func clip(text []byte) string {
	if len(text) > 40 {
		text = text[:40]
	}
	return strings.ToValidUTF8(string(text), "\ufffd")
}
