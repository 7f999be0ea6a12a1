// Package dispatchtest is a cluster for the tests of dispatch and the API: a view
// that the test changes, and drivers in this process that speak wire messages.
// Programs never import it.
package dispatchtest

import (
	"unicode/utf8"

	"manta/head/dispatch"
)

// Tokens of Bytes: each byte is a token, and there are two special ones.
const (
	BOS        int32 = 256
	EOS        int32 = 257
	Vocabulary       = 258
)

// Bytes is a tokenizer whose tokens are bytes, so that every character beyond
// ASCII is cut in the middle.
type Bytes struct{}

var _ dispatch.Tokenizer = Bytes{}

func (Bytes) Encode(text string, addSpecial bool) ([]int32, error) {
	var ids []int32
	if addSpecial {
		ids = append(ids, BOS)
	}
	for _, b := range []byte(text) {
		ids = append(ids, int32(b))
	}
	return ids, nil
}

func (t Bytes) Decode(ids []int32, skipSpecial bool) string {
	decoder := t.NewDecoder(skipSpecial, nil)
	var text []byte
	for _, id := range ids {
		text = append(text, decoder.Push(id)...)
	}
	return string(append(text, decoder.Flush()...))
}

func (t Bytes) Token(id int32) string {
	return string([]rune(string(t.Bytes(id))))
}

func (Bytes) Bytes(id int32) []byte {
	switch {
	case id == BOS:
		return []byte("<s>")
	case id == EOS:
		return []byte("</s>")
	case id < 0 || id >= Vocabulary:
		return nil
	}
	return []byte{byte(id)}
}

func (t Bytes) NewDecoder(skipSpecial bool, prompt []int32) dispatch.Decoder {
	return &decoder{skip: skipSpecial}
}

type decoder struct {
	skip bool
	part []byte // the beginning of a character
}

func (d *decoder) Push(id int32) string {
	if id >= 256 {
		text := d.Flush()
		if !d.skip {
			text += string(Bytes{}.Bytes(id))
		}
		return text
	}
	d.part = append(d.part, byte(id))
	var text []byte
	for len(d.part) > 0 && utf8.FullRune(d.part) {
		r, size := utf8.DecodeRune(d.part)
		text = utf8.AppendRune(text, r)
		d.part = d.part[size:]
	}
	return string(text)
}

func (d *decoder) Flush() string {
	if len(d.part) == 0 {
		return ""
	}
	d.part = nil
	return "\uFFFD"
}
