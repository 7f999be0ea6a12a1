package state

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Version is the newest of commands and snapshots that this program reads. It
// writes each command in the least version that has all that the command uses, and
// the leader writes none that a member can't read. A field that is later than
// version 1 says so: its tag since names the version that has it first.
const Version = 5

// Refusals of Apply; the state is unchanged, on every head alike.
var (
	// ErrUnknown: the command names something that does not exist.
	ErrUnknown = errors.New("state: unknown")
	// ErrStale: what the command was decided on has changed since.
	ErrStale = errors.New("state: stale")
	// ErrVersion: the command is of a later version than this program reads.
	ErrVersion = errors.New("state: version")
	// ErrMalformed: the command's bytes are no command.
	ErrMalformed = errors.New("state: malformed command")
)

// A Command changes the state: all of its changes, or none. It carries its own
// time, so that every head comes to the same result.
type Command struct {
	Version int       `cbor:"1,keyasint"`
	At      time.Time `cbor:"2,keyasint"`
	Changes []Change  `cbor:"3,keyasint"`
	// ID makes a command that is sent again take effect once.
	ID CommandID `cbor:"4,keyasint,omitzero" since:"2"`
}

// A Change sets exactly one of its fields.
type Change struct {
	PutDeployment    *Deployment   `cbor:"1,keyasint,omitempty"`
	DeleteDeployment string        `cbor:"2,keyasint,omitempty"`
	StartReplica     *StartReplica `cbor:"3,keyasint,omitempty"`
	SetPhase         *SetPhase     `cbor:"4,keyasint,omitempty"`
	DeleteReplica    string        `cbor:"5,keyasint,omitempty"`
	PutNode          *Node         `cbor:"6,keyasint,omitempty"`
	DrainNode        *DrainNode    `cbor:"7,keyasint,omitempty"`
	DeleteNode       string        `cbor:"8,keyasint,omitempty"`
	PutHead          *Head         `cbor:"9,keyasint,omitempty"`
	DeleteHead       string        `cbor:"10,keyasint,omitempty"`
	PutJob           *Job          `cbor:"11,keyasint,omitempty"`
	DeleteJob        string        `cbor:"12,keyasint,omitempty"`
	AddHome          *AddHome      `cbor:"13,keyasint,omitempty"`
	Scale            *Scale        `cbor:"14,keyasint,omitempty" since:"2"`
	PutKey           *Key          `cbor:"30,keyasint,omitempty" since:"2"`
	DeleteKey        string        `cbor:"31,keyasint,omitempty" since:"2"` // its name
	ClaimJob         *ClaimJob     `cbor:"32,keyasint,omitempty" since:"2"`
	ReportJob        *JobReport    `cbor:"33,keyasint,omitempty" since:"2"`
	StopJob          string        `cbor:"34,keyasint,omitempty" since:"2"`
	PutFile          *File         `cbor:"35,keyasint,omitempty" since:"2"`
	DeleteFile       string        `cbor:"36,keyasint,omitempty" since:"2"`
}

// Scale says how many replicas a deployment shall have.
type Scale struct {
	Deployment string `cbor:"1,keyasint"`
	Replicas   int    `cbor:"2,keyasint"`
	Auto       bool   `cbor:"3,keyasint,omitempty"` // as many as fit
}

// StartReplica places a replica, or starts its group again. The epoch becomes
// the command's raft index: it only grows, over all replicas that ever were.
type StartReplica struct {
	Replica Replica `cbor:"1,keyasint"`
	// After is the epoch that the replica had when this was decided; 0: none.
	After uint64 `cbor:"2,keyasint"`
}

// SetPhase records how far an epoch of a replica has come.
type SetPhase struct {
	Replica string `cbor:"1,keyasint"`
	Epoch   uint64 `cbor:"2,keyasint"`
	Phase   Phase  `cbor:"3,keyasint"`
	Reason  string `cbor:"4,keyasint,omitempty"`
}

// AddHome tells of a node that has the files of a deployment's local path.
type AddHome struct {
	Deployment string `cbor:"1,keyasint"`
	Version    uint64 `cbor:"2,keyasint"` // of the deployment that was asked about
	Node       string `cbor:"3,keyasint"`
}

// DrainNode says whether a node takes new shards.
type DrainNode struct {
	ID      string `cbor:"1,keyasint"`
	Drained bool   `cbor:"2,keyasint"`
	// Forced: what finds no other place does not stay either.
	Forced bool `cbor:"3,keyasint,omitempty" since:"3"`
}

var encoding = func() cbor.EncMode {
	mode, err := cbor.EncOptions{Sort: cbor.SortCoreDeterministic, Time: cbor.TimeRFC3339NanoUTC}.EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

var decoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{MaxArrayElements: 1 << 22, MaxMapPairs: 1 << 20, MaxNestedLevels: 32}.DecMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// Encode gives the bytes of a command for the log.
func (c Command) Encode() ([]byte, error) {
	c.Version = c.needs()
	data, err := encoding.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("state: encode command: %w", err)
	}
	return data, nil
}

// needs is the least version that has all that a command uses.
func (c Command) needs() int { return max(1, since(reflect.ValueOf(c))) }

// since is the greatest version that a field in use names, at whatever depth; 0: none does.
func since(v reflect.Value) (version int) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			return since(v.Elem())
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			version = max(version, since(v.Index(i)))
		}
	case reflect.Map:
		for entry := v.MapRange(); entry.Next(); {
			version = max(version, since(entry.Value()))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if field := v.Type().Field(i); field.IsExported() && !v.Field(i).IsZero() {
				named, _ := strconv.Atoi(field.Tag.Get("since"))
				version = max(version, named, since(v.Field(i)))
			}
		}
	}
	return version
}

// DecodeCommand reads what Encode wrote.
func DecodeCommand(data []byte) (Command, error) {
	var c Command
	if err := decoding.Unmarshal(data, &c); err != nil {
		return Command{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if c.Version < 1 || c.Version > Version {
		return Command{}, fmt.Errorf("%w: command of version %d, this program reads %d", ErrVersion, c.Version, Version)
	}
	return c, nil
}

// empty is the state before the first command.
func empty() *View {
	return &View{
		Deployments: map[string]Deployment{}, Replicas: map[string]Replica{}, Nodes: map[string]Node{},
		Heads: map[string]Head{}, Jobs: map[string]Job{}, Keys: map[Digest]Key{}, Files: map[string]File{},
	}
}

// Apply gives the state after a command at a raft index. It reads nothing but
// its arguments, and changes neither; the new View shares the maps that the
// command left alone. With an error it gives the old content at the new index. A
// command that was applied or refused before is not again.
func (v *View) Apply(index uint64, c Command) (*View, error) {
	same := *v
	same.Index = index
	if known, ok := v.remembered(c.ID); ok {
		return &same, known.err()
	}
	next := draft{View: same}
	for i, change := range c.Changes {
		events := change.events(&next.View, c.At)
		if err := next.apply(change, c.At); err != nil {
			err = fmt.Errorf("change %d of %d: %w", i+1, len(c.Changes), err)
			same.remember(c.ID, err)
			return &same, err
		}
		next.record(events...)
	}
	next.Format = max(v.Format, c.Version)
	next.remember(c.ID, nil)
	return &next.View, nil
}

// A draft is a View in the making: a map is copied before its first change.
type draft struct {
	View
	own struct{ deployments, replicas, nodes, heads, jobs, keys, files bool }
}

func owned[K comparable, V any](m *map[K]V, own *bool) map[K]V {
	if !*own {
		if *m = maps.Clone(*m); *m == nil {
			*m = map[K]V{}
		}
		*own = true
	}
	return *m
}

func (d *draft) apply(c Change, at time.Time) error {
	switch {
	case c.PutDeployment != nil:
		d.putDeployment(*c.PutDeployment, at)
	case c.DeleteDeployment != "":
		return remove(d.Deployments, &d.View.Deployments, &d.own.deployments, "deployment", c.DeleteDeployment)
	case c.StartReplica != nil:
		return d.startReplica(*c.StartReplica)
	case c.SetPhase != nil:
		return d.setPhase(*c.SetPhase)
	case c.DeleteReplica != "":
		return remove(d.Replicas, &d.View.Replicas, &d.own.replicas, "replica", c.DeleteReplica)
	case c.PutNode != nil:
		node := *c.PutNode
		known := d.Nodes[node.ID] // DrainNode alone writes these
		node.Drained, node.Forced = known.Drained, known.Forced
		owned(&d.View.Nodes, &d.own.nodes)[node.ID] = node
	case c.DrainNode != nil:
		node, ok := d.Nodes[c.DrainNode.ID]
		if !ok {
			return fmt.Errorf("%w: node %q", ErrUnknown, c.DrainNode.ID)
		}
		node.Drained, node.Forced = c.DrainNode.Drained, c.DrainNode.Drained && c.DrainNode.Forced
		owned(&d.View.Nodes, &d.own.nodes)[node.ID] = node
	case c.DeleteNode != "":
		return remove(d.Nodes, &d.View.Nodes, &d.own.nodes, "node", c.DeleteNode)
	case c.PutHead != nil:
		owned(&d.View.Heads, &d.own.heads)[c.PutHead.ID] = *c.PutHead
	case c.DeleteHead != "":
		return remove(d.Heads, &d.View.Heads, &d.own.heads, "head", c.DeleteHead)
	case c.PutJob != nil:
		return d.putJob(*c.PutJob, at)
	case c.AddHome != nil:
		return d.addHome(*c.AddHome)
	case c.Scale != nil:
		next, ok := d.Deployments[c.Scale.Deployment]
		if !ok {
			return fmt.Errorf("%w: deployment %q", ErrUnknown, c.Scale.Deployment)
		}
		next.Replicas, next.Auto = c.Scale.Replicas, c.Scale.Auto
		owned(&d.View.Deployments, &d.own.deployments)[next.Name] = next
	case c.DeleteJob != "":
		return d.deleteJob(c.DeleteJob)
	case c.ClaimJob != nil:
		return d.claimJob(*c.ClaimJob, at)
	case c.ReportJob != nil:
		return d.reportJob(*c.ReportJob, at)
	case c.StopJob != "":
		return d.stopJob(c.StopJob, at)
	case c.PutFile != nil:
		return d.putFile(*c.PutFile, at)
	case c.DeleteFile != "":
		return remove(d.Files, &d.View.Files, &d.own.files, "file", c.DeleteFile)
	case c.PutKey != nil:
		return d.putKey(*c.PutKey, at)
	case c.DeleteKey != "":
		return d.deleteKey(c.DeleteKey)
	default:
		return fmt.Errorf("%w: a change that changes nothing", ErrMalformed)
	}
	return nil
}

func remove[V any](now map[string]V, m *map[string]V, own *bool, what, name string) error {
	if _, ok := now[name]; !ok {
		return fmt.Errorf("%w: %s %q", ErrUnknown, what, name)
	}
	delete(owned(m, own), name)
	return nil
}

func (d *draft) putDeployment(next Deployment, at time.Time) {
	old, exists := d.Deployments[next.Name]
	if exists {
		next.Created, next.Version = old.Created, old.Version
		if next.Job == "" {
			next.Job = old.Job
		}
		if len(next.Homes) > 0 && next.Model == old.Model && next.Weights == old.Weights {
			all := slices.Sorted(slices.Values(slices.Concat(old.Homes, next.Homes)))
			next.Homes = slices.Compact(all)
		}
	} else {
		next.Created = at
	}
	if !exists || !old.sameReplicas(next) {
		next.Version = d.Index
	}
	owned(&d.View.Deployments, &d.own.deployments)[next.Name] = next
}

func (d *draft) addHome(h AddHome) error {
	next, ok := d.Deployments[h.Deployment]
	if !ok || next.Version != h.Version {
		return fmt.Errorf("%w: deployment %q is at version %d, not %d", ErrStale, h.Deployment, next.Version, h.Version)
	}
	if !slices.Contains(next.Homes, h.Node) {
		next.Homes = slices.Sorted(slices.Values(append(slices.Clone(next.Homes), h.Node)))
		owned(&d.View.Deployments, &d.own.deployments)[h.Deployment] = next
	}
	return nil
}

// sameReplicas reports whether replicas made for d serve other as they are.
func (d Deployment) sameReplicas(other Deployment) bool {
	for _, v := range []*Deployment{&d, &other} {
		v.Aliases, v.Homes, v.Replicas, v.Auto, v.Created, v.Version, v.Job = nil, nil, 0, false, time.Time{}, 0, ""
	}
	return reflect.DeepEqual(d, other)
}

func (d *draft) startReplica(s StartReplica) error {
	r := s.Replica
	if _, ok := d.Deployments[r.Deployment]; !ok {
		return fmt.Errorf("%w: deployment %q", ErrUnknown, r.Deployment)
	}
	if epoch := d.Replicas[r.ID].Epoch; epoch != s.After {
		return fmt.Errorf("%w: replica %q is at epoch %d, not %d", ErrStale, r.ID, epoch, s.After)
	}
	r.Epoch, r.Phase, r.Reason = d.Index, Placed, ""
	owned(&d.View.Replicas, &d.own.replicas)[r.ID] = r
	return nil
}

func (d *draft) setPhase(s SetPhase) error {
	r, ok := d.Replicas[s.Replica]
	if !ok || r.Epoch != s.Epoch {
		return fmt.Errorf("%w: replica %q is at epoch %d, not %d", ErrStale, s.Replica, r.Epoch, s.Epoch)
	}
	r.Phase, r.Reason = s.Phase, s.Reason
	owned(&d.View.Replicas, &d.own.replicas)[r.ID] = r
	return nil
}

// snapshot is what raft keeps of the state.
type snapshot struct {
	Version int  `cbor:"1,keyasint"`
	View    View `cbor:"2,keyasint"`
}

func (v *View) encode() ([]byte, error) {
	return encoding.Marshal(snapshot{Version: max(1, v.Format), View: *v})
}

func decodeSnapshot(data []byte) (*View, error) {
	s := snapshot{View: *empty()}
	if err := decoding.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("state: snapshot: %w", err)
	}
	if s.Version < 1 || s.Version > Version {
		return nil, fmt.Errorf("%w: snapshot of version %d, this program reads %d", ErrVersion, s.Version, Version)
	}
	for _, m := range []bool{s.View.Deployments == nil, s.View.Replicas == nil, s.View.Nodes == nil, s.View.Heads == nil, s.View.Jobs == nil} {
		if m {
			return nil, fmt.Errorf("%w: snapshot lacks a table", ErrMalformed)
		}
	}
	return &s.View, nil
}
