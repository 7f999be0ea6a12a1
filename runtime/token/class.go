package token

import (
	"sync"
	"unicode"
	"unicode/utf8"
)

// class is the set of Unicode properties that the split patterns ask about.
type class uint8

const (
	letter   class = 1 << iota // \p{L}
	number                     // \p{N}
	space                      // \s
	newline                    // \r \n
	upper                      // \p{Lu} \p{Lt}
	lower                      // \p{Ll}
	caseless                   // \p{Lm} \p{Lo} \p{M}
	mark                       // \p{M}
)

// classTable holds the class of every code point: pages of 256, equal pages
// stored once.
type classTable struct {
	ascii [128]class
	page  [(unicode.MaxRune + 1) >> 8]uint16
	pages [][256]class
}

// classes is built once and never changes.
var classes = sync.OnceValue(buildClasses)

func buildClasses() *classTable {
	flat := make([]class, unicode.MaxRune+1)
	paint := func(table *unicode.RangeTable, c class) {
		for _, r := range table.R16 {
			for p := int(r.Lo); p <= int(r.Hi); p += int(r.Stride) {
				flat[p] |= c
			}
		}
		for _, r := range table.R32 {
			for p := int(r.Lo); p <= int(r.Hi); p += int(r.Stride) {
				flat[p] |= c
			}
		}
	}
	for _, tables := range []map[string]*unicode.RangeTable{unicode.Categories, unicode16} {
		for name, c := range map[string]class{
			"Lu": letter | upper, "Lt": letter | upper, "Ll": letter | lower,
			"Lm": letter | caseless, "Lo": letter | caseless, "M": mark | caseless, "N": number,
		} {
			if table := tables[name]; table != nil {
				paint(table, c)
			}
		}
	}
	paint(unicode.White_Space, space)
	flat['\r'] |= newline
	flat['\n'] |= newline

	t := &classTable{}
	known := map[[256]class]uint16{}
	for i := range t.page {
		page := [256]class(flat[i<<8 : i<<8+256])
		at, ok := known[page]
		if !ok {
			at = uint16(len(t.pages))
			known[page] = at
			t.pages = append(t.pages, page)
		}
		t.page[i] = at
	}
	copy(t.ascii[:], flat)
	return t
}

// of gives the class of a code point.
func (t *classTable) of(r rune) class {
	return t.pages[t.page[r>>8]][r&255]
}

// at gives the class and the byte length of the character of s at i.
func (t *classTable) at(s string, i int) (class, int) {
	if b := s[i]; b < utf8.RuneSelf {
		return t.ascii[b], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return t.of(r), n
}

// run gives the end of the characters from i on that have a class of want.
func (t *classTable) run(s string, i int, want class) int {
	for i < len(s) {
		if b := s[i]; b < utf8.RuneSelf {
			if t.ascii[b]&want == 0 {
				break
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if t.of(r)&want == 0 {
			break
		}
		i += n
	}
	return i
}

// runWithout gives the end of the characters from i on that have no class of stop.
func (t *classTable) runWithout(s string, i int, stop class) int {
	for i < len(s) {
		c, n := t.at(s, i)
		if c&stop != 0 {
			break
		}
		i += n
	}
	return i
}
