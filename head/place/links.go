package place

import "slices"

// linkLooks bounds the groups that are looked at for one stage. Eight devices have
// at most 70; with many more the groups come in the order of their devices' memory,
// and the best of the first so many is taken.
const linkLooks = 1 << 14

// linked tells whether anything is known about the links of a machine's devices.
func (m *machine) linked() bool {
	return slices.ContainsFunc(m.best, func(s *slot) bool { return len(s.device.Links) > 0 })
}

// speed is the link's between two devices, bytes a second; 0: only the host joins them.
func (s *slot) speed(other *slot) int64 {
	for _, l := range s.device.Links {
		if l.To == other.device.ID {
			return l.Speed
		}
	}
	return 0
}

// linkage is how well a group of devices is linked: a sum over all ranks waits for
// the slowest pair, so that counts first.
type linkage struct{ slowest, sum int64 }

func (l linkage) better(than linkage) bool {
	return l.slowest > than.slowest || l.slowest == than.slowest && l.sum > than.sum
}

// with is the linkage of a group that a device joins.
func (l linkage) with(group []*slot, at *slot) linkage {
	for _, other := range group {
		speed := min(other.speed(at), at.speed(other))
		l.slowest, l.sum = min(l.slowest, speed), l.sum+speed
	}
	return l
}

// alone is the linkage of no pair.
var alone = linkage{slowest: 1<<63 - 1}

// wellLinked gives each stage of so many tensor ranks its devices, one stage after
// the other the best linked group of those left; of equal ones that which comes
// first in the order of free. It gives nil where there are too few.
func wellLinked(free []*slot, tensor, stages int) []*slot {
	if len(free) < tensor*stages {
		return nil
	}
	free = slices.Clone(free)
	var all []*slot
	for range stages {
		group := bestGroup(free, tensor)
		free = slices.DeleteFunc(free, func(s *slot) bool { return slices.Contains(group, s) })
		all = append(all, group...)
	}
	return all
}

// bestGroup looks at the groups of n devices in the order of free. A part of a group
// whose slowest link is below the best's, or can't gain on it, is not grown.
func bestGroup(free []*slot, n int) []*slot {
	var best, group []*slot
	var found linkage
	looks := 0
	var grow func(from int, l linkage)
	grow = func(from int, l linkage) {
		if len(group) == n {
			looks++
			if best == nil || l.better(found) {
				best, found = slices.Clone(group), l
			}
			return
		}
		for i := from; i <= len(free)-(n-len(group)) && looks < linkLooks; i++ {
			next := l.with(group, free[i])
			if best != nil && next.slowest < found.slowest {
				looks++
				continue
			}
			group = append(group, free[i])
			grow(i+1, next)
			group = group[:len(group)-1]
		}
	}
	grow(0, alone)
	return best
}
