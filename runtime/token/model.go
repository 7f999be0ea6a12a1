package token

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// model is byte-pair encoding over a vocabulary: words in, ids out.
type model struct {
	vocabulary *vocabulary
	merges     mergeTable

	// byteID is the symbol of each byte, -1: none. In a byte-level vocabulary
	// words start from it, else characters that the vocabulary lacks do.
	byteID       [256]int32
	byteFallback bool
	ignoreMerges bool  // a word that is a token is that token, whatever the merges give
	unknown      int32 // -1: characters without a symbol vanish
	fuseUnknown  bool  // a run of unknown characters is one token

	runeID [128]int32   // not byte-level: the symbol of each ASCII character, -1: none
	joined *joinedRunes // where a SentencePiece text can be cut; nil: nowhere
	cache  wordCache
}

// finish sets what follows from vocabulary and merges.
func (m *model) finish() error {
	v := m.vocabulary
	missing := 0
	for b := range m.byteID {
		text := fmt.Sprintf("<0x%02X>", b)
		if v.byteLevel {
			text = string([]byte{byte(b)})
		}
		id, ok := v.lexicon.find(v.pieces, text)
		if !ok {
			id = -1
			missing++
		}
		m.byteID[b] = id
	}
	if v.byteLevel {
		if m.byteFallback && missing > 0 {
			return fmt.Errorf("%w: byte_fallback in a byte-level vocabulary that lacks bytes", ErrUnsupported)
		}
		return nil
	}
	for c := range m.runeID {
		m.runeID[c] = -1
		if id, ok := v.lexicon.find(v.pieces, string(rune(c))); ok {
			m.runeID[c] = id
		}
	}
	m.joined = newJoinedRunes(v, &m.merges, m.unknown)
	return nil
}

// piece appends the ids of one piece of a split text.
func (m *model) piece(s *scratch, out []int32, text string) []int32 {
	if text == "" {
		return out
	}
	if m.vocabulary.byteLevel || m.joined == nil {
		return m.word(s, out, text)
	}
	if m.ignoreMerges {
		if id, ok := m.vocabulary.lexicon.find(m.vocabulary.pieces, text); ok {
			return append(out, id)
		}
	}
	for text != "" {
		n := m.joined.next(text)
		out = m.word(s, out, text[:n])
		text = text[n:]
	}
	return out
}

// word appends the ids of a word, out of the cache where it is there.
func (m *model) word(s *scratch, out []int32, word string) []int32 {
	if len(word) > maxCachedWord {
		return append(out, m.ids(s, word)...)
	}
	key := newWordKey(word)
	slot := m.cache.slot(key)
	if c := slot.Load(); c != nil && c.wordKey == key {
		if c.many == nil {
			return append(out, c.few[:c.count]...)
		}
		return append(out, c.many...)
	}
	ids := m.ids(s, word)
	slot.Store(newCachedWord(key, ids))
	return append(out, ids...)
}

// ids gives the ids of a word; they are valid until the scratch is used again.
func (m *model) ids(s *scratch, word string) []int32 {
	if m.ignoreMerges {
		if id, ok := m.vocabulary.lexicon.find(m.vocabulary.pieces, word); ok {
			return append(s.one[:0], id)
		}
	}
	return m.merge(s, word)
}

// merge gives the ids of a word; they are valid until the scratch is used again.
func (m *model) merge(s *scratch, word string) []int32 {
	if m.vocabulary.byteLevel {
		s.ids = m.byteSymbols(s.ids[:0], word)
	} else {
		s.ids = m.runeSymbols(s.ids[:0], word)
	}
	return m.merges.merge(s, s.ids)
}

// byteSymbols appends the symbol of each byte.
func (m *model) byteSymbols(ids []int32, word string) []int32 {
	unknown := 0
	for i := 0; i < len(word); i++ {
		id := m.byteID[word[i]]
		if id < 0 {
			if unknown == 0 || !m.fuseUnknown {
				ids = m.appendUnknown(ids)
			}
			unknown++
			continue
		}
		unknown = 0
		ids = append(ids, id)
	}
	return ids
}

// runeSymbols appends the symbol of each character, or of its bytes where the
// vocabulary lacks it. A run of unknown characters is written when a known one
// follows it, as the reference does.
func (m *model) runeSymbols(ids []int32, word string) []int32 {
	pending := false
	for i := 0; i < len(word); {
		_, n := utf8.DecodeRuneInString(word[i:])
		char := word[i : i+n]
		i += n
		if id, ok := m.runeSymbol(char); ok {
			if pending {
				ids, pending = m.appendUnknown(ids), false
			}
			ids = append(ids, id)
			continue
		}
		if m.byteFallback && m.hasBytes(char) {
			for k := 0; k < n; k++ {
				ids = append(ids, m.byteID[char[k]])
			}
			continue
		}
		if pending && !m.fuseUnknown {
			ids = m.appendUnknown(ids)
		}
		pending = true
	}
	if pending {
		ids = m.appendUnknown(ids)
	}
	return ids
}

func (m *model) runeSymbol(char string) (int32, bool) {
	if len(char) == 1 {
		id := m.runeID[char[0]]
		return id, id >= 0
	}
	return m.vocabulary.lexicon.find(m.vocabulary.pieces, char)
}

func (m *model) hasBytes(char string) bool {
	for i := 0; i < len(char); i++ {
		if m.byteID[char[i]] < 0 {
			return false
		}
	}
	return true
}

func (m *model) appendUnknown(ids []int32) []int32 {
	if m.unknown < 0 {
		return ids
	}
	return append(ids, m.unknown)
}

// joinedRunes says where a SentencePiece text can be cut into words: before a ▁
// that follows a character which no piece of the vocabulary has before a ▁. No
// merge reaches over such a place, so the ids are the same; the words are short
// and repeat, so that merging them costs less and the cache works.
type joinedRunes struct {
	ascii [128]bool // the characters that a piece has before a ▁
	other map[rune]bool
}

func (j *joinedRunes) add(r rune) {
	if r < utf8.RuneSelf {
		j.ascii[r] = true
	} else {
		j.other[r] = true
	}
}

func (j *joinedRunes) has(r rune) bool {
	if r < utf8.RuneSelf {
		return j.ascii[r]
	}
	return j.other[r]
}

// newJoinedRunes gives nil for a vocabulary where cutting could change ids:
// one without ▁, or with merges of byte tokens or of the unknown token, whose
// text is not the text they stand for.
func newJoinedRunes(v *vocabulary, merges *mergeTable, unknown int32) *joinedRunes {
	if _, ok := v.lexicon.find(v.pieces, spaceMark); !ok {
		return nil
	}
	for _, slot := range merges.slots {
		if slot.rank == 0 {
			continue
		}
		for _, id := range [2]int32{slot.left, slot.right} {
			if _, isByte := byteToken(v.pieces[id]); isByte || id == unknown {
				return nil
			}
		}
	}
	j := &joinedRunes{other: map[rune]bool{}}
	for _, piece := range v.pieces {
		for from := 0; ; {
			at := strings.Index(piece[from:], spaceMark)
			if at < 0 {
				break
			}
			if at += from; at > 0 {
				r, _ := utf8.DecodeLastRuneInString(piece[:at])
				j.add(r)
			}
			from = at + len(spaceMark)
		}
	}
	return j
}

// next gives the length of the first word of text, which is not empty.
func (j *joinedRunes) next(text string) int {
	_, from := utf8.DecodeRuneInString(text)
	for {
		at := strings.Index(text[from:], spaceMark)
		if at < 0 {
			return len(text)
		}
		at += from
		if r, _ := utf8.DecodeLastRuneInString(text[:at]); !j.has(r) {
			return at
		}
		from = at + len(spaceMark)
	}
}

// scratch is the memory of one Encode call, used again by later ones.
type scratch struct {
	ids   []int32
	links []link
	queue rankQueue
	one   [1]int32
	words [2][]string
	runes []rune

	deadline time.Time // of the split patterns
}

// maxScratch bounds the symbols that a scratch keeps room for between calls.
const maxScratch = 1 << 16

func (t *Tokenizer) takeScratch() *scratch {
	if s, ok := t.scratch.Get().(*scratch); ok {
		return s
	}
	return &scratch{}
}

func (t *Tokenizer) giveScratch(s *scratch) {
	if cap(s.ids) > maxScratch || cap(s.links) > maxScratch || cap(s.queue) > maxScratch ||
		cap(s.words[0]) > maxScratch || cap(s.words[1]) > maxScratch || cap(s.runes) > maxScratch {
		return
	}
	clear(s.words[0][:cap(s.words[0])]) // do not keep texts alive
	clear(s.words[1][:cap(s.words[1])])
	t.scratch.Put(s)
}
