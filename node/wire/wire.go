// Package wire declares what travels between heads and nodes: messages, their
// subjects, their encoding. It is plain data with a version, and does no I/O.
//
// Encoding is CBOR with integer keys: a reader skips keys it does not know, so a
// later version may add fields; a change of meaning raises Version.
package wire

import (
	"encoding/hex"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"manta/kernels"
	"manta/runtime/sample"
)

// Version is the protocol that this program writes. A peer refuses a greater one.
const Version = 1

// Protocol is that of the ranks of a group among themselves: steps, answers, what
// they exchange. A group forms among nodes of one protocol, so a change of its
// meaning raises it and nothing else is needed while nodes are upgraded.
const Protocol = 1

// RequestID names a request for its whole life: 128 random bits, drawn by the
// head that accepted it. It is the first part of every SSE event id.
type RequestID [16]byte

func (id RequestID) String() string { return hex.EncodeToString(id[:]) }

// ParseRequestID reads what String wrote.
func ParseRequestID(s string) (RequestID, error) {
	var id RequestID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("wire: %q is no request id (32 hex digits)", s)
	}
	copy(id[:], b)
	return id, nil
}

// Request asks a replica's driver for the tokens of every choice.
type Request struct {
	Version    int           `cbor:"1,keyasint"`
	ID         RequestID     `cbor:"2,keyasint"`
	Attempt    uint32        `cbor:"3,keyasint"` // raised by the head at each sending
	Replica    string        `cbor:"4,keyasint"`
	Epoch      uint64        `cbor:"5,keyasint"`
	Head       string        `cbor:"6,keyasint"` // where the frames go
	Prompt     []int32       `cbor:"7,keyasint"`
	Choices    int           `cbor:"8,keyasint"`
	Params     sample.Params `cbor:"9,keyasint"`
	Priority   int           `cbor:"10,keyasint,omitempty"` // lower runs first
	DeadlineMS int64         `cbor:"11,keyasint,omitempty"` // Unix time; 0: none
	// Outputs[c] are the tokens that choice c has already given to its client;
	// the driver computes them again as known tokens and goes on after them.
	Outputs [][]int32 `cbor:"12,keyasint,omitempty"`
	Owner   [32]byte  `cbor:"13,keyasint"` // SHA-256 of the API key
	Body    [32]byte  `cbor:"14,keyasint"` // SHA-256 of the request's body
	// Alone: replicas died with this request; no other may run beside it until it
	// has got further.
	Alone bool `cbor:"15,keyasint,omitempty"`
	// TraceParent and TraceState are where the request's trace goes on (W3C Trace
	// Context); empty: it has none.
	TraceParent string `cbor:"16,keyasint,omitempty"`
	TraceState  string `cbor:"17,keyasint,omitempty"`
	// StreamInterval is how many tokens of a choice go in a frame, but for its first and
	// its last ones; 0: what a step gives.
	StreamInterval int `cbor:"18,keyasint,omitempty"`
}

// Cancel withdraws a request, or some of its choices.
type Cancel struct {
	Version int       `cbor:"1,keyasint"`
	ID      RequestID `cbor:"2,keyasint"`
	Attempt uint32    `cbor:"3,keyasint"`
	Choices []int     `cbor:"4,keyasint,omitempty"` // empty: all
	Replica string    `cbor:"5,keyasint,omitempty"`
}

// FinishReason says why a choice ended, in OpenAI's words.
type FinishReason string

const (
	Unfinished   FinishReason = ""
	FinishStop   FinishReason = "stop"
	FinishLength FinishReason = "length"
	FinishAbort  FinishReason = "abort"
)

// Frame carries what a step gave to one choice of one request.
type Frame struct {
	Version int       `cbor:"1,keyasint"`
	Request RequestID `cbor:"2,keyasint"`
	Attempt uint32    `cbor:"3,keyasint"`
	Epoch   uint64    `cbor:"4,keyasint"`
	Choice  int       `cbor:"5,keyasint"`
	Offset  int       `cbor:"6,keyasint"` // output tokens of this choice before Tokens
	// Tokens includes the stop or end token that finished the choice (Finish is
	// then FinishStop): it counts as usage, and the head keeps it out of the text.
	Tokens   []int32      `cbor:"7,keyasint,omitempty"`
	Logprobs []Logprob    `cbor:"8,keyasint,omitempty"` // one a token, when asked for
	Prompt   []Logprob    `cbor:"9,keyasint,omitempty"` // prompt logprobs, with choice 0's first frame
	Finish   FinishReason `cbor:"10,keyasint,omitempty"`
	Cached   int          `cbor:"12,keyasint,omitempty"` // prompt tokens found in the prefix cache
	Err      *Error       `cbor:"13,keyasint,omitempty"`
}

// Logprob is a token's log probability, its rank and the best alternatives.
type Logprob struct {
	Token   int32                  `cbor:"1,keyasint"`
	Logprob float32                `cbor:"2,keyasint"`
	Rank    int32                  `cbor:"3,keyasint"`
	Top     []kernels.TokenLogprob `cbor:"4,keyasint,omitempty"`
}

// ErrorCode tells the head what to do with a failed request.
type ErrorCode string

const (
	ErrInvalid  ErrorCode = "invalid"  // the request can't be served by any replica: tell the client
	ErrStale    ErrorCode = "stale"    // epoch or attempt is not the current one: forget it
	ErrLost     ErrorCode = "lost"     // the group ended: send it to another replica
	ErrDeadline ErrorCode = "deadline" // its deadline passed
	ErrInternal ErrorCode = "internal" // a fault of ours
	ErrBusy     ErrorCode = "busy"     // beyond credit, or another runs alone: queue it again
)

// Error ends a request.
type Error struct {
	Code    ErrorCode `cbor:"1,keyasint"`
	Message string    `cbor:"2,keyasint"`
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Credit tells a head how many choices it may have outstanding on a replica.
type Credit struct {
	Version int    `cbor:"1,keyasint"`
	Replica string `cbor:"2,keyasint"`
	Epoch   uint64 `cbor:"3,keyasint"`
	Node    string `cbor:"4,keyasint"`
	Choices int    `cbor:"5,keyasint"`
}

var encoding = func() cbor.EncMode {
	mode, err := cbor.EncOptions{Sort: cbor.SortCoreDeterministic}.EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

var decoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{MaxArrayElements: 1 << 22, MaxMapPairs: 1 << 16, MaxNestedLevels: 16}.DecMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// Marshal encodes a message.
func Marshal(message any) ([]byte, error) { return encoding.Marshal(message) }

// Unmarshal decodes a message; the caller checks its Version.
func Unmarshal(data []byte, message any) error {
	if err := decoding.Unmarshal(data, message); err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	return nil
}
