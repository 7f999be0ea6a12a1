package limit

import (
	"sync"
	"time"
)

// Unit is what a rate counts.
type Unit int

const (
	Requests Unit = iota // a second
	Tokens               // a second; limits are per minute
)

// windows are how far a bucket of each unit may save up.
var windows = map[Unit]time.Duration{Requests: time.Second, Tokens: time.Minute}

// Rates are a key's limits in units a second over all heads; 0: none.
type Rates struct{ Requests, Tokens float64 }

const (
	// GiveFor is how long what is given up stays given up, counted on the ledger's
	// clock, and LendFor how long a loan lasts. An exchange is due well within both.
	GiveFor = 2500 * time.Millisecond
	LendFor = time.Second
	// Every is the time between two exchanges.
	Every = 500 * time.Millisecond
	// spare is kept of what the demand was, so that a head that gives up a part
	// bears a little more demand than it had.
	spare = 1.5
	// forgetAfter is how long a key is remembered that nobody uses.
	forgetAfter = 2 * time.Minute
)

type account struct {
	unit    Unit
	limit   float64
	bucket  bucket
	given   map[uint64]promises // by ledger: each lends what it was given
	borrows promises
	used    time.Time
}

func (a *account) part(now time.Time, voters int) float64 {
	rate := a.limit/float64(voters) + a.borrows.at(now)
	for _, p := range a.given {
		rate -= p.at(now)
	}
	return max(0, rate)
}

type accountID struct {
	key  string
	unit Unit
}

// Limiter is one head's part of every key's rate. It is safe for concurrent use.
type Limiter struct {
	mu       sync.Mutex
	voters   int                    // guarded by mu
	accounts map[accountID]*account // guarded by mu
	ledger   uint64                 // guarded by mu: whose clock was read last; 0: none
	clock    time.Duration          // guarded by mu: what it said
	read     time.Time              // guarded by mu: when that arrived
}

// New makes a limiter of a head that is one of so many voters.
func New(voters int) *Limiter {
	return &Limiter{voters: max(1, voters), accounts: map[accountID]*account{}}
}

// SetVoters tells of a change of the cluster.
func (l *Limiter) SetVoters(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.voters = max(1, n)
}

// account brings the account of a key up to now. It holds mu.
func (l *Limiter) account(key string, unit Unit, limit float64, now time.Time) (*account, float64) {
	id := accountID{key, unit}
	a, ok := l.accounts[id]
	if !ok {
		a = &account{unit: unit, bucket: bucket{window: windows[unit]}, given: map[uint64]promises{}}
		l.accounts[id] = a
	}
	a.limit, a.used = limit, now
	part := a.part(now, l.voters)
	a.bucket.fill(now, part)
	return a, part
}

// Admit takes one request off the key's rate, or says after how long trying again
// may help. A key that has spent its tokens waits until it has some.
func (l *Limiter) Admit(key string, rates Rates, now time.Time) (retry time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rates.Tokens > 0 {
		if a, part := l.account(key, Tokens, rates.Tokens, now); a.bucket.held <= 0 {
			return a.bucket.wait(1, part), false
		}
	}
	if rates.Requests > 0 {
		a, part := l.account(key, Requests, rates.Requests, now)
		a.bucket.asked++
		if a.bucket.held < 1 {
			return a.bucket.wait(1, part), false
		}
		a.bucket.held--
	}
	return 0, true
}

// Spend takes tokens off the key's rate; the debt is paid before the next request.
func (l *Limiter) Spend(key string, rates Rates, tokens int, now time.Time) {
	if rates.Tokens <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a, _ := l.account(key, Tokens, rates.Tokens, now)
	a.bucket.held -= float64(tokens)
	a.bucket.asked += float64(tokens)
}
