package api

import (
	"encoding/json"
	"strings"
	"time"

	"manta/head/state"
	"manta/parallel/shard"
)

// deploymentRequest is what POST /api/cluster/deployments takes; zero means the
// default everywhere.
type deploymentRequest struct {
	Name                 string            `json:"name"`
	Aliases              []string          `json:"aliases"`
	Model                string            `json:"model"`
	Replicas             json.RawMessage   `json:"replicas"` // a number, or "auto"
	NodeSelector         map[string]string `json:"node_selector"`
	TensorParallelSize   int               `json:"tensor_parallel_size"`
	PipelineParallelSize int               `json:"pipeline_parallel_size"`
	MaxModelLen          int               `json:"max_model_len"`
	MaxNumSeqs           int               `json:"max_num_seqs"`
	MaxNumBatchedTokens  int               `json:"max_num_batched_tokens"`
	DType                string            `json:"dtype"`
	KVCacheDType         string            `json:"kv_cache_dtype"`
	Seed                 uint64            `json:"seed"`
	GPUMemoryUtilization float64           `json:"gpu_memory_utilization"`
	PrefixCaching        *bool             `json:"enable_prefix_caching"`
	LoadFormat           string            `json:"load_format"` // "auto", or "dummy": weights are made up
	Strategy             string            `json:"strategy"`    // "pack" (the default) or "spread"
}

func (d *deploymentRequest) deployment() (state.Deployment, error) {
	if d.Model == "" {
		return state.Deployment{}, badField("model", "model must be given")
	}
	for field, value := range map[string]int{
		"tensor_parallel_size": d.TensorParallelSize, "pipeline_parallel_size": d.PipelineParallelSize,
		"max_model_len": d.MaxModelLen, "max_num_seqs": d.MaxNumSeqs, "max_num_batched_tokens": d.MaxNumBatchedTokens,
	} {
		if value < 0 {
			return state.Deployment{}, badField(field, "%s must not be negative, got %d", field, value)
		}
	}
	if d.GPUMemoryUtilization < 0 || d.GPUMemoryUtilization > 1 {
		return state.Deployment{}, badField("gpu_memory_utilization", "gpu_memory_utilization must be in (0, 1], got %v", d.GPUMemoryUtilization)
	}
	replicas, auto := 1, false
	if !absent(d.Replicas) {
		var err error
		if replicas, auto, err = replicaCount(d.Replicas); err != nil {
			return state.Deployment{}, err
		}
	}
	if len(d.NodeSelector) == 0 {
		d.NodeSelector = nil
	}
	strategy := state.Pack
	switch d.Strategy {
	case "", "pack":
	case "spread":
		strategy = state.Spread
	default:
		return state.Deployment{}, badField("strategy", "strategy must be pack or spread, got %q", d.Strategy)
	}
	name := d.Name
	if name == "" {
		name = d.Model
	}
	return state.Deployment{
		Name: name, Aliases: d.Aliases, Model: d.Model, Replicas: replicas, Auto: auto, NodeSelector: d.NodeSelector,
		Layout:   shard.Layout{Tensor: max(d.TensorParallelSize, 1), Pipeline: max(d.PipelineParallelSize, 1)},
		Strategy: strategy,
		Created:  time.Now(),
		Settings: state.Settings{
			MaxModelLen: d.MaxModelLen, MaxNumSeqs: d.MaxNumSeqs, MaxNumBatchedTokens: d.MaxNumBatchedTokens,
			DType: d.DType, KVCacheDType: d.KVCacheDType, Seed: d.Seed, GPUMemoryUtilization: d.GPUMemoryUtilization,
			PrefixCaching: d.PrefixCaching == nil || *d.PrefixCaching, LoadFormat: d.LoadFormat,
		},
	}, nil
}

// maxReplicas bounds what one deployment may ask for.
const maxReplicas = 4096

// replicaCount reads a number of replicas, or "auto".
func replicaCount(raw json.RawMessage) (replicas int, auto bool, err error) {
	if string(raw) == `"auto"` {
		return 0, true, nil
	}
	if json.Unmarshal(raw, &replicas) != nil || replicas < 0 || replicas > maxReplicas {
		return 0, false, badField("replicas", "replicas must be a number from 0 to %d or \"auto\", got %s", maxReplicas, raw)
	}
	return replicas, false, nil
}

// Deployment is a deployment's state, for `manta list` and `manta status`.
type Deployment struct {
	Name        string    `json:"name"`
	Aliases     []string  `json:"aliases,omitempty"`
	Model       string    `json:"model"`
	Revision    string    `json:"revision"`
	Tensor      int       `json:"tensor_parallel_size"`
	Pipeline    int       `json:"pipeline_parallel_size"`
	Wanted      int       `json:"replicas"`
	Auto        bool      `json:"auto,omitempty"` // as many replicas as fit
	Ready       int       `json:"ready"`
	Waiting     int       `json:"waiting"` // requests, on this head
	MaxModelLen int       `json:"max_model_len"`
	Created     time.Time `json:"created"`
	Replicas    []Replica `json:"replica_states"`
}

// Current reports whether all that stands is ready and of the newest version.
func (d Deployment) Current() bool {
	for _, r := range d.Replicas {
		if r.Outdated || r.Phase != string(state.Ready) {
			return false
		}
	}
	return d.Ready >= d.Wanted
}

// Replica is a replica's state.
type Replica struct {
	ID       string `json:"id"`
	Outdated bool   `json:"outdated,omitempty"` // of an earlier version of its deployment
	Epoch    uint64 `json:"epoch"`
	Phase    string `json:"phase"`
	Reason   string `json:"reason,omitempty"`
	Pulled   int64  `json:"bytes_done,omitempty"` // of the model's files, while they are pulled or loaded
	Whole    int64  `json:"bytes_total,omitempty"`
	Blocks   []int  `json:"blocks,omitempty"`
	// What its driver has done in this epoch, by what it told last.
	Running int      `json:"running,omitempty"`
	Prompt  uint64   `json:"prompt_tokens,omitempty"`
	Cached  uint64   `json:"prompt_tokens_cached,omitempty"`
	Output  uint64   `json:"output_tokens,omitempty"`
	Nodes   []string `json:"nodes"` // that have shards of it
	Shards  []string `json:"shards"`
}

// ClusterState is what GET /api/cluster gives.
type ClusterState struct {
	Index       uint64       `json:"index"`
	Stale       bool         `json:"stale,omitempty"` // no leader: there may be newer writes
	Version     string       `json:"version"`
	Leader      string       `json:"leader,omitempty"` // the id of the head that leads, as this one knows
	Heads       []Head       `json:"heads"`
	Nodes       []Node       `json:"nodes"`
	Deployments []Deployment `json:"deployments"`
	Pending     []Waiting    `json:"pending"`  // what finds no place
	Warnings    []Event      `json:"warnings"` // the newest few
}

// Waiting says why replicas of a deployment are not placed, or can't move.
type Waiting struct {
	Deployment string   `json:"deployment"`
	Missing    int      `json:"missing"` // how many replicas
	Reasons    []Reason `json:"reasons"`
}

// Reason says what a node lacks, and what would help.
type Reason struct {
	Node  string `json:"node,omitempty"`
	Lacks string `json:"lacks"`
}

// Event says what became of something, and why.
type Event struct {
	At      time.Time `json:"time"`
	Type    string    `json:"type"` // Normal or Warning
	Reason  string    `json:"reason"`
	Object  string    `json:"object"` // kind/name
	Message string    `json:"message,omitempty"`
}

// Explanation is what GET /api/cluster/explain/{name} gives.
type Explanation struct {
	Deployment Deployment `json:"deployment"`
	Pending    []Waiting  `json:"pending"`
	Events     []Event    `json:"events"`
}

// Lines gives the reasons for people, one a node.
func (w Waiting) Lines() []string {
	var lines []string
	for _, r := range w.Reasons {
		lines = append(lines, strings.TrimPrefix(r.Node+": "+r.Lacks, ": "))
	}
	return lines
}

// Head is a raft server.
type Head struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	API  string `json:"api"`
	Lost bool   `json:"lost,omitempty"` // gossip has given it up, or has not met it yet
}

// Node is a worker.
type Node struct {
	ID       string            `json:"id"`
	Status   string            `json:"status"` // Ready, NotReady, Stopping, Ready,Drained
	Drained  bool              `json:"drained"`
	Labels   map[string]string `json:"labels,omitempty"`
	Devices  []Device          `json:"devices"`
	Replicas []string          `json:"replicas"` // that have shards on it
}

// Device is one place for a shard.
type Device struct {
	ID     string `json:"id"`
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Memory int64  `json:"memory"`
	// What it does in a second, by which layers are cut; 0: not known.
	Bandwidth  float64 `json:"bytes_per_second,omitempty"`
	Operations float64 `json:"operations_per_second,omitempty"`
}
