package token

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// decoderSpec is a "decoder" of tokenizer.json, any type; Sequence is flattened.
type decoderSpec struct {
	Type           string            `json:"type"`
	Decoders       []json.RawMessage `json:"decoders"` // Sequence
	Pattern        json.RawMessage   `json:"pattern"`  // Replace
	Content        string            `json:"content"`  // Replace, Strip
	Start          int               `json:"start"`    // Strip
	Stop           int               `json:"stop"`     // Strip
	Replacement    string            `json:"replacement"`
	PrependScheme  string            `json:"prepend_scheme"`
	AddPrefixSpace *bool             `json:"add_prefix_space"`

	literal string // Replace
	fused   bool   // the tokens before it are one text: Strip works on its ends
}

// maxStrip bounds what a Strip takes off an end.
const maxStrip = 64

// newDecoders reads a decoder; none at all joins tokens with spaces.
func newDecoders(raw json.RawMessage) ([]decoderSpec, error) {
	if isNull(raw) {
		return []decoderSpec{{Type: "join"}}, nil
	}
	specs, err := flattenDecoders(nil, raw, 0)
	if err != nil {
		return nil, err
	}
	fused := false
	for i := range specs {
		spec := &specs[i]
		spec.fused = fused
		switch spec.Type {
		case "ByteLevel", "Fuse":
			fused = true
		case "ByteFallback":
		case "Strip":
			if utf8.RuneCountInString(spec.Content) != 1 || min(spec.Start, spec.Stop) < 0 || max(spec.Start, spec.Stop) > maxStrip {
				return nil, fmt.Errorf("%w: decoder Strip of %d and %d times %q", ErrUnsupported, spec.Start, spec.Stop, clip([]byte(spec.Content)))
			}
		case "Replace":
			p, err := newPattern(spec.Pattern)
			if err != nil {
				return nil, fmt.Errorf("decoder Replace: %w", err)
			}
			if p.expression != nil {
				return nil, fmt.Errorf("%w: decoder Replace with a regular expression", ErrUnsupported)
			}
			if spec.literal = p.literal; fused && utf8.RuneCountInString(p.literal) > 1 {
				return nil, fmt.Errorf("%w: decoder Replace of more than one character after Fuse", ErrUnsupported)
			}
		case "Metaspace":
			if utf8.RuneCountInString(spec.Replacement) != 1 {
				return nil, fmt.Errorf("%w: decoder Metaspace has replacement %q", ErrMalformed, clip([]byte(spec.Replacement)))
			}
			if spec.PrependScheme == "" && spec.AddPrefixSpace != nil && !*spec.AddPrefixSpace {
				spec.PrependScheme = "never"
			}
		default:
			return nil, fmt.Errorf("%w: decoder %q", ErrUnsupported, clip([]byte(spec.Type)))
		}
		if fused && (spec.Type == "ByteFallback" || spec.Type == "Metaspace" || spec.Type == "ByteLevel") && spec.fused {
			return nil, fmt.Errorf("%w: decoder %s after Fuse or ByteLevel", ErrUnsupported, spec.Type)
		}
	}
	return specs, nil
}

func flattenDecoders(specs []decoderSpec, raw json.RawMessage, depth int) ([]decoderSpec, error) {
	var spec decoderSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("%w: decoder: %w", ErrMalformed, err)
	}
	if spec.Type != "Sequence" {
		return append(specs, spec), nil
	}
	if depth > 8 || len(specs)+len(spec.Decoders) > 64 {
		return nil, fmt.Errorf("%w: decoder Sequence of more than 64 parts", ErrUnsupported)
	}
	for _, inner := range spec.Decoders {
		var err error
		if specs, err = flattenDecoders(specs, inner, depth+1); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

// Decode gives the text of ids; with skipSpecial without special tokens. Ids
// that the vocabulary lacks give nothing. What is not UTF-8 becomes U+FFFD.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	d := t.NewDecoder(skipSpecial, nil)
	for _, id := range ids {
		d.push(id)
	}
	d.stage.end()
	return d.out.String()
}

// lossy replaces each maximal part that is not UTF-8 by U+FFFD (Unicode
// Standard, §3.9, "U+FFFD Substitution of Maximal Subparts").
func lossy(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var out strings.Builder
	writeLossy(&out, b, true)
	return out.String()
}

// writeLossy writes bytes as text and gives what it left: unless final, a
// character whose end has not come.
func writeLossy(out *strings.Builder, b []byte, final bool) []byte {
	for len(b) > 0 {
		n := validPrefix(b)
		out.Write(b[:n])
		if b = b[n:]; len(b) == 0 {
			break
		}
		if !utf8.FullRune(b) && !final {
			return b
		}
		out.WriteString("\ufffd")
		n = 1
		for n < len(b) && !utf8.FullRune(b[:n]) && !utf8.FullRune(b[:n+1]) {
			n++
		}
		b = b[n:]
	}
	return nil
}

func validPrefix(b []byte) int {
	n := 0
	for n < len(b) {
		r, size := utf8.DecodeRune(b[n:])
		if r == utf8.RuneError && size <= 1 {
			break
		}
		n += size
	}
	return n
}
