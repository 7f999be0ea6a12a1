package dispatch

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"manta/node/wire"
	"manta/runtime/sample"
)

// Seen is how much of a choice a client has: so many output tokens, and whether
// it has seen the choice end.
type Seen struct {
	Tokens int
	Ended  bool
}

// EventID is the id of a server-sent event. It names everything that another
// head needs to go on from there:
//
//	request.attempt.seed.check.choice,choice,…
//
// in hexadecimal but for the choices, which are decimal token counts, with an e
// behind the count of a choice that has ended. The check ties the id to the
// owner's key and the body.
type EventID struct {
	Request wire.RequestID
	Attempt uint32
	Seed    uint64
	Check   [8]byte
	Choices []Seen
}

// maxEventID bounds what ParseEventID looks at: an id with as many choices as a
// request may have, times the prompts of a batch, stays below it.
const maxEventID = 1 << 14

// Check is the part of an event id that only the same key, body and seed give.
func Check(request wire.RequestID, seed uint64, owner, body [32]byte) [8]byte {
	h := sha256.New()
	h.Write(request[:])
	h.Write(binary.BigEndian.AppendUint64(nil, seed))
	h.Write(owner[:])
	h.Write(body[:])
	return [8]byte(h.Sum(nil))
}

func (id EventID) String() string { return string(id.Append(nil)) }

// Append writes the id's text behind b.
func (id EventID) Append(b []byte) []byte { return id.AppendChoices(id.AppendHead(b)) }

// AppendHead writes what stands before the choices.
func (id EventID) AppendHead(b []byte) []byte {
	b = hex.AppendEncode(b, id.Request[:])
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(id.Attempt), 16)
	b = append(b, '.')
	b = strconv.AppendUint(b, id.Seed, 16)
	b = append(b, '.')
	b = hex.AppendEncode(b, id.Check[:])
	return append(b, '.')
}

// AppendChoices writes what the client has of each choice.
func (id EventID) AppendChoices(b []byte) []byte {
	for i, seen := range id.Choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(seen.Tokens), 10)
		if seen.Ended {
			b = append(b, 'e')
		}
	}
	return b
}

// ParseEventID reads what String wrote. Its errors wrap ErrNotFound: an id that
// was never given names no request.
func ParseEventID(text string) (EventID, error) {
	var id EventID
	bad := func(what string) (EventID, error) {
		return EventID{}, fmt.Errorf("Last-Event-ID: %s: %w", what, ErrNotFound)
	}
	parts := strings.Split(text, ".")
	if len(text) > maxEventID || len(parts) != 5 {
		return bad("not an id that this server gives")
	}
	request, err := wire.ParseRequestID(parts[0])
	if err != nil {
		return bad("malformed request")
	}
	attempt, err := strconv.ParseUint(parts[1], 16, 32)
	if err != nil {
		return bad("malformed attempt")
	}
	seed, err := strconv.ParseUint(parts[2], 16, 64)
	if err != nil {
		return bad("malformed seed")
	}
	check, err := hex.DecodeString(parts[3])
	if err != nil || len(check) != len(id.Check) {
		return bad("malformed check")
	}
	id.Request, id.Attempt, id.Seed, id.Check = request, uint32(attempt), seed, [8]byte(check)
	counts := strings.Split(parts[4], ",")
	if len(counts) > sample.MaxChoices*MaxPrompts {
		return bad("too many choices")
	}
	for _, count := range counts {
		digits, ended := strings.CutSuffix(count, "e")
		n, err := strconv.ParseUint(digits, 10, 31)
		if err != nil {
			return bad("malformed choice")
		}
		id.Choices = append(id.Choices, Seen{Tokens: int(n), Ended: ended})
	}
	if id.String() != text {
		return bad("not in the form that this server gives")
	}
	return id, nil
}

// MaxPrompts is how many prompts one HTTP request may bring.
const MaxPrompts = 256

// Part gives the id of the n-th prompt of a request that brings several, so
// that any head finds the same one.
func Part(request wire.RequestID, n int) wire.RequestID {
	if n == 0 {
		return request
	}
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(request[:], uint32(n)))
	return wire.RequestID(sum[:16])
}
