package token

import (
	"fmt"
	"unicode/utf8"
)

// Encode gives the ids of a text; with addSpecial also those that the
// tokenizer's template puts around it (such as the beginning of a sequence).
// Special tokens written out in the text are recognised either way.
func (t *Tokenizer) Encode(text string, addSpecial bool) ([]int32, error) {
	if at := invalidAt(text); at >= 0 {
		return nil, fmt.Errorf("%w: byte %d is 0x%02x; send the text as UTF-8", ErrInvalidText, at, text[at])
	}
	s := t.takeScratch()
	defer t.giveScratch(s)
	s.deadline = patternDeadline(text)
	out := make([]int32, 0, len(text)/4+16)
	if addSpecial {
		out = append(out, t.template.before...)
	}
	var err error
	t.added.raw.cut(text, func(start, end int, id int32) bool {
		if id >= 0 {
			out = append(out, id)
		} else {
			out, err = t.encodeSegment(s, out, text[start:end], start == 0)
		}
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	if addSpecial {
		out = append(out, t.template.after...)
	}
	return out, nil
}

// invalidAt gives the place of the first byte that is no part of UTF-8, or -1.
func invalidAt(text string) int {
	if utf8.ValidString(text) {
		return -1
	}
	for at := 0; ; {
		r, n := utf8.DecodeRuneInString(text[at:])
		if r == utf8.RuneError && n <= 1 {
			return at
		}
		at += n
	}
}

// encodeSegment encodes text between added tokens; first: it begins the text.
func (t *Tokenizer) encodeSegment(s *scratch, out []int32, text string, first bool) ([]int32, error) {
	if t.normalizer != nil {
		var err error
		if text, err = t.normalizer(text); err != nil {
			return out, err
		}
	}
	if t.added.normalized == nil {
		return t.encodeNormalized(s, out, text, first)
	}
	var err error
	t.added.normalized.cut(text, func(start, end int, id int32) bool {
		if id >= 0 {
			out = append(out, id)
		} else {
			out, err = t.encodeNormalized(s, out, text[start:end], first && start == 0)
		}
		return err == nil
	})
	return out, err
}

// encodeNormalized splits a normalised text and encodes the pieces. The last
// splitter is asked word by word where it can be.
func (t *Tokenizer) encodeNormalized(s *scratch, out []int32, text string, first bool) ([]int32, error) {
	if text == "" {
		return out, nil
	}
	if len(t.splits) == 0 {
		return t.model.piece(s, out, text), nil
	}
	pieces := append(s.words[0][:0], text)
	spare := s.words[1][:0]
	last := len(t.splits) - 1
	scan, scanned := t.splits[last].(scanner)
	if !scanned {
		last++
	}
	var err error
	for _, split := range t.splits[:last] {
		spare = spare[:0]
		for i, piece := range pieces {
			if spare, err = split.split(s, spare, piece, first && i == 0); err != nil {
				return out, err
			}
		}
		pieces, spare = spare, pieces
	}
	s.words[0], s.words[1] = pieces, spare
	for _, piece := range pieces {
		if !scanned {
			out = t.model.piece(s, out, piece)
			continue
		}
		for piece != "" {
			n := scan.next(piece)
			out = t.model.piece(s, out, piece[:n])
			piece = piece[n:]
		}
	}
	return out, nil
}
