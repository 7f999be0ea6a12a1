package token

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"unsafe"
)

// settings is what this package reads of a tokenizer_config.json.
type settings struct {
	BOS          *namedToken           `json:"bos_token"`
	EOS          *namedToken           `json:"eos_token"`
	AddBOS       *bool                 `json:"add_bos_token"`
	AddEOS       *bool                 `json:"add_eos_token"`
	AddedDecoder map[string]addedToken `json:"added_tokens_decoder"`
}

// namedToken is a token's text, given as such or inside an object.
type namedToken string

func (n *namedToken) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		*n = namedToken(text)
		return nil
	}
	var object struct{ Content string }
	if err := json.Unmarshal(data, &object); err != nil {
		return err
	}
	*n = namedToken(object.Content)
	return nil
}

func readConfig(data []byte) (settings, error) {
	var s settings
	if isNull(data) {
		return s, nil
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%w: tokenizer_config.json: %w", ErrMalformed, err)
	}
	return s, nil
}

// addMissing appends the added tokens that tokenizer.json lacks, by id.
func (s *settings) addMissing(added []addedToken) []addedToken {
	known := map[string]bool{}
	for _, token := range added {
		known[token.Content] = true
	}
	var missing []addedToken
	for key, token := range s.AddedDecoder {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil || known[token.Content] {
			continue
		}
		token.ID = int32(id)
		missing = append(missing, token)
	}
	sort.Slice(missing, func(i, k int) bool { return missing[i].ID < missing[k].ID })
	return append(added, missing...)
}

// apply sets the ends of a sequence. add_bos_token and add_eos_token, where
// they are given, decide over tokenizer.json's template, as in transformers.
func (s *settings) apply(t *Tokenizer) {
	find := func(name *namedToken) int32 {
		if name == nil {
			return -1
		}
		if id, ok := t.ID(string(*name)); ok {
			return id
		}
		return -1
	}
	t.bos, t.eos = find(s.BOS), find(s.EOS)
	if t.bos >= 0 && s.AddBOS != nil {
		t.template.setFirst(t.bos, *s.AddBOS)
	}
	if t.eos >= 0 && s.AddEOS != nil {
		t.template.setLast(t.eos, *s.AddEOS)
	}
	if t.bos < 0 && s.BOS == nil && len(t.template.before) > 0 {
		t.bos = t.template.before[0] // no config: the template knows
	}
}

// viewString reads bytes as a string for a look-up; the string must not
// outlive the bytes.
func viewString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
