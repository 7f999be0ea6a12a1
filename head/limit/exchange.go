package limit

import (
	"math/rand/v2"
	"time"
)

// Ask is what a head tells the ledger every so often, and Answer what comes back.
// Giving up is safe however long a message takes: it ends at a time of the
// ledger's clock, and the head holds to it from an older reading of that clock.
type Ask struct {
	Head   string        `cbor:"1,keyasint"`
	Ledger uint64        `cbor:"2,keyasint"` // whose clock Until is of; 0: nothing is given up
	Until  time.Duration `cbor:"3,keyasint"`
	Parts  []Part        `cbor:"4,keyasint,omitempty"`
}

// Part is about one rate: what a head gives up or would borrow, or what it is lent.
type Part struct {
	Key  string  `cbor:"1,keyasint"`
	Unit Unit    `cbor:"2,keyasint"`
	Give float64 `cbor:"3,keyasint,omitempty"`
	Want float64 `cbor:"4,keyasint,omitempty"`
	Lent float64 `cbor:"5,keyasint,omitempty"`
}

// Answer comes from the ledger; a loan lasts LendFor from the asking on.
type Answer struct {
	Ledger uint64        `cbor:"1,keyasint"`
	Clock  time.Duration `cbor:"2,keyasint"`
	Parts  []Part        `cbor:"3,keyasint,omitempty"`
}

// Ask makes the next question. What it gives up is given up from now on, whether
// or not the question arrives.
func (l *Limiter) Ask(head string, now time.Time) Ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	ask := Ask{Head: head, Ledger: l.ledger, Until: l.clock + GiveFor}
	until := l.read.Add(GiveFor)
	if l.ledger == 0 || !until.After(now.Add(LendFor)) {
		ask.Ledger = 0 // the clock was read too long ago to lend by it
	}
	for id, a := range l.accounts {
		if now.Sub(a.used) > forgetAfter {
			delete(l.accounts, id)
			continue
		}
		b := &a.bucket
		asked := b.asked / Every.Seconds()
		b.demand, b.asked = max(asked, b.demand/2), 0
		part, need := a.limit/float64(l.voters), b.demand*spare
		switch {
		case need > part && a.limit > part:
			ask.Parts = append(ask.Parts, Part{Key: id.key, Unit: id.unit, Want: min(need, a.limit) - part})
		case need < part && ask.Ledger != 0:
			ask.Parts = append(ask.Parts, Part{Key: id.key, Unit: id.unit, Give: part - need})
			for ledger, p := range a.given { // drop what has run out
				if a.given[ledger] = p.add(promise{}, now); len(a.given[ledger]) == 0 {
					delete(a.given, ledger)
				}
			}
			a.given[l.ledger] = a.given[l.ledger].add(promise{part - need, until}, now)
		}
		b.fill(now, a.part(now, l.voters)) // what is given up is not saved up
	}
	return ask
}

// Take puts the answer to a question of the time asked to use.
func (l *Limiter) Take(answer Answer, asked, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The clock was read after asked; so a time of it comes no sooner here than
	// counted from now.
	l.ledger, l.clock, l.read = answer.Ledger, answer.Clock, now
	for _, p := range answer.Parts {
		a, ok := l.accounts[accountID{p.Key, p.Unit}]
		if !ok || p.Lent <= 0 {
			continue
		}
		a.bucket.fill(now, a.part(now, l.voters))
		a.borrows = a.borrows.add(promise{p.Lent, asked.Add(LendFor)}, now)
	}
}

// Ledger is what the heads have given up to the one that leads, and whom it lent
// that to. A new leader makes a new one. Its owner calls it from one goroutine at
// a time.
type Ledger struct {
	id    uint64
	start time.Time
	pools map[accountID]*pool
}

type pool struct {
	given, lent map[string]promises // by head
}

// NewLedger makes a ledger with nothing in it.
func NewLedger(now time.Time) *Ledger {
	return &Ledger{id: rand.Uint64() | 1, start: now, pools: map[accountID]*pool{}}
}

// Answer takes what a head gives up and lends it what others have given up for
// at least as long as the loan.
func (l *Ledger) Answer(ask Ask, now time.Time) Answer {
	answer := Answer{Ledger: l.id, Clock: now.Sub(l.start)}
	l.forget(now)
	for _, part := range ask.Parts {
		id := accountID{part.Key, part.Unit}
		p, ok := l.pools[id]
		if !ok {
			p = &pool{given: map[string]promises{}, lent: map[string]promises{}}
			l.pools[id] = p
		}
		if part.Give > 0 && ask.Ledger == l.id {
			p.given[ask.Head] = p.given[ask.Head].add(promise{part.Give, l.start.Add(ask.Until)}, now)
		}
		if part.Want <= 0 {
			continue
		}
		end := now.Add(LendFor)
		room := 0.0
		for _, given := range p.given {
			room += given.at(end)
		}
		for head, lent := range p.lent {
			if head != ask.Head {
				room -= lent.at(now)
			}
		}
		// A loan replaces the head's last one, which has not run out: the greater counts.
		if lent := min(part.Want, room); lent > 0 {
			p.lent[ask.Head] = p.lent[ask.Head].add(promise{lent, end}, now)
			answer.Parts = append(answer.Parts, Part{Key: part.Key, Unit: part.Unit, Lent: lent})
		}
	}
	return answer
}

// forget drops what has run out.
func (l *Ledger) forget(now time.Time) {
	for id, p := range l.pools {
		for _, side := range []map[string]promises{p.given, p.lent} {
			for head, all := range side {
				if side[head] = all.add(promise{}, now); len(side[head]) == 0 {
					delete(side, head)
				}
			}
		}
		if len(p.given)+len(p.lent) == 0 {
			delete(l.pools, id)
		}
	}
}
