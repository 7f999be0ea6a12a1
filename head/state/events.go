package state

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxEvents bounds the events that the state keeps; the oldest go first.
const maxEvents = 256

// An Event says what became of something, and why. Apply makes it from the
// command, so every head has the same ones and an election loses none.
type Event struct {
	At      time.Time `cbor:"1,keyasint"`
	Warning bool      `cbor:"2,keyasint,omitempty"`
	Reason  string    `cbor:"3,keyasint"` // one word
	Kind    string    `cbor:"4,keyasint"` // deployment, replica, node, head
	Name    string    `cbor:"5,keyasint"`
	Message string    `cbor:"6,keyasint,omitempty"`
}

// record adds events, oldest first.
func (d *draft) record(events ...Event) {
	if len(events) == 0 {
		return
	}
	all := slices.Concat(d.View.Events, events)
	d.View.Events = all[max(0, len(all)-maxEvents):]
}

// events gives those of a change, which before has not seen.
func (c Change) events(before *View, at time.Time) []Event {
	one := func(reason, kind, name, format string, a ...any) []Event {
		return []Event{{At: at, Reason: reason, Kind: kind, Name: name, Message: fmt.Sprintf(format, a...)}}
	}
	switch {
	case c.PutDeployment != nil:
		d := c.PutDeployment
		if old, ok := before.Deployments[d.Name]; ok {
			if old.Version = d.Version; old.sameReplicas(*d) && old.Replicas == d.Replicas && old.Auto == d.Auto {
				return nil
			}
			return one("Updated", "deployment", d.Name, "%s, %s", d.Model, replicas(d.Replicas, d.Auto))
		}
		return one("Created", "deployment", d.Name, "%s, %s", d.Model, replicas(d.Replicas, d.Auto))
	case c.DeleteDeployment != "":
		return one("Deleted", "deployment", c.DeleteDeployment, "")
	case c.Scale != nil:
		return one("Scaled", "deployment", c.Scale.Deployment, "to %s", replicas(c.Scale.Replicas, c.Scale.Auto))
	case c.StartReplica != nil:
		r := c.StartReplica.Replica
		reason := "Placed"
		if c.StartReplica.After != 0 {
			reason = "Restarted"
		}
		return one(reason, "replica", r.ID, "on %s", strings.Join(r.Nodes(), ", "))
	case c.SetPhase != nil && phaseReasons[c.SetPhase.Phase] != "":
		p := c.SetPhase
		events := one(phaseReasons[p.Phase], "replica", p.Replica, "%.512s", p.Reason)
		events[0].Warning = p.Phase == Failed
		return events
	case c.DeleteReplica != "":
		return one("Removed", "replica", c.DeleteReplica, "")
	case c.PutNode != nil:
		if _, ok := before.Nodes[c.PutNode.ID]; !ok {
			return one("Joined", "node", c.PutNode.ID, "%s", counted(len(c.PutNode.Devices), "device"))
		}
	case c.DrainNode != nil && c.DrainNode.Drained != before.Nodes[c.DrainNode.ID].Drained:
		if c.DrainNode.Drained {
			return one("Drained", "node", c.DrainNode.ID, "it takes no shards")
		}
		return one("Undrained", "node", c.DrainNode.ID, "")
	case c.DeleteNode != "":
		return one("Left", "node", c.DeleteNode, "")
	case c.PutHead != nil:
		if _, ok := before.Heads[c.PutHead.ID]; !ok {
			return one("Joined", "head", c.PutHead.ID, "API on %s", c.PutHead.API)
		}
	case c.DeleteHead != "":
		return one("Left", "head", c.DeleteHead, "")
	}
	return nil
}

// phaseReasons are the phases that are events.
var phaseReasons = map[Phase]string{Ready: "Ready", Draining: "Draining", Failed: "Failed"}

func replicas(n int, auto bool) string {
	if auto {
		return "as many replicas as fit"
	}
	return counted(n, "replica")
}

func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// Nodes lists the nodes of a replica's shards, each once.
func (r Replica) Nodes() []string {
	var nodes []string
	for _, s := range r.Shards {
		if !slices.Contains(nodes, s.Node) {
			nodes = append(nodes, s.Node)
		}
	}
	return nodes
}
