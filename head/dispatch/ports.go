// Package dispatch carries a request through its life on the head: it waits in a
// bounded queue, goes to a replica within that driver's credit, its frames become
// text, and when its driver is lost it goes on at another replica.
//
// The head's composition root owns the one Dispatcher and hands it what arrives
// (Frame, Credit, Disconnected). A Stream belongs to whoever has its turn: its
// handler, or the goroutine that brings a frame. The package never talks HTTP and never decides where replicas run.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"manta/head/state"
	"manta/internal/trace"
	"manta/node/wire"
	"manta/runtime/sample"
)

// Views is the control plane as dispatch sees it. Implementations are safe for
// concurrent use; the View they give is immutable.
type Views interface {
	View() *state.View
	// Wait blocks until there is a View whose Index is greater, or ctx ends.
	Wait(ctx context.Context, index uint64) (*state.View, error)
}

// Link sends to nodes. Messages to one node arrive in the order of the calls, or
// the transport calls Disconnected. What comes back goes to Dispatcher.Frame and
// Dispatcher.Credit. Calls may block while a peer is dialled, never for a reply.
type Link interface {
	Send(ctx context.Context, node string, request *wire.Request) error
	Cancel(ctx context.Context, node string, cancel *wire.Cancel) error
}

// Blobs reads the store: tokenizers and templates, by digest.
type Blobs interface {
	Blob(ctx context.Context, digest state.Digest) ([]byte, error)
}

// Meter counts what happens to requests. Calls are cheap and never block.
type Meter interface {
	Waiting(model string, delta int)
	Running(model string, delta int)
	// Output tells of a choice's new tokens; since is the time from the choice's
	// last ones, or from its request's arrival when first.
	Output(model string, tokens int, first bool, since time.Duration)
	Ended(model string, summary Summary)
	Fault(model, kind string)
}

// Summary is what the meter learns of a request that ended.
type Summary struct {
	Err       error // nil: every choice finished
	Finishes  []wire.FinishReason
	Prompt    int
	Cached    int
	Outputs   []int // tokens of each choice
	MaxTokens int
	Queue     time.Duration // accepted to sent
	Prefill   time.Duration // sent to first token
	Decode    time.Duration // first token to last
	Total     time.Duration
}

// Errors that Submit and Stream.Run wrap; the API maps each to a status.
var (
	ErrQueueFull   = errors.New("the queue is full, try again later")
	ErrDraining    = errors.New("this head is shutting down")
	ErrUnknown     = errors.New("no such model")
	ErrDeadline    = errors.New("the request's deadline passed")
	ErrUnavailable = errors.New("no replica took the request before its deadline")
	ErrSlowReader  = errors.New("the client reads too slowly")
	ErrInvalid     = errors.New("the request can't be served")
	ErrBusy        = errors.New("busy")
	ErrSuperseded  = errors.New("the client reads this request on another connection")
	ErrNotFound    = errors.New("no request of this id with this key and body")
	ErrReplica     = errors.New("the request was refused by its replicas too often")
	ErrPoison      = errors.New("the request ends whatever replica runs it, alone too: do not send it again")
	ErrInternal    = errors.New("internal error")
)

// QueueFullError says when trying again may help. It wraps ErrQueueFull.
type QueueFullError struct {
	Deployment string
	Waiting    int
	RetryAfter time.Duration
}

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("%d requests for %s are waiting: %v", e.Waiting, e.Deployment, ErrQueueFull)
}

func (e *QueueFullError) Unwrap() error { return ErrQueueFull }

// Request is what the API hands in: checked, tokenized, complete.
type Request struct {
	ID         wire.RequestID
	Attempt    uint32 // the last one known to have been sent; 0 for a new request
	Deployment string
	Tokenizer  Tokenizer
	Prompt     []int32
	Choices    int
	Params     sample.Params
	Priority   int
	Deadline   time.Time // when it must have ended; zero: none
	WaitUntil  time.Time // when it must have been sent; zero: Deadline
	Owner      [32]byte  // SHA-256 of the API key
	Key        string    // the key's name: requests of one share their part of a busy deployment
	Weight     float64   // how great that part is beside other keys'; 0: 1
	Session    string    // requests of one session go to one replica if they can; "": none
	Body       [32]byte  // SHA-256 of the body
	Trace      *trace.Request
	// Seen[c] is how much of choice c the client of a resumed stream has; nil for
	// a new request. What it has is computed or collected again, and not given.
	Seen []Seen
	// Turn is held while one of the streams that share it is at work, as those of one
	// answer do; nil: a mutex of its own.
	Turn *sync.Mutex
}

// waitUntil is how long the request may wait for a replica.
func (r *Request) waitUntil() time.Time {
	if r.WaitUntil.IsZero() || (!r.Deadline.IsZero() && r.Deadline.Before(r.WaitUntil)) {
		return r.Deadline
	}
	return r.WaitUntil
}

// cost is what the request is thought to take, in tokens computed.
func (r *Request) cost() float64 {
	return float64(len(r.Prompt) + r.Choices*min(max(r.Params.MaxTokens, 1), expectedTokens))
}

// expectedTokens bounds what a request is charged for its answer before it is known: few
// use all that they may.
const expectedTokens = 256

// Event is the next piece of one choice.
type Event struct {
	Choice   int
	Offset   int       // output tokens of the choice up to here
	At       time.Time // when its newest token came
	Text     string
	Tokens   []int32
	Logprobs []wire.Logprob
	Prompt   []wire.Logprob // once, with the first event of choice 0
	Cached   int            // prompt tokens found in the prefix cache, with the first event
	Finish   wire.FinishReason
	// What ended a choice whose Finish is stop: a stop string, or a token of
	// stop_token_ids; neither for the model's own end.
	StopString string
	StopToken  *int32
}

// Tokenizer is what dispatch and the API need of runtime/token's.
type Tokenizer interface {
	Encode(text string, addSpecial bool) ([]int32, error)
	Decode(ids []int32, skipSpecial bool) string
	Token(id int32) string
	Bytes(id int32) []byte
	NewDecoder(skipSpecial bool, prompt []int32) Decoder
}

// Decoder turns one choice's tokens into text. Push gives only text that is
// complete and never taken back; Flush gives what remains at the end.
type Decoder interface {
	Push(id int32) string
	Flush() string
}
