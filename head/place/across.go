package place

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"manta/head/state"
)

var errNoNode = errors.New("no node is ready")

// across finds places on several nodes that speak one protocol, the newest first; if
// an even part of each device is too little for a rank, then with a device for each.
func (s *search) across(id string) (r state.Replica, err error) {
	err = errNoNode
	speaks := map[int]bool{}
	for _, m := range s.p.machines {
		speaks[m.speaks] = true
	}
	for _, protocol := range slices.Backward(slices.Sorted(maps.Keys(speaks))) {
		for _, s.apart = range []bool{false, true} {
			if r, err = s.among(id, protocol); err == nil {
				break
			}
		}
		if s.apart = false; err == nil {
			return r, nil
		}
	}
	return r, err
}

// among gives stages to nodes one after the other, each where its fullest device
// has most memory left; tensor ranks are together on a node if any has room.
func (s *search) among(id string, protocol int) (state.Replica, error) {
	var slots []*slot
	defer func() { release(slots) }()
	for range s.d.Layout.Pipeline {
		stage := s.stage(s.d.Layout.Tensor, protocol)
		if stage == nil {
			// No node has room for all tensor ranks of a stage: they go apart, at the
			// cost of an all-reduce over the network in every layer.
			for range s.d.Layout.Tensor {
				stage = append(stage, s.stage(1, protocol)...)
			}
		}
		slots = append(slots, stage...)
		if len(stage) < s.d.Layout.Tensor {
			return state.Replica{}, fmt.Errorf("%d ranks find no device each", s.d.Layout.Ranks())
		}
	}
	return s.replica(id, slots)
}

// release takes back what stage took.
func release(slots []*slot) {
	for _, at := range slots {
		at.taken = 0
	}
}

// stage finds slots for so many ranks on one node, and takes them.
func (s *search) stage(ranks, protocol int) []*slot {
	var best []*slot
	var bestShare int64 = -1
	for _, m := range s.p.machines {
		if m.speaks != protocol || m.refuses(s.d, s.anywhere) != nil {
			continue
		}
		if slots, share := s.ranks(m, ranks, bestShare); slots != nil {
			best, bestShare = slots, share
		}
	}
	for _, at := range best {
		at.taken++
	}
	return best
}

// ranks finds slots for so many ranks on a node, if the least memory that one of
// them has is more than enough.
func (s *search) ranks(m *machine, ranks int, enough int64) (slots []*slot, share int64) {
	share = 1 << 62
	defer func() {
		for _, at := range slots {
			at.taken--
		}
		if share <= enough {
			slots = nil
		}
	}()
	for range ranks {
		var best *slot
		var bestShare int64 = -1
		for _, at := range m.best {
			if !s.takes(at) || at.taken > 0 && (s.apart || at.device.Kind != "cpu") {
				continue // ranks share a CPU, never a GPU
			}
			if part := at.left() / int64(at.taken+1); part > bestShare {
				best, bestShare = at, part
			}
		}
		if share = min(share, bestShare); share <= enough {
			return slots, share
		}
		slots = append(slots, best)
		best.taken++
	}
	return slots, share
}

// mend places the lost ranks of a replica and leaves the others, with the blocks
// that they have, so that their nodes keep what is loaded. The replica occupies
// nothing before and afterwards.
func (s *search) mend(was state.Replica) (state.Replica, bool) {
	r := was
	r.Shards = slices.Clone(was.Shards)
	var taken []*slot
	defer func() { release(taken) }()
	var lost []int
	protocol := 0
	for i, shard := range r.Shards {
		if at := s.p.slot(shard); at != nil && at.refuses(s.d, false) == nil {
			at.taken++
			taken = append(taken, at)
			if protocol = cmp.Or(protocol, at.speaks); protocol != at.speaks {
				return state.Replica{}, false // a node came back as another program
			}
		} else {
			lost = append(lost, i)
		}
	}
	if len(lost) == 0 || len(taken) == 0 {
		return state.Replica{}, false
	}
	for _, i := range lost {
		found := s.stage(1, protocol)
		taken = append(taken, found...)
		if len(found) == 0 {
			return state.Replica{}, false
		}
		r.Shards[i].Node, r.Shards[i].Device = found[0].node, found[0].device.ID
	}
	kind, takes := "", map[*slot]int64{}
	for _, shard := range r.Shards {
		at := s.p.slot(shard)
		takes[at] += r.Takes(shard)
		if kind = cmp.Or(kind, at.device.Kind); at.device.Kind != kind || at.left() < takes[at] {
			return state.Replica{}, false
		}
	}
	return r, true
}
