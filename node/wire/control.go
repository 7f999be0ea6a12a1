package wire

import (
	"slices"

	"manta/parallel/link"
	"manta/parallel/shard"
	"manta/runtime/plan"
)

// Assignments is the whole of what a node shall run. It is sent again and again;
// the node compares it with what it runs. A lower Index than one seen is stale, unless no other comes.
type Assignments struct {
	Version  int          `cbor:"1,keyasint"`
	Index    uint64       `cbor:"2,keyasint"` // of the View it was made from
	Replicas []Assignment `cbor:"3,keyasint,omitempty"`
}

// Assignment is one replica of which the node has shards.
type Assignment struct {
	Replica    string       `cbor:"1,keyasint"`
	Deployment string       `cbor:"2,keyasint"`
	Epoch      uint64       `cbor:"3,keyasint"`
	Model      string       `cbor:"4,keyasint"` // the reference as given
	Revision   string       `cbor:"5,keyasint,omitempty"`
	Layout     shard.Layout `cbor:"6,keyasint"`
	Shards     []Shard      `cbor:"7,keyasint"` // of all nodes
	Blocks     []int        `cbor:"8,keyasint"` // per block group
	MaxLen     int          `cbor:"9,keyasint"`
	Settings   Settings     `cbor:"10,keyasint"`
}

// Shard says where one rank of a replica runs.
type Shard struct {
	Stage  int    `cbor:"1,keyasint"`
	Rank   int    `cbor:"2,keyasint"`
	Node   string `cbor:"3,keyasint"`
	Device string `cbor:"4,keyasint"`
}

// Settings are the engine's flags, in vLLM's words; all of them are set.
type Settings struct {
	MaxNumSeqs          int    `cbor:"1,keyasint"`
	MaxNumBatchedTokens int    `cbor:"2,keyasint"`
	DType               string `cbor:"3,keyasint,omitempty"` // "auto", "float32", …
	KVCacheDType        string `cbor:"4,keyasint,omitempty"`
	PrefixCaching       bool   `cbor:"5,keyasint"`
	DownloadDir         string `cbor:"6,keyasint,omitempty"`
	LoadFormat          string `cbor:"7,keyasint,omitempty"` // "auto", "dummy"
}

// Phase is how far a node has come with its shards of a replica.
type Phase string

const (
	PhasePulling  Phase = "pulling"
	PhaseLoading  Phase = "loading"
	PhaseReady    Phase = "ready" // a real step has succeeded
	PhaseDraining Phase = "draining"
	PhaseFailed   Phase = "failed"
)

// Report is what a node tells the heads: every second, and when something changes.
type Report struct {
	Version  int             `cbor:"1,keyasint"`
	Node     string          `cbor:"2,keyasint"`
	Sequence uint64          `cbor:"3,keyasint"` // counts up within a boot
	Devices  []Device        `cbor:"4,keyasint,omitempty"`
	Replicas []ReplicaReport `cbor:"5,keyasint,omitempty"`
	// Draining: the node is about to stop; its shards shall move.
	Draining bool `cbor:"6,keyasint,omitempty"`
	// Leaving: it will not come back; heads forget it.
	Leaving bool  `cbor:"9,keyasint,omitempty"`
	GPUs    []GPU `cbor:"7,keyasint,omitempty"`
	// Labels are the node's own: its zone, what an operator calls it.
	Labels map[string]string `cbor:"8,keyasint,omitempty"`
	// Protocol is that of the node's ranks; 0: 1.
	Protocol int `cbor:"10,keyasint,omitempty"`
	// Credits are its drivers' grants. Heads that read commands of a version before
	// CreditsInReports get each as a message of its own.
	Credits []Credit `cbor:"11,keyasint,omitempty"`
}

// CreditsInReports is the first version of commands whose readers look for Report.Credits.
const CreditsInReports = 5

// Device is one place for a shard.
type Device struct {
	ID     string `cbor:"1,keyasint"` // "cpu:0", a GPU's UUID
	Kind   string `cbor:"2,keyasint"` // "cpu", "cuda", "sim"
	Name   string `cbor:"3,keyasint"`
	Memory int64  `cbor:"4,keyasint"` // bytes that shards may use
	// Speed is that of the whole device; zero: not known.
	Speed plan.Speed `cbor:"5,keyasint,omitzero"`
	// Links are to the devices of the node that this one can address, the fastest way each.
	Links []DeviceLink `cbor:"6,keyasint,omitempty"`
}

// Equal compares all of it.
func (d Device) Equal(other Device) bool {
	return d.ID == other.ID && d.Kind == other.Kind && d.Name == other.Name && d.Memory == other.Memory && d.Speed == other.Speed && slices.Equal(d.Links, other.Links)
}

// DeviceLink joins two devices of a node.
type DeviceLink struct {
	To    string `cbor:"1,keyasint"`
	Speed int64  `cbor:"2,keyasint"` // bytes a second, one way
}

// GPU is how a GPU of a node is, by NVML.
type GPU struct {
	Index       int     `cbor:"1,keyasint"`
	UUID        string  `cbor:"2,keyasint"`
	Name        string  `cbor:"3,keyasint"`
	Memory      int64   `cbor:"4,keyasint,omitempty"` // bytes
	Free        int64   `cbor:"5,keyasint,omitempty"`
	Utilisation int     `cbor:"6,keyasint,omitempty"` // percent
	Temperature int     `cbor:"7,keyasint,omitempty"` // °C
	Watts       float64 `cbor:"8,keyasint,omitempty"`
	Uncorrected int64   `cbor:"9,keyasint"`            // ECC errors; -1: not counted
	Xid         uint64  `cbor:"10,keyasint,omitempty"` // the last one since the node started
	Lost        string  `cbor:"11,keyasint,omitempty"` // why it is not offered any more
}

// ReplicaReport is the state of a node's shards of one replica.
type ReplicaReport struct {
	Replica string      `cbor:"1,keyasint"`
	Epoch   uint64      `cbor:"2,keyasint"`
	Phase   Phase       `cbor:"3,keyasint"`
	Reason  string      `cbor:"4,keyasint,omitempty"`  // for people
	Done    int64       `cbor:"5,keyasint,omitempty"`  // bytes pulled so far …
	Total   int64       `cbor:"6,keyasint,omitempty"`  // … of so many
	Engine  EngineStats `cbor:"7,keyasint"`            // of the driver
	Process *Process    `cbor:"10,keyasint,omitempty"` // nil: the node's own
	// Lost are, of a failed epoch, the nodes of other ranks that can't be reached.
	Lost []string `cbor:"8,keyasint,omitempty"`
}

// Process is the device process that runs a node's ranks of a replica.
type Process struct {
	Starts   int   `cbor:"1,keyasint"` // of this one and those before it
	Resident int64 `cbor:"2,keyasint"` // bytes, mapped files left out
}

// EngineStats is a driver's counts, for metrics and routing.
type EngineStats struct {
	Running         int    `cbor:"1,keyasint,omitempty"`
	Waiting         int    `cbor:"2,keyasint,omitempty"`
	Blocks          int    `cbor:"3,keyasint,omitempty"`
	BlocksFree      int    `cbor:"4,keyasint,omitempty"`
	BlocksCached    int    `cbor:"5,keyasint,omitempty"`
	SlotsTaken      int    `cbor:"6,keyasint,omitempty"`
	SlotsUsed       int    `cbor:"7,keyasint,omitempty"`
	Preemptions     uint64 `cbor:"8,keyasint,omitempty"`
	PrefixQueries   uint64 `cbor:"9,keyasint,omitempty"`
	PrefixHits      uint64 `cbor:"10,keyasint,omitempty"`
	PromptTokens    uint64 `cbor:"11,keyasint,omitempty"`
	OutputTokens    uint64 `cbor:"12,keyasint,omitempty"`
	Steps           uint64 `cbor:"13,keyasint,omitempty"`
	Rows            uint64 `cbor:"14,keyasint,omitempty"`
	ChoicesFinished uint64 `cbor:"15,keyasint,omitempty"`
}

// Ranks is what the nodes of one replica tell each other.
type Ranks struct {
	Version int    `cbor:"1,keyasint"`
	Replica string `cbor:"2,keyasint"`
	Epoch   uint64 `cbor:"3,keyasint"`
	// Payload is a part of what was decoded, and valid as long.
	Payload link.Borrowed `cbor:"4,keyasint,omitempty"`
	Err     string        `cbor:"5,keyasint,omitempty"` // of an answer: the ranks there are lost
}

// Resolve asks a node what a model reference stands for.
type Resolve struct {
	Version     int    `cbor:"1,keyasint"`
	Model       string `cbor:"2,keyasint"`
	DownloadDir string `cbor:"3,keyasint,omitempty"`
	LoadFormat  string `cbor:"4,keyasint,omitempty"`
}

// Resolved answers a Resolve.
type Resolved struct {
	Version    int         `cbor:"1,keyasint"`
	Err        string      `cbor:"2,keyasint,omitempty"`
	Model      string      `cbor:"3,keyasint"` // the reference, complete: ParseReference reads it
	Revision   string      `cbor:"4,keyasint,omitempty"`
	Shapes     plan.Shapes `cbor:"5,keyasint"`
	Tokenizer  []byte      `cbor:"6,keyasint"` // a token.Source, encoded
	Template   string      `cbor:"7,keyasint,omitempty"`
	Generation Generation  `cbor:"8,keyasint"`
	Weights    [32]byte    `cbor:"9,keyasint"` // digest: equal files give equal ones everywhere
}

// Generation is what generation_config.json or the GGUF file says of sampling.
type Generation struct {
	EndTokens         []int32  `cbor:"1,keyasint,omitempty"`
	Temperature       *float32 `cbor:"2,keyasint,omitempty"`
	TopP              *float32 `cbor:"3,keyasint,omitempty"`
	TopK              *int     `cbor:"4,keyasint,omitempty"`
	RepetitionPenalty *float32 `cbor:"5,keyasint,omitempty"`
	MinP              *float32 `cbor:"6,keyasint,omitempty"`
}

// Logs asks for the newest lines of a process's log.
type Logs struct {
	Version    int    `cbor:"1,keyasint"`
	Lines      int    `cbor:"2,keyasint"`
	Containing string `cbor:"3,keyasint,omitempty"`
}

// MaxLogLines bounds one answer.
const MaxLogLines = 2000

// From gives the lines that are asked for.
func (l Logs) From(tail interface {
	Last(most int, containing string) []string
}) []string {
	return tail.Last(max(0, min(l.Lines, MaxLogLines)), l.Containing)
}
