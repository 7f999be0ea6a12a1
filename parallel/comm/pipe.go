package comm

import (
	"fmt"
	"slices"
	"sync"
)

// Drawn is a token that the last stage sampled for a sequence.
type Drawn struct {
	Sequence uint64
	Token    int32
}

// Line joins the stages of a replica that live in one process.
type Line struct {
	stages, ranks int
	hidden        [][]chan message // [stage][tensor rank]: into that stage
	drawn         []chan message   // to the ranks of stage 0 but the one that draws
	ended         chan struct{}
	end           sync.Once
}

// message is what one step moves.
type message struct {
	step  uint64
	rows  []byte
	drawn []Drawn
}

// NewLine joins stages of so many tensor ranks each; depth bounds the steps
// between two stages.
func NewLine(stages, ranks, depth int) *Line {
	l := &Line{stages: stages, ranks: ranks, ended: make(chan struct{})}
	for range stages {
		var into []chan message
		for range ranks {
			into = append(into, make(chan message, depth))
		}
		l.hidden = append(l.hidden, into)
	}
	for rank := range ranks {
		if stages > 1 || rank > 0 {
			l.drawn = append(l.drawn, make(chan message, depth))
		}
	}
	return l
}

// Close ends every wait with ErrClosed.
func (l *Line) Close() { l.end.Do(func() { close(l.ended) }) }

// Pipe gives the side of one rank.
func (l *Line) Pipe(stage, rank int) *LinePipe { return &LinePipe{line: l, stage: stage, rank: rank} }

// LinePipe is one rank's side of a Line.
type LinePipe struct {
	line        *Line
	stage, rank int
}

func (l *Line) put(to chan<- message, m message) error {
	select {
	case to <- m:
		return nil
	case <-l.ended:
		return ErrClosed
	}
}

func (l *Line) take(from <-chan message) (message, error) {
	select {
	case m := <-from:
		return m, nil
	case <-l.ended:
		return message{}, ErrClosed
	}
}

// Send gives a copy of the hidden rows to the same tensor rank of the next stage.
func (p *LinePipe) Send(step uint64, rows []byte) error {
	return p.line.put(p.line.hidden[p.stage+1][p.rank], message{step: step, rows: slices.Clone(rows)})
}

// Receive waits for the hidden rows of a step.
func (p *LinePipe) Receive(step uint64) ([]byte, error) {
	m, err := p.line.take(p.line.hidden[p.stage][p.rank])
	if err == nil && m.step != step {
		err = fmt.Errorf("comm: hidden rows of step %d, want %d", m.step, step)
	}
	return m.rows, err
}

// Tell gives drawn tokens to every rank of the first stage.
func (p *LinePipe) Tell(step uint64, drawn []Drawn) error {
	for _, to := range p.line.drawn {
		if err := p.line.put(to, message{step: step, drawn: append([]Drawn{}, drawn...)}); err != nil {
			return err
		}
	}
	return nil
}

// Hear gives what was told, step by step; without wait, nil if nothing was.
func (p *LinePipe) Hear(wait bool) (uint64, []Drawn, error) {
	i := p.rank
	if p.line.stages == 1 {
		i-- // rank 0 draws, and is told nothing
	}
	from := p.line.drawn[i]
	if !wait {
		select {
		case m := <-from:
			return m.step, m.drawn, nil
		default:
			return 0, nil, nil
		}
	}
	m, err := p.line.take(from)
	return m.step, m.drawn, err
}
