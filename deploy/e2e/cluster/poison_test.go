//go:build e2e && unix

package cluster

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"manta/head/api"
)

// A request that ends whatever process runs it is failed after it did so alone; the
// streams that run beside it, and see all those deaths, go on with their own tokens.
// The device processes really die: of a token that simulated devices are told to die of.
func TestPoison(t *testing.T) {
	defer func(before string, n int) { *apart, *streams = before, n }(*apart, *streams)
	*apart, *streams = "always", 12
	b := newBenchOn(t, nil, "sim:1@0.02!4999")
	b.serve(2, 2)
	undisturbed := b.all(func() {})
	epochs := func() (sum uint64) {
		for _, r := range b.readyReplicas(2).Deployments[0].Replicas {
			sum += r.Epoch
		}
		return sum
	}
	for round := range *rounds {
		before := epochs()
		n, pause := b.under(undisturbed, func(*load) {
			began := time.Now()
			ctx, stop := context.WithTimeout(t.Context(), 2*patience)
			defer stop()
			body := `{"model": "smollm2", "prompt": [1, 2, 4999], "max_tokens": 4}`
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+b.API[round%headCount]+"/v1/completions", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Errorf("the poison: %v", err)
				return
			}
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != http.StatusInternalServerError || !strings.Contains(string(text), "ends whatever replica runs it") {
				t.Errorf("the poison is answered with %d %s, %v", answer.StatusCode, text, err)
			}
			t.Logf("the poison failed after %v", time.Since(began).Round(10*time.Millisecond))
			b.until("ready replicas", func(s *api.ClusterState) bool { return s.Deployments[0].Ready == 2 })
		})
		if after := epochs(); after == before {
			t.Error("no replica died")
		}
		t.Logf("%d streams beside it, longest pause %v", n, pause.Round(10*time.Millisecond))
	}
}
