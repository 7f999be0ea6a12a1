package state

import (
	"crypto/rand"
	"errors"
	"slices"
)

// CommandID names a command for good: whoever does not hear what became of one
// sends it again, and it takes effect once.
type CommandID [16]byte

// namesCommands is the first version whose commands have ids.
const namesCommands = 2

// NewCommandID draws one, or gives none while a head does not know what it is for.
func (s *Server) NewCommandID() (id CommandID) {
	if s.allRead(namesCommands) == nil {
		rand.Read(id[:])
	}
	return id
}

// maxOutcomes bounds the commands that are remembered. They are sent again for a
// few seconds at most.
const maxOutcomes = 1024

// outcome is what became of a command.
type outcome struct {
	ID      CommandID `cbor:"1,keyasint"`
	Refusal string    `cbor:"2,keyasint,omitempty"` // name in Refusals; empty: it was applied
	Text    string    `cbor:"3,keyasint,omitempty"`
}

// Refusals are the errors that keep their meaning between heads, by name.
var Refusals = map[string]error{
	"unknown": ErrUnknown, "stale": ErrStale, "version": ErrVersion, "malformed": ErrMalformed, "leader": ErrNotLeader,
	"full":  ErrFull,
	"other": errOther,
}

// errOther is a refusal without a name of its own.
var errOther = errors.New("state: refused")

// RefusalOf gives the name of an error that is one of Refusals.
func RefusalOf(err error) (name string, ok bool) {
	for name, refusal := range Refusals {
		if errors.Is(err, refusal) {
			return name, true
		}
	}
	return "", false
}

// Refused gives an error that came as text its meaning back.
type Refused struct {
	Name, Text string
}

func (r *Refused) Error() string { return r.Text }

// Unwrap gives the one of Refusals.
func (r *Refused) Unwrap() error { return Refusals[r.Name] }

func (o outcome) err() error {
	if o.Refusal == "" {
		return nil
	}
	return &Refused{o.Refusal, o.Text}
}

// remembered finds what became of a command.
func (v *View) remembered(id CommandID) (outcome, bool) {
	i := slices.IndexFunc(v.Outcomes, func(o outcome) bool { return o.ID == id })
	if id == (CommandID{}) || i < 0 {
		return outcome{}, false
	}
	return v.Outcomes[i], true
}

// remember adds what became of a command.
func (v *View) remember(id CommandID, err error) {
	if id == (CommandID{}) {
		return // of a program that did not name them yet
	}
	o := outcome{ID: id}
	if err != nil {
		name, ok := RefusalOf(err)
		if !ok {
			name = "other"
		}
		o.Refusal, o.Text = name, err.Error()
	}
	all := slices.Concat(v.Outcomes, []outcome{o})
	v.Outcomes = all[max(0, len(all)-maxOutcomes):]
}
