package token

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// normalizer changes a text before it is split; nil changes nothing.
type normalizer func(text string) (string, error)

// normalizerSpec is a "normalizer" of tokenizer.json, any type.
type normalizerSpec struct {
	Type        string            `json:"type"`
	Normalizers []json.RawMessage `json:"normalizers"` // Sequence
	Prepend     string            `json:"prepend"`     // Prepend
	Pattern     json.RawMessage   `json:"pattern"`     // Replace
	Content     string            `json:"content"`     // Replace
	StripLeft   bool              `json:"strip_left"`  // Strip
	StripRight  bool              `json:"strip_right"` // Strip
}

func newNormalizer(raw json.RawMessage) (normalizer, error) {
	if isNull(raw) {
		return nil, nil
	}
	var spec normalizerSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("%w: normalizer: %w", ErrMalformed, err)
	}
	switch spec.Type {
	case "NFC", "NFD", "NFKC", "NFKD":
		return unicodeForm(spec.Type), nil
	case "Lowercase":
		return always(lowercase), nil
	case "Prepend":
		return always(func(text string) string {
			if text == "" {
				return text
			}
			return spec.Prepend + text
		}), nil
	case "Replace":
		return newReplace(spec)
	case "Strip":
		return always(func(text string) string {
			if spec.StripLeft {
				text = trimSpaceStart(text)
			}
			if spec.StripRight {
				text = text[:trimSpaceEnd(text)]
			}
			return text
		}), nil
	case "StripAccents":
		return always(stripAccents), nil
	case "Sequence":
		return newNormalizers(spec.Normalizers)
	}
	return nil, fmt.Errorf("%w: normalizer %q", ErrUnsupported, spec.Type)
}

func newNormalizers(raws []json.RawMessage) (normalizer, error) {
	var all []normalizer
	for _, raw := range raws {
		n, err := newNormalizer(raw)
		if err != nil {
			return nil, err
		}
		if n != nil {
			all = append(all, n)
		}
	}
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return all[0], nil
	}
	return func(text string) (string, error) {
		var err error
		for _, n := range all {
			if text, err = n(text); err != nil {
				return "", err
			}
		}
		return text, nil
	}, nil
}

func newReplace(spec normalizerSpec) (normalizer, error) {
	p, err := newPattern(spec.Pattern)
	if err != nil {
		return nil, fmt.Errorf("normalizer Replace: %w", err)
	}
	if p.expression == nil {
		return always(func(text string) string { return strings.ReplaceAll(text, p.literal, spec.Content) }), nil
	}
	return func(text string) (string, error) {
		matches, err := p.find(&scratch{deadline: patternDeadline(text)}, text)
		if err != nil || len(matches) == 0 {
			return text, err
		}
		var b strings.Builder
		done := 0
		for _, m := range matches {
			b.WriteString(text[done:m.start])
			b.WriteString(spec.Content)
			done = m.end
		}
		b.WriteString(text[done:])
		return b.String(), nil
	}, nil
}

func always(f func(string) string) normalizer {
	return func(text string) (string, error) { return f(text), nil }
}

// lowercase maps each character by itself, without the final sigma's rule; one
// alone becomes two (SpecialCasing.txt).
func lowercase(text string) string {
	return strings.Map(unicode.ToLower, strings.ReplaceAll(text, "\u0130", "i\u0307"))
}

// stripAccents drops nonspacing marks.
func stripAccents(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		return r
	}, text)
}

// unicodeForm normalises to a form of Unicode Standard Annex 15.
func unicodeForm(name string) normalizer {
	form := map[string]norm.Form{"NFC": norm.NFC, "NFD": norm.NFD, "NFKC": norm.NFKC, "NFKD": norm.NFKD}[name]
	return always(func(text string) string {
		if isASCII(text) {
			return text
		}
		if n := form.QuickSpanString(text); n == len(text) {
			return text
		}
		if leftToUs(text) {
			return normalizeUnbounded(form, text)
		}
		return form.String(text)
	})
}

func isASCII(text string) bool {
	for i := 0; i < len(text); i++ {
		if text[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
