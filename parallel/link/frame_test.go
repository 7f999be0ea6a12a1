package link

import (
	"bytes"
	"errors"
	"testing"
)

// A session takes chunks in order alone; whatever else comes breaks it aloud,
// and a new session starts afresh.
func TestAssembly(t *testing.T) {
	chunk := func(session, seq uint64, flags uint8, total int) header {
		return header{session: session, seq: seq, flags: flags, total: uint64(total)}
	}
	const both = flagFirst | flagLast
	for name, c := range map[string]struct {
		chunks []header
		bytes  []int
		want   error // of the last chunk
	}{
		"one chunk":        {[]header{chunk(1, 0, both, 3)}, []int{3}, nil},
		"two chunks":       {[]header{chunk(1, 0, flagFirst, 5), chunk(1, 1, flagLast, 5)}, []int{3, 2}, nil},
		"new session":      {[]header{chunk(1, 0, flagFirst, 9), chunk(2, 0, both, 2)}, []int{3, 2}, nil},
		"gap":              {[]header{chunk(1, 0, both, 3), chunk(1, 2, both, 3)}, []int{3, 3}, ErrGap},
		"begins late":      {[]header{chunk(1, 4, both, 3)}, []int{3}, ErrGap},
		"no first":         {[]header{chunk(1, 0, flagLast, 3)}, []int{3}, ErrProtocol},
		"first twice":      {[]header{chunk(1, 0, flagFirst, 9), chunk(1, 1, flagFirst, 9)}, []int{3, 3}, ErrProtocol},
		"more than said":   {[]header{chunk(1, 0, flagFirst, 4), chunk(1, 1, 0, 4)}, []int{3, 3}, ErrProtocol},
		"less than said":   {[]header{chunk(1, 0, flagFirst, 9), chunk(1, 1, flagLast, 9)}, []int{3, 3}, ErrProtocol},
		"too large":        {[]header{chunk(1, 0, flagFirst, 1000)}, []int{3}, ErrTooLarge},
		"single, not said": {[]header{chunk(1, 0, both, 4)}, []int{3}, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			var a assembly
			for i, h := range c.chunks {
				whole, data, err := a.add(h, make([]byte, c.bytes[i]), 100)
				if i < len(c.chunks)-1 {
					if err != nil {
						t.Fatalf("chunk %d: %v", i, err)
					}
					continue
				}
				if !errors.Is(err, c.want) {
					t.Fatalf("error %v, want %v", err, c.want)
				}
				if c.want == nil && (whole == nil || uint64(len(data)) != whole.total) {
					t.Fatalf("message of %d bytes, header %v", len(data), whole)
				}
			}
		})
	}
}

// A new session tells of a loss unless the one before ended in order.
func TestSessionsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		flags uint8
		want  bool
	}{"in order": {flagBye, false}, "broken off": {flagFirst | flagLast, true}} {
		t.Run(name, func(t *testing.T) {
			var a assembly
			if a.replaces(header{session: 1}) {
				t.Fatal("the first session replaces nothing")
			}
			for _, h := range []header{{session: 1, flags: flagFirst | flagLast}, {session: 1, seq: 1, flags: c.flags}} {
				if _, _, err := a.add(h, nil, 10); err != nil {
					t.Fatal(err)
				}
			}
			if got := a.replaces(header{session: 2}); got != c.want {
				t.Fatalf("replaces: %v, want %v", got, c.want)
			}
		})
	}
}

// Whatever bytes come, parsing gives an error or a header that writes back.
func FuzzHeader(f *testing.F) {
	f.Add(header{form: formCall, flags: flagFirst, session: 1, seq: 2, total: 3, call: 4}.append(nil))
	f.Add([]byte{frameVersion})
	f.Fuzz(func(t *testing.T, data []byte) {
		h, rest, err := parseHeader(data)
		if err == nil {
			again := append(h.append(nil), rest...)
			again[3] = data[3]
			if !bytes.Equal(again, data) {
				t.Fatalf("%x came back as %x", data, again)
			}
		}
		if g, err := parseGrant(data); err == nil && g.session != 0 {
			if again := g.append(nil); !bytes.Equal(again[:16], data[:16]) {
				t.Fatalf("%x came back as %x", data, again)
			}
		}
	})
}
