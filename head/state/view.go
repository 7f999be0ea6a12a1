// Package state is the raft state machine of the heads: the commands that change
// what users intend and where it is placed, and the View that everything else
// reads. It holds nothing that moves per token.
package state

import (
	"slices"
	"time"

	"manta/parallel/shard"
	"manta/runtime/plan"
)

// A View is a snapshot of the state. It is immutable: whoever publishes one
// never touches it again, so readers take no lock.
type View struct {
	Index       uint64 // of the last raft entry applied
	Format      int    // the greatest version of a command in it; 0: 1
	Deployments map[string]Deployment
	Replicas    map[string]Replica
	Nodes       map[string]Node
	Heads       map[string]Head
	Jobs        map[string]Job
	Keys        map[Digest]Key // by hash
	Files       map[string]File
	Events      []Event   // the newest maxEvents, oldest first
	Outcomes    []outcome // of the newest maxOutcomes commands
}

// A Deployment is what a user asked for.
type Deployment struct {
	Name     string   // the model name that the API serves
	Aliases  []string // further served names
	Model    string   // the reference as given
	Revision string   // what it resolved to, once
	// Homes are the nodes that have the files of a local path; empty: any may pull.
	Homes     []string
	Weights   Digest // of a local path's weights: those of all homes are the same
	Shapes    plan.Shapes
	Tokenizer Digest // of a token.Source (CBOR) in the store
	Template  Digest // of the chat template in the store; zero: none
	// Generation holds the model's own sampling defaults and end tokens.
	Generation Generation
	Layout     shard.Layout
	Strategy   Strategy
	// NodeSelector names labels that a node must have to take shards.
	NodeSelector map[string]string
	Replicas     int
	Auto         bool // as many replicas as fit, a device of its own each; Replicas is 0
	Settings     Settings
	Created      time.Time
	// Version is the raft index of the last change that its replicas must be made
	// anew for; one of Replicas, Auto or Aliases alone leaves it.
	Version uint64
	// Job is the job that keeps it; "": none does.
	Job string
}

// Strategy says how a replica's ranks are laid out on nodes.
type Strategy string

const (
	Pack   Strategy = ""       // on one node if they fit there
	Spread Strategy = "spread" // stages on as many nodes as there are
)

// At reports whether a node can have the deployment's files.
func (d Deployment) At(node string) bool { return len(d.Homes) == 0 || slices.Contains(d.Homes, node) }

// Settings are the engine's flags, in vLLM's words; zero means the default.
type Settings struct {
	MaxModelLen          int
	MaxNumSeqs           int
	MaxNumBatchedTokens  int
	DType                string
	KVCacheDType         string
	Seed                 uint64
	GPUMemoryUtilization float64
	PrefixCaching        bool
	DownloadDir          string
	LoadFormat           string // "dummy": weights are made up; else they are read
}

// Generation is what generation_config.json or the GGUF says.
type Generation struct {
	EndTokens         []int32
	Temperature       *float32
	TopP              *float32
	TopK              *int
	MinP              *float32
	RepetitionPenalty *float32
}

// A Digest names bytes in the store by their SHA-256.
type Digest [32]byte

// A Replica is one running copy of a deployment.
type Replica struct {
	ID         string
	Deployment string
	Epoch      uint64 // raft index at which its group last started
	Version    uint64 // of the deployment that it was made from
	Layout     shard.Layout
	Blocks     []int // per block group, equal on all ranks
	MaxLen     int   // tokens a sequence may have
	Memory     int64 // bytes that its fullest shard takes of its device, as planned
	Shards     []Placement
	Phase      Phase
	Reason     string // why it is not ready, for people
}

// Phase is how far a replica has come.
type Phase string

const (
	Placed   Phase = "placed"
	Loading  Phase = "loading"
	Ready    Phase = "ready"
	Draining Phase = "draining" // it takes no more requests, and goes when those it has are done
	Failed   Phase = "failed"
)

// A Placement puts one rank on a device of a node.
type Placement struct {
	Stage, Rank int
	Node        string
	Device      string
	// Memory is what it takes of its device where the slices of a replica are uneven;
	// 0: what the replica's fullest takes.
	Memory int64 `cbor:",omitempty" json:",omitempty" since:"3"`
}

// Takes is the memory that a shard takes of its device, as planned.
func (r Replica) Takes(s Placement) int64 {
	if s.Memory > 0 {
		return s.Memory
	}
	return r.Memory
}

// A Node is a worker as raft knows it; who lives is gossip's to say.
type Node struct {
	ID      string
	Devices []Device
	Labels  map[string]string
	Drained bool // it takes no shards: an operator has said so
	Forced  bool `cbor:",omitempty" since:"3"` // and keeps none, whether they find another place or not
}

// Zone is the label that replicas are spread by.
const Zone = "topology.kubernetes.io/zone"

// FindNode gives the node of an id, or of a stable name that only one id has.
func (v *View) FindNode(name string) (Node, bool) {
	if node, ok := v.Nodes[name]; ok {
		return node, true
	}
	var found []Node
	for id, node := range v.Nodes {
		if stableName(id) == name {
			found = append(found, node)
		}
	}
	if len(found) != 1 {
		return Node{}, false
	}
	return found[0], true
}

// A Device is one place for a shard.
type Device struct {
	ID     string // "cpu:0", a GPU's UUID
	Kind   string // "cpu", "cuda", "sim"
	Name   string
	Memory int64 // bytes that shards may use
	// Speed is what the node measured or knows; zero: nothing. It is for new placements.
	Speed plan.Speed `cbor:",omitzero" json:",omitzero" since:"4"`
}

// A Head is a raft server.
type Head struct {
	ID   string // stable name plus the id on its disk
	Name string
	API  string // address of its HTTP API
	// Reads is the newest version of commands that it reads; 0: 1.
	Reads int
}
