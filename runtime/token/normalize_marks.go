package token

import (
	"sort"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// x/text normalises most texts. Two kinds are left to the code here, which
// follows Unicode Standard Annex 15 step by step (full decomposition, canonical
// ordering, composition):
//
//   - long runs of non-starters. x/text writes U+034F into runs of more than 30
//     (Annex 15, §13, Stream-Safe Text Format); the reference does not.
//   - marks newer than Unicode 9.0, whose tables the reference has: it takes
//     them for starters and does not order them.

// maxMarks is the longest run of non-starters left to x/text. A character
// decomposes to three non-starters at most.
const maxMarks = 8

// newerMarks are the code points with a combining class that Unicode 9.0 lacks,
// up to 15.0; unicode16 has those of 16.0.
var newerMarks = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x07fd, Hi: 0x07fd, Stride: 1}, {Lo: 0x0898, Hi: 0x089f, Stride: 1}, {Lo: 0x08ca, Hi: 0x08d3, Stride: 1},
		{Lo: 0x09fe, Hi: 0x09fe, Stride: 1}, {Lo: 0x0c3c, Hi: 0x0c3c, Stride: 1}, {Lo: 0x0d3b, Hi: 0x0d3c, Stride: 1},
		{Lo: 0x0eba, Hi: 0x0eba, Stride: 1}, {Lo: 0x1715, Hi: 0x1715, Stride: 1}, {Lo: 0x1abf, Hi: 0x1ace, Stride: 1},
		{Lo: 0x1df6, Hi: 0x1dfa, Stride: 1}, {Lo: 0xa82c, Hi: 0xa82c, Stride: 1},
	},
	R32: []unicode.Range32{
		{Lo: 0x10d24, Hi: 0x10d27, Stride: 1}, {Lo: 0x10eab, Hi: 0x10eac, Stride: 1}, {Lo: 0x10efd, Hi: 0x10eff, Stride: 1},
		{Lo: 0x10f46, Hi: 0x10f50, Stride: 1}, {Lo: 0x10f82, Hi: 0x10f85, Stride: 1}, {Lo: 0x11070, Hi: 0x11070, Stride: 1},
		{Lo: 0x1133b, Hi: 0x1133b, Stride: 1}, {Lo: 0x1145e, Hi: 0x1145e, Stride: 1}, {Lo: 0x11839, Hi: 0x1183a, Stride: 1},
		{Lo: 0x1193d, Hi: 0x1193e, Stride: 1}, {Lo: 0x11943, Hi: 0x11943, Stride: 1}, {Lo: 0x119e0, Hi: 0x119e0, Stride: 1},
		{Lo: 0x11a34, Hi: 0x11a34, Stride: 1}, {Lo: 0x11a47, Hi: 0x11a47, Stride: 1}, {Lo: 0x11a99, Hi: 0x11a99, Stride: 1},
		{Lo: 0x11d42, Hi: 0x11d42, Stride: 1}, {Lo: 0x11d44, Hi: 0x11d45, Stride: 1}, {Lo: 0x11d97, Hi: 0x11d97, Stride: 1},
		{Lo: 0x11f41, Hi: 0x11f42, Stride: 1}, {Lo: 0x16ff0, Hi: 0x16ff1, Stride: 1}, {Lo: 0x1e08f, Hi: 0x1e08f, Stride: 1},
		{Lo: 0x1e130, Hi: 0x1e136, Stride: 1}, {Lo: 0x1e2ae, Hi: 0x1e2ae, Stride: 1}, {Lo: 0x1e2ec, Hi: 0x1e2ef, Stride: 1},
		{Lo: 0x1e4ec, Hi: 0x1e4ef, Stride: 1},
	},
}

// newerComposite is the one pair of Unicode 10.0 to 15.0 that composes.
const newerComposite = 0x11938

// leftToUs says whether a text that is not normalised is one that x/text does
// otherwise than the reference.
func leftToUs(text string) bool {
	run := 0
	for i := 0; i < len(text); {
		if text[i] < utf8.RuneSelf {
			run = 0
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		p := norm.NFD.PropertiesString(text[i:])
		i += n
		// A starter may still end in a mark once it is decomposed.
		if p.CCC() == 0 && p.TrailCCC() == 0 && r != newerComposite && r != newerComposite-8 {
			run = 0
			continue
		}
		if run++; run > maxMarks || combiningClass(r) != p.CCC() || r == newerComposite || r == newerComposite-8 {
			return true
		}
	}
	return false
}

// combiningClass is the class that the reference knows.
func combiningClass(r rune) uint8 {
	if r < 0x300 || unicode.Is(newerMarks, r) || unicode.Is(unicode16["M"], r) {
		return 0
	}
	return norm.NFD.PropertiesString(string(r)).CCC()
}

// ordered is a character with its canonical combining class.
type ordered struct {
	r     rune
	class uint8
}

func normalizeUnbounded(form norm.Form, text string) string {
	decomposed := norm.NFD
	if form == norm.NFKC || form == norm.NFKD {
		decomposed = norm.NFKD
	}
	var runes []ordered
	for i := 0; i < len(text); {
		_, n := utf8.DecodeRuneInString(text[i:])
		full := text[i : i+n]
		if r, _ := utf8.DecodeRuneInString(full); r != newerComposite {
			full = decomposed.String(full) // one character: shorter than the limit
		}
		for _, r := range full {
			runes = append(runes, ordered{r, combiningClass(r)})
		}
		i += n
	}
	for i := 0; i < len(runes); {
		if runes[i].class == 0 {
			i++
			continue
		}
		end := i
		for end < len(runes) && runes[end].class != 0 {
			end++
		}
		marks := runes[i:end]
		sort.SliceStable(marks, func(a, b int) bool { return marks[a].class < marks[b].class })
		i = end
	}
	if form == norm.NFC || form == norm.NFKC {
		runes = compose(runes)
	}
	out := make([]byte, 0, len(text))
	for _, o := range runes {
		out = utf8.AppendRune(out, o.r)
	}
	return string(out)
}

// compose joins each character with the last starter before it, where nothing
// of an equal or higher class stands between and the pair has a composite
// (Annex 15, D117).
func compose(runes []ordered) []ordered {
	starter := -1
	last := uint8(0) // class of the character before, since the starter
	kept := runes[:0]
	for _, o := range runes {
		if starter >= 0 {
			blocked := len(kept)-1 > starter && (last >= o.class || last == 0)
			if !blocked {
				if c, ok := composite(kept[starter].r, o.r); ok {
					kept[starter].r = c
					continue
				}
			}
		}
		if o.class == 0 {
			starter = len(kept)
		}
		last = o.class
		kept = append(kept, o)
	}
	return kept
}

// composite gives the primary composite of a pair.
func composite(a, b rune) (rune, bool) {
	if a < 0x80 && b < 0x80 {
		return 0, false
	}
	joined := norm.NFC.String(string(a) + string(b))
	r, n := utf8.DecodeRuneInString(joined)
	return r, n == len(joined) && r != newerComposite
}
