package link

import (
	"encoding/binary"
	"errors"
	"math"
)

// Borrowed is a byte string of CBOR (RFC 8949, §3.1) that is not copied when it is
// decoded: it lies in what was decoded, and is valid as long as that.
type Borrowed []byte

var errBorrowed = errors.New("link: no byte string of definite length")

// UnmarshalCBOR takes data's bytes without their head.
func (b *Borrowed) UnmarshalCBOR(data []byte) error {
	if len(data) == 0 || data[0]>>5 != 2 {
		return errBorrowed
	}
	head := 1
	if short := data[0] & 31; short >= 24 {
		head += 1 << (short - 24)
	}
	if data[0]&31 > 27 || head > len(data) {
		return errBorrowed
	}
	*b = Borrowed(data[head:])
	return nil
}

// Field adds a byte string to an encoded map of few fields, all but the bytes: so
// large ones need not be copied into a message. The key is one of 1 to 23.
func Field(encoded []byte, key byte, size int) []byte {
	encoded[0]++
	encoded = append(encoded, key)
	switch {
	case size < 24:
		return append(encoded, 2<<5|byte(size))
	case size <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(encoded, 2<<5|25), uint16(size))
	default:
		return binary.BigEndian.AppendUint32(append(encoded, 2<<5|26), uint32(size))
	}
}
