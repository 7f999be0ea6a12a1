// Package device runs the ranks of a replica in a process of their own, which
// their node starts and watches: an illegal address or a lost device ends that
// process and nothing else. The process outlives epochs, so survivors of a lost
// rank keep their weights.
//
// It is the same program and speaks the same protocol. It has no server: it
// subscribes at its node's and publishes straight to heads and other ranks. Its
// node tells it what to run and where others are (wire.Orders) and hears how it is
// (wire.Told), both again and again; a process that falls silent is killed. Its
// standard input is its life line: when that ends, so does the process.
//
// A Launcher is the node's side, Run the process's. What ranks do is node/serve's,
// here as there. The package decides nothing about epochs: a process that died
// after it was ready is reported as loading, and the next epoch starts a new one.
package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"manta/internal/trust"
	"manta/node/serve"
	"manta/node/wire"
	"manta/parallel/link"
)

// Command is the name of the subcommand that calls Run.
const Command = "device-process"

// life is the first line of a process's standard input.
type life struct {
	Boot      string   `json:"boot"` // names this process among those before and after it
	Node      string   `json:"node"`
	Replica   string   `json:"replica"`
	Address   string   `json:"address"` // of the node's server
	Secrets   [][]byte `json:"secrets"`
	Devices   string   `json:"devices"`
	Downloads string   `json:"downloads"`
	Traces    string   `json:"traces,omitempty"`
}

// Identity is who a replica's device process on a node is.
func (l life) identity() trust.Identity { return trust.DeviceOf(l.Node, l.Replica) }

// maxJoins bounds the calls of other nodes that wait for ranks here.
const maxJoins = 64

// Receive says what becomes of the messages that reach the ranks of a server,
// whichever process it is in. Each handler only copies and enqueues.
func Receive(l *link.Link, s *serve.Server, log *slog.Logger) {
	Handle(l, log, s.Request, wire.KindRequest, trust.Head)
	Handle(l, log, s.Cancel, wire.KindCancel, trust.Head)
	for _, kind := range []string{wire.KindStep, wire.KindAnswer, wire.KindMesh} {
		l.Handle(kind, func(m link.Message) {
			var ranks wire.Ranks
			if err := Decode(m, &ranks, trust.Node, trust.Device); err != nil {
				log.Warn("message refused", "kind", kind, "from", m.From.String(), "error", err)
				return
			}
			s.Peer(m.From.Home().ID, kind, ranks)
		})
	}
	l.HandleCall(wire.KindPing, maxJoins, func(context.Context, link.Message) ([]byte, error) { return nil, nil })
	l.HandleCall(wire.KindJoin, maxJoins, func(ctx context.Context, m link.Message) ([]byte, error) {
		var ranks wire.Ranks
		if err := Decode(m, &ranks, trust.Node, trust.Device); err != nil {
			return nil, err
		}
		return nil, s.Join(ctx, ranks)
	})
}

// Handle decodes messages of a kind that certain roles may send.
func Handle[M any](l *link.Link, log *slog.Logger, take func(M), kind string, from ...trust.Role) {
	l.Handle(kind, func(m link.Message) {
		var message M
		if err := Decode(m, &message, from...); err != nil {
			log.Warn("message refused", "kind", kind, "from", m.From.String(), "error", err)
			return
		}
		take(message)
	})
}

var errRole = errors.New("device: this role may not send such messages")

// Decode reads a message that certain roles may send.
func Decode(m link.Message, message any, from ...trust.Role) error {
	for _, role := range from {
		if m.From.Role == role {
			return wire.Unmarshal(m.Data, message)
		}
	}
	return errRole
}

// Heads sends what a server has for them.
type Heads struct{ Link *link.Link }

var _ serve.Sender = Heads{}

// Send implements serve.Sender.
func (h Heads) Send(ctx context.Context, head, kind string, data []byte) error {
	ctx, stop := context.WithTimeout(ctx, sendTimeout)
	defer stop()
	return h.Link.Send(ctx, trust.Identity{Role: trust.Head, ID: head}, link.Tokens, kind, data)
}

// Peers reaches ranks on other nodes.
type Peers struct {
	Link *link.Link
	// Ranks is who runs a node's ranks of a replica.
	Ranks func(node, replica string) trust.Identity
}

var _ serve.Peers = Peers{}

// Send implements serve.Peers.
func (p Peers) Send(ctx context.Context, node, replica string, bulk bool, kind string, parts ...[]byte) error {
	lane := link.Control
	if bulk {
		lane = link.Bulk
	}
	return p.Link.Send(ctx, p.Ranks(node, replica), lane, kind, parts...)
}

// Call implements serve.Peers.
func (p Peers) Call(ctx context.Context, node, replica, kind string, data []byte) ([]byte, error) {
	to := trust.Identity{Role: trust.Node, ID: node}
	if replica != "" {
		to = p.Ranks(node, replica)
	}
	reply, err := p.Link.Call(ctx, to, kind, data)
	if errors.Is(err, link.ErrRemote) {
		err = fmt.Errorf("%w: %w", serve.ErrRefused, err)
	}
	return reply, err
}
