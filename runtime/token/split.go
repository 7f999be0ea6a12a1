package token

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// splitter cuts a text into pieces, or changes it, before the model sees it.
type splitter interface {
	// split appends the pieces of text, none of them empty, to dst. first says
	// that text begins the whole.
	split(s *scratch, dst []string, text string, first bool) ([]string, error)
}

// scanner is a splitter whose pieces are the whole text: next gives the length
// of the first piece of text, which is not empty.
type scanner interface {
	splitter
	next(text string) int
}

// splitAll is the split of a scanner.
func splitAll(scan scanner, dst []string, text string) ([]string, error) {
	for text != "" {
		n := scan.next(text)
		dst = append(dst, text[:n])
		text = text[n:]
	}
	return dst, nil
}

// splitSpec is a "pre_tokenizer" of tokenizer.json, any type.
type splitSpec struct {
	Type             string            `json:"type"`
	PreTokenizers    []json.RawMessage `json:"pretokenizers"`     // Sequence
	AddPrefixSpace   *bool             `json:"add_prefix_space"`  // ByteLevel, Metaspace
	UseRegex         *bool             `json:"use_regex"`         // ByteLevel
	Pattern          json.RawMessage   `json:"pattern"`           // Split
	Behavior         string            `json:"behavior"`          // Split, Punctuation
	Invert           bool              `json:"invert"`            // Split
	IndividualDigits bool              `json:"individual_digits"` // Digits
	Replacement      string            `json:"replacement"`       // Metaspace
	PrependScheme    string            `json:"prepend_scheme"`    // Metaspace
	Split            *bool             `json:"split"`             // Metaspace
}

// newSplitters gives the splitters of a pre_tokenizer and whether the text is
// byte-level after them.
func newSplitters(raw json.RawMessage) (splits []splitter, byteLevel bool, err error) {
	if isNull(raw) {
		return nil, false, nil
	}
	var spec splitSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, false, fmt.Errorf("%w: pre_tokenizer: %w", ErrMalformed, err)
	}
	one := func(s splitter, err error) ([]splitter, bool, error) {
		return []splitter{s}, false, err
	}
	switch spec.Type {
	case "Sequence":
		for _, inner := range spec.PreTokenizers {
			if byteLevel {
				return nil, false, fmt.Errorf("%w: a pre_tokenizer after ByteLevel", ErrUnsupported)
			}
			var in []splitter
			if in, byteLevel, err = newSplitters(inner); err != nil {
				return nil, false, err
			}
			splits = append(splits, in...)
		}
		return splits, byteLevel, nil
	case "ByteLevel":
		if spec.AddPrefixSpace == nil || *spec.AddPrefixSpace {
			splits = append(splits, prefixSpace{})
		}
		if spec.UseRegex == nil || *spec.UseRegex {
			splits = append(splits, gpt2Scanner{classes()})
		}
		return splits, true, nil
	case "Split":
		return one(newSplit(spec))
	case "Digits":
		return one(digitScanner{classes(), spec.IndividualDigits}, nil)
	case "Metaspace":
		return one(newMetaspace(spec))
	case "WhitespaceSplit":
		return one(&patternSplit{pattern: &pattern{is: isSpace}, behavior: removed}, nil)
	case "Punctuation":
		behavior, err := newBehavior(spec.Behavior)
		return one(&patternSplit{pattern: &pattern{is: isPunctuation}, behavior: behavior}, err)
	}
	return nil, false, fmt.Errorf("%w: pre_tokenizer %q", ErrUnsupported, spec.Type)
}

// prefixSpace puts a space before each piece that has none.
type prefixSpace struct{}

func (prefixSpace) split(_ *scratch, dst []string, text string, _ bool) ([]string, error) {
	if !strings.HasPrefix(text, " ") {
		text = " " + text
	}
	return append(dst, text), nil
}

// digitScanner separates numbers (\p{N}) from the rest, each by itself or
// together.
type digitScanner struct {
	table      *classTable
	individual bool
}

func (d digitScanner) split(_ *scratch, dst []string, text string, _ bool) ([]string, error) {
	return splitAll(d, dst, text)
}

func (d digitScanner) next(text string) int {
	c, n := d.table.at(text, 0)
	switch {
	case c&number == 0:
		return d.table.runWithout(text, n, number)
	case d.individual:
		return n
	}
	return d.table.run(text, n, number)
}

// metaspace writes a mark for each space, puts one before the text, and cuts
// before marks.
type metaspace struct {
	mark    string
	prepend string // "always", "first", "never"
	cut     bool
}

func newMetaspace(spec splitSpec) (splitter, error) {
	m := metaspace{mark: spec.Replacement, prepend: spec.PrependScheme, cut: spec.Split == nil || *spec.Split}
	if utf8.RuneCountInString(m.mark) != 1 {
		return nil, fmt.Errorf("%w: pre_tokenizer Metaspace has replacement %q, not one character", ErrMalformed, clip([]byte(m.mark)))
	}
	if m.prepend == "" {
		m.prepend = "always"
		if spec.AddPrefixSpace != nil && !*spec.AddPrefixSpace {
			m.prepend = "never"
		}
	}
	switch m.prepend {
	case "always", "first", "never":
		return m, nil
	}
	return nil, fmt.Errorf("%w: pre_tokenizer Metaspace has prepend_scheme %q", ErrUnsupported, clip([]byte(m.prepend)))
}

func (m metaspace) split(_ *scratch, dst []string, text string, first bool) ([]string, error) {
	text = strings.ReplaceAll(text, " ", m.mark)
	if (m.prepend == "always" || m.prepend == "first" && first) && !strings.HasPrefix(text, m.mark) {
		text = m.mark + text
	}
	if !m.cut {
		return append(dst, text), nil
	}
	for text != "" {
		_, n := utf8.DecodeRuneInString(text)
		if at := strings.Index(text[n:], m.mark); at >= 0 {
			dst = append(dst, text[:n+at])
			text = text[n+at:]
			continue
		}
		return append(dst, text), nil
	}
	return dst, nil
}
