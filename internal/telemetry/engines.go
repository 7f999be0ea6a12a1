package telemetry

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Engine is what a replica's driver counts since its epoch began; the figures
// that are not of type uint64 are of this moment.
type Engine struct {
	Running       int // sequences in steps
	Waiting       int // sequences accepted, not in a step yet
	Blocks        int // of the first block group
	BlocksFree    int
	BlocksCached  int // held by the prefix index alone
	SlotsTaken    int // places for tokens in the blocks that sequences hold
	SlotsUsed     int // of them, with a token
	PrefixQueries uint64
	PrefixHits    uint64
	Preemptions   uint64
	Steps         uint64
	Rows          uint64
}

// engines shows what drivers report, summed over a model's replicas. Counters
// never fall when an epoch ends or a replica falls silent: what it had counted stays.
type engines struct {
	mu       sync.Mutex
	replicas map[string]reported       // guarded by mu, by replica
	past     map[string]engineCounters // guarded by mu, by model: of epochs that ended
	descs    map[string]*prometheus.Desc
}

type reported struct {
	model  string
	epoch  uint64
	engine Engine
	at     time.Time
}

// silent is how long after its last report a replica still shows: nodes report
// every second, and those that are gone never again.
const silent = 15 * time.Second

type engineCounters struct {
	queries, hits, preemptions, steps, rows float64
}

func (c *engineCounters) add(e Engine) {
	c.queries += float64(e.PrefixQueries)
	c.hits += float64(e.PrefixHits)
	c.preemptions += float64(e.Preemptions)
	c.steps += float64(e.Steps)
	c.rows += float64(e.Rows)
}

var engineHelp = map[string]string{
	"vllm:kv_cache_usage_perc":        "Part of the blocks that sequences hold, from 0 to 1.",
	"vllm:prefix_cache_queries_total": "Prompt tokens looked up in the prefix cache.",
	"vllm:prefix_cache_hits_total":    "Prompt tokens found in the prefix cache.",
	"vllm:num_preemptions_total":      "Sequences that were put off to make room.",
	"manta_engine_sequences_running":  "Sequences in the replicas' steps.",
	"manta_engine_sequences_waiting":  "Sequences that replicas hold back.",
	"manta_engine_blocks":             "Blocks of the replicas.",
	"manta_engine_blocks_cached":      "Blocks that only the prefix cache holds.",
	"manta_engine_steps_total":        "Steps.",
	"manta_engine_rows_total":         "Rows of all steps.",
	"manta_engine_slots":              "Places for tokens in the blocks that sequences hold.",
	"manta_engine_slots_unused":       "Of those places, the ones without a token.",
}

func newEngines() *engines {
	e := &engines{replicas: map[string]reported{}, past: map[string]engineCounters{}, descs: map[string]*prometheus.Desc{}}
	for name, help := range engineHelp {
		e.descs[name] = prometheus.NewDesc(name, help, []string{modelLabel}, nil)
	}
	return e
}

// SetEngine takes a driver's newest report.
func (m *Metrics) SetEngine(model, replica string, epoch uint64, engine Engine) {
	e := m.engines
	e.mu.Lock()
	defer e.mu.Unlock()
	if old, ok := e.replicas[replica]; ok {
		if epoch < old.epoch {
			return // late
		}
		if epoch > old.epoch || old.model != model {
			e.retire(old)
		}
	}
	e.replicas[replica] = reported{model: model, epoch: epoch, engine: engine, at: time.Now()}
}

// retire keeps the counts of an epoch that ended. It holds mu.
func (e *engines) retire(old reported) {
	counters := e.past[old.model]
	counters.add(old.engine)
	e.past[old.model] = counters
}

// Describe implements prometheus.Collector.
func (e *engines) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range e.descs {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (e *engines) Collect(out chan<- prometheus.Metric) {
	e.mu.Lock()
	counters := map[string]engineCounters{}
	for model, past := range e.past {
		counters[model] = past
	}
	gauges := map[string]Engine{}
	for id, r := range e.replicas {
		if time.Since(r.at) > silent {
			e.retire(r)
			delete(e.replicas, id)
			counters[r.model] = e.past[r.model]
		}
	}
	for _, r := range e.replicas {
		sum := counters[r.model]
		sum.add(r.engine)
		counters[r.model] = sum
		g := gauges[r.model]
		g.Running += r.engine.Running
		g.Waiting += r.engine.Waiting
		g.Blocks += r.engine.Blocks
		g.BlocksFree += r.engine.BlocksFree
		g.BlocksCached += r.engine.BlocksCached
		g.SlotsTaken += r.engine.SlotsTaken
		g.SlotsUsed += r.engine.SlotsUsed
		gauges[r.model] = g
	}
	e.mu.Unlock()
	send := func(name, model string, kind prometheus.ValueType, value float64) {
		out <- prometheus.MustNewConstMetric(e.descs[name], kind, value, model)
	}
	for model, c := range counters {
		send("vllm:prefix_cache_queries_total", model, prometheus.CounterValue, c.queries)
		send("vllm:prefix_cache_hits_total", model, prometheus.CounterValue, c.hits)
		send("vllm:num_preemptions_total", model, prometheus.CounterValue, c.preemptions)
		send("manta_engine_steps_total", model, prometheus.CounterValue, c.steps)
		send("manta_engine_rows_total", model, prometheus.CounterValue, c.rows)
	}
	for model, g := range gauges {
		usage := 0.0
		if g.Blocks > 0 {
			usage = float64(g.Blocks-g.BlocksFree-g.BlocksCached) / float64(g.Blocks)
		}
		send("vllm:kv_cache_usage_perc", model, prometheus.GaugeValue, usage)
		send("manta_engine_sequences_running", model, prometheus.GaugeValue, float64(g.Running))
		send("manta_engine_sequences_waiting", model, prometheus.GaugeValue, float64(g.Waiting))
		send("manta_engine_blocks", model, prometheus.GaugeValue, float64(g.Blocks))
		send("manta_engine_blocks_cached", model, prometheus.GaugeValue, float64(g.BlocksCached))
		send("manta_engine_slots", model, prometheus.GaugeValue, float64(g.SlotsTaken))
		send("manta_engine_slots_unused", model, prometheus.GaugeValue, float64(g.SlotsTaken-g.SlotsUsed))
	}
}
