// Package limit holds the API keys' rates over all heads together, without asking
// anyone per request. Each head owns its part of a key's rate, limit ÷ voters; what
// it does not need it gives up for a short time to a Ledger, which lends it to a
// head that needs more. So at every moment the parts add up to no more than the
// limit, with and without a leader, and across elections:
//
//	part(head) = limit ÷ voters − given up + borrowed ≥ 0
//
// A head owns its Limiter; whoever leads owns a Ledger. The package does no I/O
// and reads no clock: callers pass the time.
package limit

import "time"

// bucket is a token bucket whose rate others change. It holds at most what its
// rate gives in a window, and at least one unit, so that a key which is idle
// here is not refused its first request.
type bucket struct {
	window time.Duration
	held   float64
	last   time.Time
	asked  float64 // units asked for since the last exchange, refused ones included
	demand float64 // units a second, of the last exchanges
}

// fill brings the bucket up to now at a rate in units a second.
func (b *bucket) fill(now time.Time, rate float64) {
	capacity := max(1, rate*b.window.Seconds())
	switch {
	case b.last.IsZero():
		b.held = capacity
	case now.After(b.last):
		b.held += rate * now.Sub(b.last).Seconds()
	}
	b.held, b.last = min(b.held, capacity), now
}

// wait is how long the bucket needs to hold so much.
func (b *bucket) wait(units, rate float64) time.Duration {
	if b.held >= units {
		return 0
	}
	if rate <= 0 {
		return b.window
	}
	return time.Duration((units - b.held) / rate * float64(time.Second))
}

// promise is a rate that is given up, or lent, until a time.
type promise struct {
	rate  float64
	until time.Time
}

// promises of one head to one ledger, or the other way round: the greatest that
// has not run out counts, so a later and smaller one takes nothing back early.
type promises []promise

func (p promises) at(now time.Time) float64 {
	rate := 0.0
	for _, one := range p {
		if one.until.After(now) {
			rate = max(rate, one.rate)
		}
	}
	return rate
}

// add appends a promise and drops those that have run out.
func (p promises) add(one promise, now time.Time) promises {
	kept := p[:0]
	for _, old := range p {
		if old.until.After(now) {
			kept = append(kept, old)
		}
	}
	if one.rate <= 0 {
		return kept
	}
	return append(kept, one)
}
