package limit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// network delivers questions and answers late, in any order, or never.
type network struct {
	draw  *rand.Rand
	queue []message
}

type message struct {
	at  time.Time
	run func(time.Time)
}

func (n *network) send(now time.Time, run func(time.Time)) {
	if n.draw.IntN(8) == 0 {
		return // lost
	}
	n.queue = append(n.queue, message{now.Add(time.Duration(n.draw.IntN(900)) * time.Millisecond), run})
}

func (n *network) deliver(now time.Time) {
	due := n.queue
	n.queue = nil
	for _, m := range due {
		if m.at.After(now) {
			n.queue = append(n.queue, m)
		} else {
			m.run(now)
		}
	}
}

// Whatever the demand, the delays and the elections: in no stretch of time do all
// heads together let more through than the limit allows, plus one window that was
// saved up and one request a head.
func TestHeadsTogetherKeepTheLimit(t *testing.T) {
	const heads, limit = 3, 10.0
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			draw := rand.New(rand.NewPCG(seed, 5))
			net := network{draw: draw}
			now := time.Unix(1000, 0)
			ledger := NewLedger(now)
			var limiters []*Limiter
			for range heads {
				limiters = append(limiters, New(heads))
			}
			rates := Rates{Requests: limit}
			demand := [heads]int{}
			var admitted []time.Time
			for tick := range 3000 { // 10 ms each
				now = now.Add(10 * time.Millisecond)
				if tick%300 == 0 {
					for h := range demand {
						demand[h] = draw.IntN(60) * draw.IntN(2)
					}
				}
				if draw.IntN(500) == 0 {
					ledger = NewLedger(now) // another leader
				}
				for h, l := range limiters {
					if draw.IntN(100) < demand[h] {
						if _, ok := l.Admit("k", rates, now); ok {
							admitted = append(admitted, now)
						}
					}
					if tick%50 == h {
						asked, ask, at := now, l.Ask(fmt.Sprint(h), now), ledger
						net.send(now, func(now time.Time) {
							answer := at.Answer(ask, now)
							net.send(now, func(now time.Time) { l.Take(answer, asked, now) })
						})
					}
				}
				net.deliver(now)
			}
			for i := range admitted {
				for j := i; j < len(admitted); j++ {
					stretch := admitted[j].Sub(admitted[i]).Seconds()
					if n, most := float64(j-i+1), limit*stretch+limit+heads; n > most+1e-6 {
						t.Fatalf("%v requests in %.2f s, at most %.1f", n, stretch, most)
					}
				}
			}
		})
	}
}

// A head that has all the demand gets nearly all of the rate: what the idle heads
// give up is lent to it.
func TestIdleHeadsLend(t *testing.T) {
	const heads, limit = 3, 30.0
	now := time.Unix(1000, 0)
	ledger := NewLedger(now)
	var limiters []*Limiter
	for range heads {
		limiters = append(limiters, New(heads))
	}
	rates := Rates{Requests: limit}
	for _, l := range limiters {
		l.Admit("k", rates, now)
	}
	admitted := 0
	for tick := range 2000 {
		now = now.Add(10 * time.Millisecond)
		for range 2 {
			if _, ok := limiters[0].Admit("k", rates, now); ok && tick >= 1000 {
				admitted++
			}
		}
		for h, l := range limiters {
			if tick%50 == h {
				l.Take(ledger.Answer(l.Ask(fmt.Sprint(h), now), now), now, now)
			}
			if h > 0 && tick%300 == 0 {
				l.Admit("k", rates, now) // hardly anything
			}
		}
	}
	if perSecond := float64(admitted) / 10; perSecond < 0.8*limit || perSecond > limit+0.1 {
		t.Errorf("%.1f requests/s of %v", perSecond, limit)
	}
}

// Tokens are spent after they were computed; the debt is paid before the next request.
func TestTokensAreADebt(t *testing.T) {
	l, now, rates := New(1), time.Unix(1000, 0), Rates{Tokens: 10}
	if _, ok := l.Admit("k", rates, now); !ok {
		t.Fatal("the first request is refused")
	}
	l.Spend("k", rates, 620, now)
	if retry, ok := l.Admit("k", rates, now); ok || retry < 2*time.Second || retry > 3*time.Second {
		t.Fatalf("in debt: %v %v", retry, ok)
	}
	if _, ok := l.Admit("other", rates, now); !ok {
		t.Fatal("another key pays for it")
	}
	if _, ok := l.Admit("k", rates, now.Add(2100*time.Millisecond)); !ok {
		t.Fatal("the debt is paid")
	}
}
