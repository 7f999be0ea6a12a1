package dispatch

import (
	"math"
	"time"

	"manta/head/route"
	"manta/head/state"
	"manta/runtime/kv"
)

// workHalves is how long it takes for half of a replica's past work to be forgotten.
const workHalves = 30 * time.Second

// fade lets the replicas' past work count less. It holds mu.
func (d *Dispatcher) fade(now time.Time) {
	since := now.Sub(d.faded)
	if since < time.Second {
		return
	}
	d.faded = now
	factor := math.Exp2(-since.Seconds() / workHalves.Seconds())
	for id, load := range d.loads {
		load.Work *= factor
		d.loads[id] = load
	}
}

// hits tells what each replica has of a request's prompt. It holds mu.
func (d *Dispatcher) hits(view *state.View, s *Stream) map[string]int {
	var hits map[string]int
	for id, cached := range d.cached {
		replica, ok := view.Replicas[id]
		if !ok || replica.Deployment != s.request.Deployment || replica.Epoch != cached.Epoch() {
			continue
		}
		if hit := cached.Hit(s.chain, len(s.request.Prompt)); hit > 0 {
			if hits == nil {
				hits = map[string]int{}
			}
			hits[id] = hit
		}
	}
	return hits
}

// charge counts a request as a replica's. It holds mu.
func (d *Dispatcher) charge(s *Stream, replica state.Replica, choices, hit int) {
	load := d.loads[replica.ID]
	load.Outstanding += choices
	s.charged, s.repaid = choices, nil
	s.pending = len(s.request.Prompt) - hit
	load.Pending += s.pending
	load.Work += float64(s.pending) + s.cost - float64(len(s.request.Prompt))
	d.loads[replica.ID] = load
	if len(s.chain) == 0 || len(replica.Blocks) == 0 {
		return
	}
	if fresh := s.chain[hit/kv.BlockTokens:]; len(fresh) > 0 && d.toldBlocks+len(fresh) <= maxTold {
		d.toldBlocks += len(fresh)
		d.told = append(d.told, route.Sent{Replica: replica.ID, Epoch: replica.Epoch, Blocks: fresh})
		select {
		case d.toTell <- struct{}{}:
		default:
		}
	}
	d.holds(replica).Sent(s.chain)
}

// holds gives what this head believes a replica to have. It holds mu.
func (d *Dispatcher) holds(replica state.Replica) *route.Cached {
	cached := d.cached[replica.ID]
	if cached == nil || cached.Epoch() != replica.Epoch {
		blocks := 0
		for _, n := range replica.Blocks {
			blocks = max(blocks, n)
		}
		cached = route.NewCached(replica.Epoch, min(blocks, maxCached))
		d.cached[replica.ID] = cached
	}
	return cached
}

// Told waits until there is something to tell other heads of the prompts that were sent.
func (d *Dispatcher) Told() <-chan struct{} { return d.toTell }

// Tell gives what was sent since the last call.
func (d *Dispatcher) Tell() []route.Sent {
	d.mu.Lock()
	defer d.mu.Unlock()
	told := d.told
	d.told, d.toldBlocks = nil, 0
	return told
}

// Hear takes what another head has sent: prompts go where it sent theirs.
func (d *Dispatcher) Hear(told []route.Sent) {
	view := d.views.View()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, sent := range told {
		if replica, ok := view.Replicas[sent.Replica]; ok && replica.Epoch == sent.Epoch && len(replica.Blocks) > 0 {
			d.holds(replica).Sent(sent.Blocks)
		}
	}
}

// maxTold bounds the blocks that wait to be told of.
const maxTold = 1 << 14

// maxCached bounds the blocks that this head remembers of a replica.
const maxCached = 1 << 16

// begun tells that a request's prompt is computed.
func (d *Dispatcher) begun(s *Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	to, _ := s.mailbox.where()
	if to == nil {
		return
	}
	load := d.loads[to.replica]
	load.Pending, s.pending = max(0, load.Pending-s.pending), 0
	d.loads[to.replica] = load
}

// rate is how fast a deployment ends choices, to guess when trying again helps.
type rate struct {
	last     time.Time
	interval float64 // seconds between ends, a moving mean
}

func (r *rate) count(now time.Time) {
	if !r.last.IsZero() {
		const weight = 0.1
		r.interval += weight * (now.Sub(r.last).Seconds() - r.interval)
	}
	r.last = now
}

// wait guesses how long so many take, between one second and one minute.
func (r *rate) wait(waiting int) time.Duration {
	seconds := math.Ceil(r.interval * float64(waiting))
	return time.Duration(min(max(seconds, 1), 60)) * time.Second
}
