package token

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// addedToken is a token that is looked for in the text itself, before it is split.
type addedToken struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"` // not inside a word
	LStrip     bool   `json:"lstrip"`      // takes the white space on its left along
	RStrip     bool   `json:"rstrip"`      // and on its right
	Normalized bool   `json:"normalized"`  // is looked for in the normalised text
	Special    bool   `json:"special"`     // is left out when decoding with skipSpecial
}

// addedTokens finds the added tokens of a text in two passes, as the reference
// does: in the raw text, then in the normalised rest.
type addedTokens struct {
	raw, normalized *matcher // normalized is nil where no token asks for it
}

// newAddedTokens enters the tokens into the vocabulary and builds the matchers.
// As in the reference the id of a token is that of its text in the model's
// vocabulary, or else the next free one, whatever the file says: files that
// were saved agree with it.
func newAddedTokens(v *vocabulary, tokens []addedToken, normalize normalizer) (*addedTokens, error) {
	a := &addedTokens{raw: newMatcher()}
	next := int32(v.own)
	for _, token := range tokens {
		if token.Content == "" {
			continue
		}
		id, ok := v.find(token.Content)
		if !ok {
			id = next
		}
		token.ID = id
		next = max(next, id+1)
		if v.has(id) && v.text(id) != token.Content {
			return nil, fmt.Errorf("%w: added token %q gets the id %d of token %q", ErrMalformed,
				clip([]byte(token.Content)), id, clip([]byte(v.text(id))))
		}
		v.markAdded(token)
		pattern, into := token.Content, a.raw
		if token.Normalized {
			if a.normalized == nil {
				a.normalized = newMatcher()
			}
			into = a.normalized
			if normalize != nil {
				var err error
				if pattern, err = normalize(pattern); err != nil {
					return nil, fmt.Errorf("added token %q: %w", clip([]byte(token.Content)), err)
				}
			}
		}
		into.add(pattern, token)
	}
	return a, nil
}

// markAdded enters an added token into the vocabulary.
func (v *vocabulary) markAdded(token addedToken) {
	for int(token.ID) >= len(v.pieces) {
		v.pieces = append(v.pieces, "")
		v.present = append(v.present, false)
		v.literal = append(v.literal, false)
		v.isAdded = append(v.isAdded, false)
		v.special = append(v.special, false)
	}
	v.other[token.Content] = token.ID
	v.isAdded[token.ID] = true
	v.special[token.ID] = v.special[token.ID] || token.Special
	if v.present[token.ID] {
		return
	}
	v.present[token.ID] = true
	v.pieces[token.ID] = token.Content
	if v.byteLevel {
		if piece, ok := appendUnmapped(nil, []byte(token.Content)); ok {
			v.pieces[token.ID] = string(piece)
		} else {
			v.literal[token.ID] = true
		}
	}
}

// matcher finds patterns in a text: leftmost first, then longest. It is a trie
// whose root is a table and whose other nodes list their children.
type matcher struct {
	root   [256]int32 // node of a first byte, 0: none
	only   int        // the first byte of all patterns; -1: they differ, or there is none
	nodes  []trieNode // nodes[0] is not used
	tokens []addedToken
}

type trieNode struct {
	child, sibling int32 // 0: none
	token          int32 // index into tokens plus one, 0: none
	label          byte
}

func newMatcher() *matcher { return &matcher{nodes: make([]trieNode, 1), only: -1} }

// add enters a pattern; of two equal ones the first stays.
func (m *matcher) add(pattern string, token addedToken) {
	if pattern == "" {
		return
	}
	at := m.root[pattern[0]]
	if at == 0 {
		at = m.newNode(pattern[0], 0)
		m.root[pattern[0]] = at
		if m.only = int(pattern[0]); at > 1 {
			m.only = -1
		}
	}
	for i := 1; i < len(pattern); i++ {
		next := m.child(at, pattern[i])
		if next == 0 {
			next = m.newNode(pattern[i], m.nodes[at].child)
			m.nodes[at].child = next
		}
		at = next
	}
	if m.nodes[at].token == 0 {
		m.tokens = append(m.tokens, token)
		m.nodes[at].token = int32(len(m.tokens))
	}
}

func (m *matcher) newNode(label byte, sibling int32) int32 {
	m.nodes = append(m.nodes, trieNode{label: label, sibling: sibling})
	return int32(len(m.nodes) - 1)
}

func (m *matcher) child(at int32, label byte) int32 {
	at = m.nodes[at].child
	for at != 0 && m.nodes[at].label != label {
		at = m.nodes[at].sibling
	}
	return at
}

// longest gives the longest pattern at the beginning of text: its token's
// index plus one and its length, or 0.
func (m *matcher) longest(text string) (token int32, length int) {
	at := m.root[text[0]]
	for i := 1; at != 0; i++ {
		if t := m.nodes[at].token; t != 0 {
			token, length = t, i
		}
		if i == len(text) {
			break
		}
		at = m.child(at, text[i])
	}
	return token, length
}

// cut calls each with the parts of a text in order: a token with its id, what
// lies between tokens with -1. It stops when each says false.
func (m *matcher) cut(text string, each func(start, end int, id int32) bool) {
	done := 0 // text before it was given to each
	for at := 0; ; {
		if at = m.candidate(text, at); at == len(text) {
			break
		}
		index, n := m.longest(text[at:])
		if index == 0 {
			at++
			continue
		}
		token := &m.tokens[index-1]
		start, end := at, at+n
		at = end
		if token.SingleWord && (endsWithWord(text[:start]) || startsWithWord(text[end:])) {
			continue
		}
		if token.LStrip {
			start = max(trimSpaceEnd(text[:start]), done)
		}
		if token.RStrip {
			end = len(text) - len(trimSpaceStart(text[end:]))
		}
		if done < start && !each(done, start, -1) {
			return
		}
		if !each(start, end, token.ID) {
			return
		}
		done = end
	}
	if done < len(text) {
		each(done, len(text), -1)
	}
}

// candidate gives the next place from at on where a pattern may begin, or the end.
func (m *matcher) candidate(text string, at int) int {
	if m.only >= 0 {
		if n := strings.IndexByte(text[at:], byte(m.only)); n >= 0 {
			return at + n
		}
		return len(text)
	}
	if len(m.tokens) == 0 {
		return len(text)
	}
	for at < len(text) && m.root[text[at]] == 0 {
		at++
	}
	return at
}

func trimSpaceEnd(text string) int {
	for len(text) > 0 {
		r, n := utf8.DecodeLastRuneInString(text)
		if !unicode.IsSpace(r) {
			break
		}
		text = text[:len(text)-n]
	}
	return len(text)
}

func trimSpaceStart(text string) string {
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if !unicode.IsSpace(r) {
			break
		}
		text = text[n:]
	}
	return text
}

func endsWithWord(text string) bool {
	r, n := utf8.DecodeLastRuneInString(text)
	return n > 0 && isWordRune(r)
}

func startsWithWord(text string) bool {
	r, n := utf8.DecodeRuneInString(text)
	return n > 0 && isWordRune(r)
}

// isWordRune is \w of Unicode Technical Standard 18, annex C.
func isWordRune(r rune) bool {
	return classes().of(r)&(letter|mark) != 0 ||
		unicode.In(r, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control)
}
