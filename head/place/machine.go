package place

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"manta/head/state"
	"manta/node/wire"
)

// A machine is a living node as a place for shards.
type machine struct {
	node    string
	labels  map[string]string
	speaks  int     // the protocol of its ranks: those of a group speak one
	slots   []*slot // all of its devices
	best    []*slot // those of the best kind: shards go to these alone
	shards  int     // placed on it, of all deployments
	drained bool    // an operator takes it out: what has no other place may stay
	going   bool    // it stops soon, or its drain is forced: nothing may stay
	leaving bool    // for good
	frozen  bool    // its peers can't reach it: no place while there is another
}

// A slot is a device as a place for ranks.
type slot struct {
	*machine
	device wire.Device
	used   int64 // bytes placed
	// mine counts the ranks of the deployment at hand that keep further replicas
	// of it off this device.
	mine int
	// taken counts the ranks of the replica at hand that shall stand here.
	taken int
}

// kindOrder puts GPUs before CPUs.
func kindOrder(a, b string) int { return -cmp.Compare(a, b) }

// settled gives the devices that a node tells of, with the speeds that are known of
// them already where what it tells may be the same by how much measurements wobble.
func settled(told []wire.Device, known []state.Device) []wire.Device {
	devices := slices.Clone(told)
	for i := range devices {
		d := &devices[i]
		for _, k := range known {
			if k.ID == d.ID && k.Kind == d.Kind && k.Speed.Near(d.Speed) {
				d.Speed = k.Speed
			}
		}
	}
	return devices
}

func newMachine(report wire.Report, known state.Node, frozen bool) *machine {
	m := &machine{
		node: report.Node, labels: report.Labels, speaks: max(1, report.Protocol), drained: known.Drained, frozen: frozen,
		going: report.Draining || report.Leaving || known.Forced, leaving: report.Leaving,
	}
	for _, d := range settled(report.Devices, known.Devices) {
		m.slots = append(m.slots, &slot{machine: m, device: d})
	}
	slices.SortStableFunc(m.slots, func(a, b *slot) int {
		return cmp.Or(kindOrder(a.device.Kind, b.device.Kind), cmp.Compare(a.device.ID, b.device.ID))
	})
	for _, s := range m.slots {
		if s.device.Kind == m.slots[0].device.Kind {
			m.best = append(m.best, s)
		}
	}
	return m
}

func (s *slot) left() int64 { return s.device.Memory - s.used }

// slot finds the device of a placed shard; nil if node or device is gone.
func (p *planner) slot(s state.Placement) *slot {
	m := p.byNode[s.Node]
	if m == nil {
		return nil
	}
	for _, slot := range m.slots {
		if slot.device.ID == s.Device {
			return slot
		}
	}
	return nil
}

// occupy counts a replica's shards, or with -1 takes them off again.
func (p *planner) occupy(r state.Replica, sign int) {
	for _, shard := range r.Shards {
		if s := p.slot(shard); s != nil {
			s.used += int64(sign) * r.Takes(shard)
			s.shards += sign
		}
	}
}

// gone reports whether a shard's node is dead, or has no such device.
func (p *planner) gone(s state.Placement) bool { return !p.Unheard[s.Node] && p.slot(s) == nil }

// mixed reports whether the ranks of a replica speak several protocols: one of its
// nodes came back as another program.
func (p *planner) mixed(r state.Replica) bool {
	protocol := 0
	for _, shard := range r.Shards {
		if at := p.slot(shard); at != nil {
			if protocol = cmp.Or(protocol, at.speaks); protocol != at.speaks {
				return true
			}
		}
	}
	return false
}

// refuses says why a node takes no shard of a deployment. With anywhere a frozen
// one takes it rather than none.
func (m *machine) refuses(d state.Deployment, anywhere bool) error {
	switch {
	case m.frozen && !anywhere:
		return fmt.Errorf("its peers can't reach it")
	case m.going || m.drained:
		return fmt.Errorf("it is draining")
	case !d.At(m.node):
		return fmt.Errorf("%s is on %s only", d.Model, strings.Join(d.Homes, ", "))
	case len(m.slots) == 0:
		return fmt.Errorf("it has no device")
	}
	if len(d.NodeSelector) == 0 {
		return nil
	}
	for _, label := range slices.Sorted(maps.Keys(d.NodeSelector)) {
		if m.labels[label] != d.NodeSelector[label] {
			return fmt.Errorf("it lacks the label %s=%s", label, d.NodeSelector[label])
		}
	}
	return nil
}
