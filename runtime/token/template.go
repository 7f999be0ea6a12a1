package token

import (
	"encoding/json"
	"fmt"
)

// template is the special tokens around a text.
type template struct {
	before, after []int32
}

// templateSpec is a "post_processor" of tokenizer.json, any type.
type templateSpec struct {
	Type       string            `json:"type"`
	Processors []json.RawMessage `json:"processors"` // Sequence
	Single     []struct {        // TemplateProcessing
		SpecialToken *struct {
			ID string `json:"id"`
		}
		Sequence *struct {
			ID string `json:"id"`
		}
	} `json:"single"`
	SpecialTokens map[string]struct {
		IDs []int32 `json:"ids"`
	} `json:"special_tokens"`
}

func newTemplate(raw json.RawMessage, size int) (template, error) {
	var t template
	if isNull(raw) {
		return t, nil
	}
	var spec templateSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return t, fmt.Errorf("%w: post_processor: %w", ErrMalformed, err)
	}
	switch spec.Type {
	case "ByteLevel": // moves offsets, which nobody asks for here
		return t, nil
	case "Sequence":
		for _, inner := range spec.Processors {
			in, err := newTemplate(inner, size)
			if err != nil {
				return t, err
			}
			t.before = append(append([]int32(nil), in.before...), t.before...)
			t.after = append(t.after, in.after...)
		}
		return t, nil
	case "TemplateProcessing":
		return newTemplateProcessing(spec, size)
	}
	return t, fmt.Errorf("%w: post_processor %q", ErrUnsupported, spec.Type)
}

func newTemplateProcessing(spec templateSpec, size int) (template, error) {
	var t template
	seen := 0
	for _, part := range spec.Single {
		switch {
		case part.Sequence != nil && part.Sequence.ID == "A":
			seen++
		case part.SpecialToken != nil:
			token, ok := spec.SpecialTokens[part.SpecialToken.ID]
			if !ok {
				return t, fmt.Errorf("%w: post_processor names %q, which its special_tokens lack", ErrMalformed, clip([]byte(part.SpecialToken.ID)))
			}
			for _, id := range token.IDs {
				if id < 0 || int(id) >= size {
					return t, fmt.Errorf("%w: post_processor has id %d, the vocabulary ends at %d", ErrMalformed, id, size-1)
				}
			}
			if seen == 0 {
				t.before = append(t.before, token.IDs...)
			} else {
				t.after = append(t.after, token.IDs...)
			}
		default:
			return t, fmt.Errorf("%w: a part of post_processor.single that is neither the text nor a special token", ErrMalformed)
		}
	}
	if seen != 1 {
		return t, fmt.Errorf("%w: post_processor.single has the text %d times, not once", ErrMalformed, seen)
	}
	return t, nil
}

// setFirst makes the template begin with a token, or not.
func (t *template) setFirst(id int32, wanted bool) {
	has := len(t.before) > 0 && t.before[0] == id
	switch {
	case wanted && !has:
		t.before = append([]int32{id}, t.before...)
	case !wanted && has:
		t.before = t.before[1:]
	}
}

// setLast makes the template end with a token, or not.
func (t *template) setLast(id int32, wanted bool) {
	n := len(t.after)
	has := n > 0 && t.after[n-1] == id
	switch {
	case wanted && !has:
		t.after = append(t.after, id)
	case !wanted && has:
		t.after = t.after[:n-1]
	}
}
