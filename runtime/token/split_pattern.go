package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2/v2"
)

// A text made to backtrack cannot hold a processor: patternTime bounds the
// search for one match, and with patternTimePerByte all searches of a text; so
// much is enough for a slow pattern on a slow machine. patternStack bounds what
// one match remembers to go back to.
const (
	patternTime        = 2 * time.Second
	patternTimePerByte = 4 * time.Microsecond
	patternStack       = 1 << 22 // integers
)

// patternDeadline is when the searches of a text give up.
func patternDeadline(text string) time.Time {
	return time.Now().Add(patternTime + time.Duration(len(text))*patternTimePerByte)
}

var errDeadline = errors.New("the text takes too long to split")

// pattern is what a Split or Replace looks for: a literal, a regular
// expression, or characters of a kind.
type pattern struct {
	literal    string
	expression *regexp2.Regexp
	is         func(rune) bool
}

// span is a match, in bytes.
type span struct{ start, end int }

func newPattern(raw json.RawMessage) (*pattern, error) {
	var spec struct{ String, Regex *string }
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("%w: pattern: %w", ErrMalformed, err)
	}
	switch {
	case spec.String != nil && *spec.String != "":
		return &pattern{literal: *spec.String}, nil
	case spec.Regex != nil && *spec.Regex != "":
		expression, err := translatePattern(*spec.Regex)
		if err != nil {
			return nil, err
		}
		e, err := regexp2.Compile(expression, regexp2.Multiline, regexp2.OptionMaxBacktrackingStackSize(patternStack))
		if err != nil {
			return nil, fmt.Errorf("%w: pattern %q: %w", ErrUnsupported, *spec.Regex, err)
		}
		e.MatchTimeout = patternTime
		return &pattern{expression: e}, nil
	}
	return nil, fmt.Errorf("%w: an empty pattern", ErrMalformed)
}

// find gives the matches in text; an empty one is a place to cut.
func (p *pattern) find(s *scratch, text string) ([]span, error) {
	var matches []span
	switch {
	case p.expression != nil:
		return p.findExpression(s, text)
	case p.is != nil:
		for i, r := range text {
			if p.is(r) {
				matches = append(matches, span{i, i + utf8.RuneLen(r)})
			}
		}
	default:
		for from := 0; ; {
			at := strings.Index(text[from:], p.literal)
			if at < 0 {
				break
			}
			matches = append(matches, span{from + at, from + at + len(p.literal)})
			from += at + len(p.literal)
		}
	}
	return matches, nil
}

func (p *pattern) findExpression(s *scratch, text string) ([]span, error) {
	runes := s.runes[:0]
	for _, r := range text {
		runes = append(runes, r)
	}
	s.runes = runes
	var matches []span
	late := false
	atRune, atByte := 0, 0
	advance := func(to int) int { // bytes before rune number to; only forward
		for ; atRune < to; atRune++ {
			atByte += utf8.RuneLen(runes[atRune])
		}
		return atByte
	}
	err := p.expression.FindRunesMatches(runes, 0, func(m regexp2.MatchView) bool {
		if index, length, ok := m.GroupRange(0); ok {
			start := advance(index)
			matches = append(matches, span{start, advance(index + length)})
		}
		late = time.Now().After(s.deadline)
		return !late
	})
	if err == nil && late {
		err = errDeadline
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPattern, p.expression.String(), err)
	}
	return matches, nil
}

// behavior is what becomes of a match (SplitDelimiterBehavior).
type behavior int

const (
	isolated behavior = iota // a piece of its own
	removed                  // gone
	withPrevious
	withNext
	contiguous // one piece with matches that touch it
)

func newBehavior(name string) (behavior, error) {
	switch name {
	case "Isolated", "":
		return isolated, nil
	case "Removed":
		return removed, nil
	case "MergedWithPrevious":
		return withPrevious, nil
	case "MergedWithNext":
		return withNext, nil
	case "Contiguous":
		return contiguous, nil
	}
	return 0, fmt.Errorf("%w: split behavior %q", ErrUnsupported, clip([]byte(name)))
}

// newSplit gives the scanner of a known pattern, else a search for it.
func newSplit(spec splitSpec) (splitter, error) {
	behavior, err := newBehavior(spec.Behavior)
	if err != nil {
		return nil, err
	}
	var known struct{ Regex string }
	if json.Unmarshal(spec.Pattern, &known) == nil && scans(behavior, spec.Invert) {
		if scan := knownPattern(known.Regex); scan != nil {
			return scan, nil
		}
	}
	p, err := newPattern(spec.Pattern)
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer Split: %w", err)
	}
	return &patternSplit{pattern: p, behavior: behavior, invert: spec.Invert}, nil
}

// scans says whether a pattern that matches all of a text, piece by piece,
// gives its matches as the pieces.
func scans(b behavior, invert bool) bool {
	return !invert && b == isolated || invert && b == removed
}

func knownPattern(expression string) splitter {
	switch expression {
	case gpt2Pattern:
		return gpt2Scanner{classes()}
	case llama3Pattern:
		return llama3Scanner{classes(), 3, letter}
	case qwen2Pattern:
		return llama3Scanner{classes(), 1, letter}
	case qwen35Pattern:
		return llama3Scanner{classes(), 1, letter | mark}
	case o200kPattern:
		return o200kScanner{classes(), 3, true}
	case tekkenPattern:
		return o200kScanner{classes(), 1, false}
	}
	return nil
}

// patternSplit cuts a text at the matches of a pattern.
type patternSplit struct {
	pattern  *pattern
	behavior behavior
	invert   bool // what lies between matches counts as the match
}

func (p *patternSplit) split(s *scratch, dst []string, text string, _ bool) ([]string, error) {
	matches, err := p.pattern.find(s, text)
	if err != nil {
		return dst, err
	}
	var (
		done    int
		pending = -1 // start of the piece that is not yet appended
		was     bool // the last part was a match
	)
	cut := func(at int) {
		if pending >= 0 && pending < at {
			dst = append(dst, text[pending:at])
		}
		pending = at
	}
	part := func(start, end int, match bool) {
		switch p.behavior {
		case isolated:
			cut(start)
		case removed:
			if cut(start); match {
				pending = end
			}
		case withPrevious:
			if pending < 0 || !match || was {
				cut(start)
			}
		case withNext:
			if pending < 0 || match || !was {
				cut(start)
			}
		case contiguous:
			if pending < 0 || match != was {
				cut(start)
			}
		}
		was = match
	}
	for _, m := range matches {
		if done < m.start {
			part(done, m.start, p.invert)
		}
		part(m.start, m.end, !p.invert)
		done = m.end
	}
	if done < len(text) {
		part(done, len(text), p.invert)
	}
	cut(len(text))
	return dst, nil
}

func isSpace(r rune) bool { return unicode.IsSpace(r) }

// isPunctuation is ASCII's punctuation and Unicode's \p{P}.
func isPunctuation(r rune) bool {
	return r < utf8.RuneSelf && strings.ContainsRune("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", r) || unicode.IsPunct(r)
}
