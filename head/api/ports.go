package api

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"manta/head/dispatch"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
)

// Views gives the newest View; it is immutable.
type Views interface {
	View() *state.View
}

// Texts gives what turns a deployment's text into tokens and back. It may read
// the store and build a tokenizer on the first call, and keeps what it made.
type Texts interface {
	Text(ctx context.Context, deployment state.Deployment) (*Text, error)
}

// Text is a deployment's tokenizer and template. It is immutable and shared.
type Text struct {
	Tokenizer  dispatch.Tokenizer
	Template   Template // nil: the model has none
	Vocabulary int
	EndToken   int32 // the tokenizer's own; -1: none
}

// Template renders messages to a prompt. Its errors are runtime/chat's.
type Template interface {
	Render(conversation Conversation) (string, error)
	ReadsTools() bool
}

// Conversation is what a chat template sees. Every raw message is valid JSON.
type Conversation struct {
	Messages             json.RawMessage
	Tools                json.RawMessage // nil: none
	Documents            json.RawMessage // nil: none
	AddGenerationPrompt  bool
	ContinueFinalMessage bool
	Kwargs               map[string]json.RawMessage
	Now                  time.Time
}

// Submitter queues requests: the Dispatcher.
type Submitter interface {
	Submit(request dispatch.Request) (*dispatch.Stream, error)
	Draining() bool
	Drain(ctx context.Context) error
	Waiting(deployment string) int
}

// Cluster changes what the cluster runs. A write returns when it is committed.
type Cluster interface {
	Deploy(ctx context.Context, deployment state.Deployment) (state.Deployment, error)
	// Change commits one change of the state.
	Change(ctx context.Context, change state.Change) error
	// Leader is the id of the head that leads, or "" when none is known.
	Leader() string
	// Waiting tells what finds no place, and why.
	Waiting(ctx context.Context) ([]Waiting, error)
	// Fresh returns when this head has applied every write that was acknowledged
	// before the call, on any head; without a leader it fails.
	Fresh(ctx context.Context) error
}

// Heard gives who lives, as this head knows, and what nodes told it last.
type Heard interface {
	// Lives is false for a head that gossip has given up.
	Lives(head string) bool
	// Report is false for a node that this head has not heard of lately.
	Report(node string) (wire.Report, bool)
}

// Logs reads what members log.
type Logs interface {
	// Logs gives the newest lines of one member's log that contain a text.
	Logs(ctx context.Context, role trust.Role, id string, lines int, containing string) ([]string, error)
}

// ErrNoLeader is wrapped by writes that found no leader in time; the client may
// try again.
var ErrNoLeader = errors.New("the cluster has no leader at the moment")
