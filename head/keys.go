package head

import (
	"cmp"
	"context"
	"sync"
	"time"

	"manta/head/api"
	"manta/head/limit"
	"manta/head/state"
	"manta/internal/trust"
	"manta/node/wire"
)

// keyring writes API keys to raft.
type keyring struct{ head *Head }

var _ api.Keyring = keyring{}

func (k keyring) PutKey(ctx context.Context, key state.Key) error {
	return k.head.apply(ctx, state.Change{PutKey: &key})
}

func (k keyring) DeleteKey(ctx context.Context, name string) error {
	return k.head.apply(ctx, state.Change{DeleteKey: name})
}

// lender is this head's ledger while it leads.
type lender struct {
	mu     sync.Mutex    // guards ledger
	ledger *limit.Ledger // nil: this head has not led since it last asked another
}

// ownLedger asks this head's own ledger, if it leads.
func (h *Head) ownLedger(ask limit.Ask) (limit.Answer, error) {
	h.lender.mu.Lock()
	defer h.lender.mu.Unlock()
	if !h.raft.Leading() {
		h.lender.ledger = nil
		return limit.Answer{}, state.ErrNotLeader
	}
	if h.lender.ledger == nil {
		h.lender.ledger = limit.NewLedger(time.Now())
	}
	return h.lender.ledger.Answer(ask, time.Now()), nil
}

func (h *Head) answerLend(_ context.Context, data []byte) ([]byte, error) {
	var ask limit.Ask
	if err := wire.Unmarshal(data, &ask); err != nil {
		return nil, err
	}
	answer, err := h.ownLedger(ask)
	if err != nil {
		return nil, err
	}
	return wire.Marshal(answer)
}

// lend tells the leader every so often what this head needs of the keys' rates and
// what it can do without. Without a leader each head keeps its own part.
func (h *Head) lend(ctx context.Context) error {
	ticker := time.NewTicker(limit.Every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		if seats, err := h.raft.Seats(); err == nil {
			voters := 0
			for _, seat := range seats {
				if seat.Voter {
					voters++
				}
			}
			h.rates.SetVoters(cmp.Or(voters, h.cfg.Expect))
		}
		asked := time.Now()
		answer, err := h.askLedger(ctx, h.rates.Ask(h.id.ID, asked))
		if err != nil {
			h.log.Debug("rates not exchanged", "error", err)
			continue
		}
		h.rates.Take(answer, asked, time.Now())
	}
}

func (h *Head) askLedger(ctx context.Context, ask limit.Ask) (limit.Answer, error) {
	answer, err := h.ownLedger(ask)
	leader := h.raft.Leader()
	if err == nil || leader == "" || leader == h.id.ID {
		return answer, err
	}
	data, err := wire.Marshal(ask)
	if err != nil {
		return answer, err
	}
	ctx, stop := context.WithTimeout(ctx, limit.Every)
	defer stop()
	reply, err := h.link.Call(ctx, trust.Identity{Role: trust.Head, ID: leader}, kindLend, data)
	if err != nil {
		return answer, err
	}
	return answer, wire.Unmarshal(reply, &answer)
}
