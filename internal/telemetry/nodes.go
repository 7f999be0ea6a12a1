package telemetry

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// GPU is how a node's GPU is.
type GPU struct {
	Index        int
	UUID, Name   string
	Memory, Free int64 // bytes
	Utilisation  int   // percent
	Temperature  int   // °C
	Watts        float64
	Uncorrected  int64 // ECC errors; -1: not counted
	Xid          uint64
	Lost         bool
}

// Process is a node's device process.
type Process struct {
	Replica  string
	Starts   int
	Resident int64 // bytes
}

// nodes holds what nodes last told of their GPUs and processes.
type nodes struct {
	mu    sync.Mutex // guards what follows
	told  map[string]nodeTold
	descs map[string]*prometheus.Desc
}

type nodeTold struct {
	gpus      []GPU
	processes []Process
	at        time.Time
}

var _ prometheus.Collector = (*nodes)(nil)

// gpuHelp has the names of NVIDIA's dcgm-exporter, which dashboards know.
var gpuHelp = map[string]string{
	"DCGM_FI_DEV_GPU_UTIL":          "GPU utilization (in %).",
	"DCGM_FI_DEV_FB_USED":           "Framebuffer memory used (in MiB).",
	"DCGM_FI_DEV_FB_FREE":           "Framebuffer memory free (in MiB).",
	"DCGM_FI_DEV_GPU_TEMP":          "GPU temperature (in C).",
	"DCGM_FI_DEV_POWER_USAGE":       "Power draw (in W).",
	"DCGM_FI_DEV_XID_ERRORS":        "Value of the last XID error encountered.",
	"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": "Total number of double-bit volatile ECC errors.",
	"manta_gpu_lost":                "1 for a GPU that its node does not offer any more.",
}

var processHelp = map[string]string{
	"manta_device_process_starts_total":          "Device processes that a node has started for a replica.",
	"manta_device_process_resident_memory_bytes": "Memory of a device process, mapped files left out.",
}

func newNodes() *nodes {
	n := &nodes{told: map[string]nodeTold{}, descs: map[string]*prometheus.Desc{}}
	for name, help := range gpuHelp {
		n.descs[name] = prometheus.NewDesc(name, help, []string{"node", "gpu", "UUID", "modelName"}, nil)
	}
	for name, help := range processHelp {
		n.descs[name] = prometheus.NewDesc(name, help, []string{"node", "replica"}, nil)
	}
	return n
}

// SetNode takes a node's newest report.
func (m *Metrics) SetNode(node string, gpus []GPU, processes []Process) {
	m.nodes.mu.Lock()
	defer m.nodes.mu.Unlock()
	m.nodes.told[node] = nodeTold{gpus, processes, time.Now()}
}

// Describe implements prometheus.Collector.
func (n *nodes) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range n.descs {
		out <- desc
	}
}

// Collect implements prometheus.Collector. A node that is silent has no series.
func (n *nodes) Collect(out chan<- prometheus.Metric) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for node, told := range n.told {
		if time.Since(told.at) > silent {
			delete(n.told, node)
			continue
		}
		for _, g := range told.gpus {
			send := func(name string, value float64) {
				out <- prometheus.MustNewConstMetric(n.descs[name], prometheus.GaugeValue, value, node, strconv.Itoa(g.Index), g.UUID, g.Name)
			}
			lost := 0.0
			if g.Lost {
				lost = 1
			} else {
				send("DCGM_FI_DEV_GPU_UTIL", float64(g.Utilisation))
				send("DCGM_FI_DEV_FB_USED", float64((g.Memory-g.Free)>>20))
				send("DCGM_FI_DEV_FB_FREE", float64(g.Free>>20))
				send("DCGM_FI_DEV_GPU_TEMP", float64(g.Temperature))
				send("DCGM_FI_DEV_POWER_USAGE", g.Watts)
			}
			send("manta_gpu_lost", lost)
			send("DCGM_FI_DEV_XID_ERRORS", float64(g.Xid))
			if g.Uncorrected >= 0 {
				send("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", float64(g.Uncorrected))
			}
		}
		for _, p := range told.processes {
			out <- prometheus.MustNewConstMetric(n.descs["manta_device_process_starts_total"], prometheus.CounterValue, float64(p.Starts), node, p.Replica)
			out <- prometheus.MustNewConstMetric(n.descs["manta_device_process_resident_memory_bytes"], prometheus.GaugeValue, float64(p.Resident), node, p.Replica)
		}
	}
}
