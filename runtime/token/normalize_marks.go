package token

import (
	"sort"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// x/text writes U+034F into runs of more than 30 non-starters (Unicode Standard
// Annex 15, §13, Stream-Safe Text Format); the reference does not. Texts with
// so many marks in a row are normalised here, by the annex's algorithm: full
// decomposition, canonical ordering, composition.

// maxMarks is the longest run of non-starters left to x/text. A character
// decomposes to three non-starters at most.
const maxMarks = 8

func hasLongMarks(text string) bool {
	run := 0
	for i := 0; i < len(text); {
		if text[i] < utf8.RuneSelf {
			run = 0
			i++
			continue
		}
		p := norm.NFD.PropertiesString(text[i:])
		i += max(p.Size(), 1)
		// A starter may still end in a mark once it is decomposed.
		if p.CCC() == 0 && p.TrailCCC() == 0 {
			run = 0
			continue
		}
		if run++; run > maxMarks {
			return true
		}
	}
	return false
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
		p := decomposed.PropertiesString(text[i:])
		n := max(p.Size(), 1)
		full := decomposed.String(text[i : i+n]) // one character: shorter than the limit
		for _, r := range full {
			runes = append(runes, ordered{r, norm.NFD.PropertiesString(string(r)).CCC()})
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
	return r, n == len(joined)
}
