package link

import (
	"bytes"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// A field that is added to an encoded map is what the encoder would have written, and
// a borrowed one lies in what was decoded.
func TestFieldsAreBorrowed(t *testing.T) {
	type message struct {
		Number uint64   `cbor:"1,keyasint"`
		Rows   Borrowed `cbor:"2,keyasint,omitempty"`
	}
	for _, size := range []int{1, 23, 24, 255, 256, 65535, 65536, 1 << 20} {
		rows := bytes.Repeat([]byte{7}, size)
		head, err := cbor.Marshal(message{Number: 300})
		if err != nil {
			t.Fatal(err)
		}
		data := slices.Concat(Field(head, 2, size), rows)
		var got message
		if err := cbor.Unmarshal(data, &got); err != nil || got.Number != 300 || !bytes.Equal(got.Rows, rows) {
			t.Fatalf("%d bytes: %d with %d bytes, %v", size, got.Number, len(got.Rows), err)
		}
		if &got.Rows[0] != &data[len(data)-size] {
			t.Errorf("%d bytes were copied", size)
		}
		whole, err := cbor.Marshal(message{Number: 300, Rows: rows})
		if err != nil {
			t.Fatal(err)
		}
		if err := cbor.Unmarshal(whole, &got); err != nil || !bytes.Equal(got.Rows, rows) {
			t.Errorf("%d bytes as the encoder writes them: %v", size, err)
		}
	}
	var b Borrowed
	for _, bad := range [][]byte{nil, {0x5f, 0x41, 1, 0xff}, {0x01}, {0x5b, 1}} {
		if b.UnmarshalCBOR(bad) == nil {
			t.Errorf("%x was taken for a byte string", bad)
		}
	}
}
