package telemetry

import (
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func scrape(m *Metrics) string {
	recorder := httptest.NewRecorder()
	m.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	return recorder.Body.String()
}

// Dashboards made for vLLM, and the seed guide's queries, find their names in
// the exposition.
func TestExposition(t *testing.T) {
	m := New()
	m.Known("m")
	m.Waiting("m", 2)
	m.Running("m", 1)
	m.Output("m", 1, true, 30*time.Millisecond)
	m.Output("m", 4, false, 80*time.Millisecond)
	m.Ended("m", Request{
		Status: "success", Finishes: []string{"stop"}, Prompt: 7, Outputs: []int{5}, MaxTokens: 16,
		Queue: time.Millisecond, Prefill: 29 * time.Millisecond, Decode: 80 * time.Millisecond, Total: 110 * time.Millisecond,
	})
	m.SetEngine("m", "r1", 1, Engine{Blocks: 10, BlocksFree: 4, BlocksCached: 1, PrefixQueries: 100, PrefixHits: 60, SlotsTaken: 80, SlotsUsed: 70})
	text := scrape(m)
	for _, line := range []string{
		`vllm:num_requests_waiting{model_name="m"} 2`,
		`vllm:num_requests_running{model_name="m"} 1`,
		`vllm:kv_cache_usage_perc{model_name="m"} 0.5`,
		`vllm:prefix_cache_queries_total{model_name="m"} 100`,
		`vllm:prefix_cache_hits_total{model_name="m"} 60`,
		`vllm:num_preemptions_total{model_name="m"} 0`,
		`vllm:prompt_tokens_total{model_name="m"} 7`,
		`vllm:generation_tokens_total{model_name="m"} 5`,
		`vllm:request_success_total{finished_reason="stop",model_name="m"} 1`,
		`vllm:request_success_total{finished_reason="length",model_name="m"} 0`,
		`vllm:time_to_first_token_seconds_bucket{model_name="m",le="0.04"} 1`,
		`vllm:time_to_first_token_seconds_bucket{model_name="m",le="0.02"} 0`,
		`vllm:inter_token_latency_seconds_count{model_name="m"} 4`,
		`vllm:inter_token_latency_seconds_bucket{model_name="m",le="0.025"} 4`,
		`vllm:e2e_request_latency_seconds_count{model_name="m"} 1`,
		`vllm:request_queue_time_seconds_count{model_name="m"} 1`,
		`vllm:request_params_max_tokens_sum{model_name="m"} 16`,
		`vllm_requests_total{model_name="m",status="success"} 1`,
		`vllm_request_latency_seconds_count{model_name="m"} 1`,
		`vllm_tokens_generated_total{model_name="m"} 5`,
		`manta_engine_slots_unused{model_name="m"} 10`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("the exposition lacks %s", line)
		}
	}
}

// A counter never falls: what an epoch or a replica that fell silent had counted
// stays. The gauges of one that is silent go.
func TestEngineCountersOutliveEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		m.SetEngine("m", "r1", 1, Engine{Preemptions: 5})
		m.SetEngine("m", "r1", 2, Engine{Preemptions: 1})
		m.SetEngine("m", "r1", 1, Engine{Preemptions: 9}) // late
		m.SetEngine("m", "r2", 1, Engine{Preemptions: 2, Blocks: 7})
		for range 3 {
			<-time.After(silent / 2)
			m.SetEngine("m", "r1", 2, Engine{Preemptions: 1, Blocks: 4})
		}
		text := scrape(m)
		for _, line := range []string{`vllm:num_preemptions_total{model_name="m"} 8`, `manta_engine_blocks{model_name="m"} 4`} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("the exposition lacks %s", line)
			}
		}
	})
}

// Rates forget what is older than a minute, and loads of heads add up.
func TestLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		m.Waiting("m", 3)
		m.Waiting("m", -1)
		m.Running("m", 1)
		for range 30 {
			m.Ended("m", Request{Status: "success"})
			<-time.After(time.Second)
		}
		if got := m.Loads()["m"]; got != (Load{Waiting: 2, Running: 1, PerSecond: 0.5}) {
			t.Errorf("after 30 requests in 30 s: %+v", got)
		}
		<-time.After(45 * time.Second)
		if got := m.Loads()["m"].PerSecond; got != 14.0/60 {
			t.Errorf("45 s later: %v", got)
		}
		<-time.After(time.Minute)
		if got := m.Loads()["m"].Add(Load{Waiting: 1}); got != (Load{Waiting: 3, Running: 1}) {
			t.Errorf("a minute later, and another head: %+v", got)
		}
	})
}
