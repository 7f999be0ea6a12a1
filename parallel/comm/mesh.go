// Package comm combines what the ranks of a replica each hold a part of: sums and
// gathers across tensor ranks, hidden rows and sampled tokens between stages. It
// implements the Reducer that kernels declares.
//
// Ranks of one process hand each other memory; to others a Carrier takes
// messages. Whatever the way, sums run in rank order, so a result's bits depend on
// the layout alone.
package comm

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"manta/parallel/link"
)

// Errors of a mesh.
var (
	// ErrClosed means that the epoch has ended: a rank is gone, or all are stopping.
	ErrClosed = errors.New("comm: closed")
	// ErrProtocol means that a message came that nobody can have sent in order.
	ErrProtocol = errors.New("comm: message out of order")
)

// A Place names a rank of a replica.
type Place struct {
	Stage int `cbor:"1,keyasint"`
	Rank  int `cbor:"2,keyasint"`
}

// A Carrier takes a message, head and then rows, to another node, whose Mesh of the
// same epoch gets it by Deliver; it keeps neither. Messages to one node arrive in the order of the calls or not at all;
// bulk ones (hidden rows, parts of sums) may overtake the others. It may block
// until the peer reads.
type Carrier func(node string, bulk bool, head, rows []byte) error

// Drawn is a token that the last stage sampled for a sequence.
type Drawn struct {
	Sequence uint64 `cbor:"1,keyasint"`
	Token    int32  `cbor:"2,keyasint"`
}

// kind says which of a rank's boxes a message is for.
type kind uint8

const (
	hidden kind = iota // rows for the next stage
	drawn              // tokens for the first stage
	part               // a tensor rank's part of a sum or a gather
	kinds
)

// message is what travels.
type message struct {
	Kind   kind          `cbor:"1,keyasint"`
	From   Place         `cbor:"2,keyasint"`
	To     Place         `cbor:"3,keyasint"`
	Number uint64        `cbor:"4,keyasint"` // the step, or for a part the how-manieth
	Data   link.Borrowed `cbor:"5,keyasint,omitempty"`
	Drawn  []Drawn       `cbor:"6,keyasint,omitempty"`
}

// boxKey names a queue of messages to one local rank.
type boxKey struct {
	kind     kind
	from, to Place
}

// Mesh joins all ranks of one epoch of a replica.
type Mesh struct {
	nodes   [][]string // [stage][rank]
	self    string
	carrier Carrier
	depth   int
	ended   chan struct{}
	end     sync.Once

	mu    sync.Mutex // guards what follows
	boxes map[boxKey]chan message
	free  [][]byte // for hidden rows: memory of this size is dear to clear and collect
}

// NewMesh joins ranks; nodes[stage][rank] is where each runs and self where the
// caller is. depth bounds the steps in flight. carrier is nil if all are here.
func NewMesh(nodes [][]string, self string, depth int, carrier Carrier) *Mesh {
	return &Mesh{
		nodes: nodes, self: self, carrier: carrier, depth: depth,
		ended: make(chan struct{}), boxes: make(map[boxKey]chan message),
	}
}

// Here gives the nodes of a mesh whose ranks all share a process.
func Here(stages, ranks int) [][]string {
	nodes := make([][]string, stages)
	for s := range nodes {
		nodes[s] = make([]string, ranks)
	}
	return nodes
}

// Close ends every wait with ErrClosed.
func (m *Mesh) Close() { m.end.Do(func() { close(m.ended) }) }

// box is the queue of one kind of message between two ranks. No rank can be more
// than depth steps, or one sum, ahead of another.
func (m *Mesh) box(key boxKey) chan message {
	m.mu.Lock()
	defer m.mu.Unlock()
	box, ok := m.boxes[key]
	if !ok {
		box = make(chan message, m.depth+2)
		m.boxes[key] = box
	}
	return box
}

// put gives a copy of a message to a rank, here or elsewhere.
func (m *Mesh) put(msg message) error {
	node := m.nodes[msg.To.Stage][msg.To.Rank]
	if node == m.self {
		msg.Drawn = slices.Clone(msg.Drawn)
		return m.accept(msg)
	}
	rows := msg.Data
	msg.Data = nil
	head, err := cbor.Marshal(msg)
	if err != nil {
		return fmt.Errorf("comm: encode: %w", err)
	}
	if len(rows) > 0 {
		head = link.Field(head, 5, len(rows))
	}
	select {
	case <-m.ended:
		return ErrClosed
	default:
	}
	if err := m.carrier(node, msg.Kind != drawn, head, rows); err != nil {
		return fmt.Errorf("comm: rank (%d, %d) on node %s: %w", msg.To.Stage, msg.To.Rank, node, err)
	}
	return nil
}

// accept queues a message with a copy of its rows for a local rank.
func (m *Mesh) accept(msg message) error {
	msg.Data = append(m.room(msg.Kind), msg.Data...)
	select {
	case m.box(boxKey{msg.Kind, msg.From, msg.To}) <- msg:
		return nil
	case <-m.ended:
		return ErrClosed
	default:
		return fmt.Errorf("%w: more than %d for rank (%d, %d)", ErrProtocol, m.depth+2, msg.To.Stage, msg.To.Rank)
	}
}

// room gives memory for rows, which keep takes back when nobody reads them any more.
func (m *Mesh) room(k kind) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.free)
	if k != hidden || n == 0 {
		return nil
	}
	b := m.free[n-1]
	m.free = m.free[:n-1]
	return b[:0]
}

func (m *Mesh) keep(rows []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rows != nil && len(m.free) < m.depth+2 {
		m.free = append(m.free, rows)
	}
}

// Deliver takes a message that another node's mesh of this epoch sent, and copies
// what it needs of it. It never blocks.
func (m *Mesh) Deliver(data []byte) error {
	var msg message
	if err := cbor.Unmarshal(data, &msg); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if msg.Kind >= kinds || !m.has(msg.From) || !m.has(msg.To) || m.nodes[msg.To.Stage][msg.To.Rank] != m.self {
		return fmt.Errorf("%w: from rank %v to rank %v", ErrProtocol, msg.From, msg.To)
	}
	return m.accept(msg)
}

func (m *Mesh) has(p Place) bool {
	return p.Stage >= 0 && p.Stage < len(m.nodes) && p.Rank >= 0 && p.Rank < len(m.nodes[p.Stage])
}

// take waits for the next message of a queue and checks its number.
func (m *Mesh) take(key boxKey, number uint64) (message, error) {
	select {
	case msg := <-m.box(key):
		if msg.Number != number {
			return msg, fmt.Errorf("%w: %d, want %d", ErrProtocol, msg.Number, number)
		}
		return msg, nil
	case <-m.ended:
		return message{}, ErrClosed
	}
}

// Pipe gives a rank its way to the stages before and after it.
func (m *Mesh) Pipe(stage, rank int) *Pipe {
	last := Place{Stage: len(m.nodes) - 1}
	return &Pipe{mesh: m, at: Place{stage, rank}, teller: last}
}

// Pipe is one rank's way to other stages.
type Pipe struct {
	mesh   *Mesh
	at     Place
	teller Place  // the rank that draws
	rows   []byte // received last
}

// Send gives a copy of the hidden rows to the same tensor rank of the next stage.
func (p *Pipe) Send(step uint64, rows []byte) error {
	to := Place{p.at.Stage + 1, p.at.Rank}
	return p.mesh.put(message{Kind: hidden, From: p.at, To: to, Number: step, Data: rows})
}

// Receive waits for the hidden rows of a step.
func (p *Pipe) Receive(step uint64) ([]byte, error) {
	p.mesh.keep(p.rows)
	msg, err := p.mesh.take(boxKey{hidden, Place{p.at.Stage - 1, p.at.Rank}, p.at}, step)
	p.rows = msg.Data
	return msg.Data, err
}

// Tell gives drawn tokens to every rank of the first stage but the teller.
func (p *Pipe) Tell(step uint64, tokens []Drawn) error {
	for rank := range p.mesh.nodes[0] {
		to := Place{0, rank}
		if to == p.at {
			continue
		}
		if err := p.mesh.put(message{Kind: drawn, From: p.at, To: to, Number: step, Drawn: tokens}); err != nil {
			return err
		}
	}
	return nil
}

// Hear gives what was told, step by step; without wait, false if nothing was.
func (p *Pipe) Hear(wait bool) (step uint64, tokens []Drawn, ok bool, err error) {
	box := p.mesh.box(boxKey{drawn, p.teller, p.at})
	select {
	case msg := <-box:
		return msg.Number, msg.Drawn, true, nil
	default:
		if !wait {
			return 0, nil, false, nil
		}
	}
	select {
	case msg := <-box:
		return msg.Number, msg.Drawn, true, nil
	case <-p.mesh.ended:
		return 0, nil, false, ErrClosed
	}
}
