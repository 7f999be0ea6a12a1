package link

import (
	"encoding/binary"
	"fmt"
)

// Every chunk on the wire begins with this header, little-endian:
//
//	0   version (1)
//	1   form: message, call, reply, fault
//	2   flags: first, last, bye, hello
//	3   0
//	4   session: 8 random bytes of the connection that carries it
//	12  sequence number of the chunk within the session
//	20  bytes of the whole message
//	28  call that it belongs to, 0: none. On the lane of tokens: bytes of the
//	    session's messages before this chunk
const (
	headerBytes  = 36
	frameVersion = 1
)

type form uint8

const (
	formMessage form = iota
	formCall
	formReply
	formFault // a reply whose bytes are an error's text
	forms
)

const (
	flagFirst = 1 << iota
	flagLast
	flagBye   // the session ends here, nothing is lost; the chunk is no part of a message
	flagHello // asks for a grant, no part of a session
)

type header struct {
	form    form
	flags   uint8
	session uint64
	seq     uint64
	total   uint64
	call    uint64
}

func (h header) append(dst []byte) []byte {
	dst = append(dst, frameVersion, byte(h.form), h.flags, 0)
	dst = binary.LittleEndian.AppendUint64(dst, h.session)
	dst = binary.LittleEndian.AppendUint64(dst, h.seq)
	dst = binary.LittleEndian.AppendUint64(dst, h.total)
	return binary.LittleEndian.AppendUint64(dst, h.call)
}

func parseHeader(data []byte) (header, []byte, error) {
	if len(data) < headerBytes {
		return header{}, nil, fmt.Errorf("%w: chunk of %d bytes has no header", ErrProtocol, len(data))
	}
	if data[0] != frameVersion {
		return header{}, nil, fmt.Errorf("%w: chunk version %d, this program reads %d", ErrProtocol, data[0], frameVersion)
	}
	h := header{
		form:    form(data[1]),
		flags:   data[2],
		session: binary.LittleEndian.Uint64(data[4:]),
		seq:     binary.LittleEndian.Uint64(data[12:]),
		total:   binary.LittleEndian.Uint64(data[20:]),
		call:    binary.LittleEndian.Uint64(data[28:]),
	}
	if h.form >= forms {
		return header{}, nil, fmt.Errorf("%w: chunk form %d", ErrProtocol, h.form)
	}
	return h, data[headerBytes:], nil
}

// A grant tells a sender how much of a session its consumer has taken.
type grant struct {
	session  uint64
	consumed uint64
	broken   bool // a chunk was lost: the sender must open another session
}

const grantBytes = 17

func (g grant) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, g.session)
	dst = binary.LittleEndian.AppendUint64(dst, g.consumed)
	if g.broken {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func parseGrant(data []byte) (grant, error) {
	if len(data) != grantBytes {
		return grant{}, fmt.Errorf("%w: grant of %d bytes", ErrProtocol, len(data))
	}
	return grant{
		session:  binary.LittleEndian.Uint64(data),
		consumed: binary.LittleEndian.Uint64(data[8:]),
		broken:   data[16] != 0,
	}, nil
}

// maxKept bounds the memory that a session keeps for its next message. A new piece
// for each would cost as much to clear and to collect as a copy.
const maxKept = 16 << 20

// An assembly puts the chunks of one session together, in order. It is pure.
type assembly struct {
	session uint64
	next    uint64 // sequence number expected
	broken  bool
	partial []byte // kept for the next message
	open    bool   // a message has begun
	bye     bool   // the session ended in order
	head    header
	// consumed counts bytes taken since the session began, granted those told.
	consumed, granted uint64
}

// replaces reports whether a chunk begins another session although the one before
// did not end in order: some of that may be lost.
func (a *assembly) replaces(h header) bool {
	return a.session != 0 && h.session != a.session && !a.bye
}

// join takes up a session that began before anybody heard it, at the begin of a message.
// What came before is lost, as whoever listened before has told.
func (a *assembly) join(h header) {
	if h.session != a.session && h.seq > 0 && h.flags&flagFirst != 0 {
		*a = assembly{session: h.session, next: h.seq, consumed: h.call, partial: a.partial}
	}
}

// A session's upper half is drawn once by its process: another one there means that
// the process is a new one.
func sameProcess(a, b uint64) bool { return a>>32 == b>>32 }

// add takes a chunk. It gives the message that the chunk completes, or nil; its bytes
// are valid until the next call and as long as the chunk's. An error breaks the
// session: its later chunks are ignored.
func (a *assembly) add(h header, payload []byte, maxMessage int) (*header, []byte, error) {
	if h.session != a.session {
		if h.seq != 0 {
			*a = assembly{session: h.session, partial: a.partial, broken: true}
			return nil, nil, fmt.Errorf("%w: session begins with chunk %d", ErrGap, h.seq)
		}
		*a = assembly{session: h.session, partial: a.partial}
	}
	if a.broken {
		return nil, nil, nil
	}
	fail := func(format string, args ...any) (*header, []byte, error) {
		a.broken, a.partial, a.open = true, nil, false
		return nil, nil, fmt.Errorf(format, args...)
	}
	if h.seq != a.next {
		return fail("%w: chunk %d, expected %d", ErrGap, h.seq, a.next)
	}
	a.next++
	if h.flags&flagBye != 0 {
		a.bye = !a.open
		return nil, nil, nil
	}
	a.consumed += uint64(len(payload))
	first, last := h.flags&flagFirst != 0, h.flags&flagLast != 0
	if first == a.open {
		return fail("%w: chunk %d begins a message within another, or none has begun", ErrProtocol, h.seq)
	}
	if first {
		if h.total > uint64(maxMessage) {
			return fail("%w: message of %d bytes, at most %d", ErrTooLarge, h.total, maxMessage)
		}
		a.head = h
		if last {
			if uint64(len(payload)) != h.total {
				return fail("%w: message of %d bytes, announced %d", ErrProtocol, len(payload), h.total)
			}
			return &a.head, payload, nil
		}
		a.open = true
		if cap(a.partial) < int(h.total) {
			a.partial = make([]byte, 0, h.total)
		}
		a.partial = a.partial[:0]
	}
	if uint64(len(a.partial)+len(payload)) > a.head.total {
		return fail("%w: message exceeds the %d bytes announced", ErrProtocol, a.head.total)
	}
	a.partial = append(a.partial, payload...)
	if !last {
		return nil, nil, nil
	}
	whole := a.partial
	a.open = false
	if cap(whole) > maxKept {
		a.partial = nil
	}
	if uint64(len(whole)) != a.head.total {
		return fail("%w: message of %d bytes, announced %d", ErrProtocol, len(whole), a.head.total)
	}
	return &a.head, whole, nil
}
