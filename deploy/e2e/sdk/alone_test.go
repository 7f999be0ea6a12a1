package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// body is the i-th request of a mixed lot: it depends on i alone.
func body(model string, i int) map[string]any {
	draw := rand.New(rand.NewPCG(uint64(i), 9))
	prompts := []string{"Once upon a time", "The sea is", "def main():\n", "1, 2, 3,", "A long list of animals: cat, dog,"}
	b := map[string]any{
		"model": model, "prompt": strings.Repeat(prompts[draw.IntN(len(prompts))]+" ", 1+draw.IntN(8)),
		"max_tokens": 1 + draw.IntN(24), "seed": i, "temperature": float64(draw.IntN(3)) / 2,
	}
	switch draw.IntN(6) {
	case 0:
		b["top_k"] = 5
	case 1:
		b["top_p"] = 0.8
	case 2:
		b["repetition_penalty"], b["min_p"] = 1.3, 0.05
	case 3:
		b["stop"] = []string{" the", "."}
	case 4:
		b["n"], b["presence_penalty"] = 2, 1.0
	case 5:
		b["logprobs"] = 1
	}
	return b
}

// answer gives the choices of a completion, as JSON.
func answer(ctx context.Context, client *http.Client, url string, body map[string]any) (string, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+key())
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %s, %w", response.StatusCode, text, err)
	}
	var whole struct {
		Choices json.RawMessage `json:"choices"`
	}
	err = json.Unmarshal(text, &whole)
	return string(whole.Choices), err
}

// Sixty-four requests of mixed lengths and parameters at once, with others that
// go away among them, get the answers that each gets alone, to the last logprob;
// afterwards no request holds a block.
func TestTogetherAsAlone(t *testing.T) {
	url := os.Getenv("MANTA_URL")
	if url == "" {
		url = fake(t)
	}
	_, model := connect(t)
	transport := &http.Transport{MaxIdleConnsPerHost: 128}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	const streams = 64
	alone := make([]string, streams)
	for i := range alone {
		var err error
		if alone[i], err = answer(t.Context(), client, url, body(model, i)); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for i := range streams {
		all.Go(func() {
			together, err := answer(t.Context(), client, url, body(model, i))
			if err != nil || together != alone[i] {
				t.Errorf("request %d: %v\nalone    %s\ntogether %s", i, err, alone[i], together)
			}
		})
		if i%4 == 0 {
			all.Go(func() {
				ctx, stop := context.WithTimeout(t.Context(), time.Duration(i*20)*time.Millisecond)
				defer stop()
				leaver := body(model, 1000+i)
				leaver["max_tokens"], leaver["ignore_eos"] = 500, true
				delete(leaver, "stop") // it shall not end by itself
				if _, err := answer(ctx, client, url, leaver); err == nil && os.Getenv("MANTA_URL") != "" {
					t.Errorf("the request that was to go away was answered")
				}
			})
		}
	}
	all.Wait()
	for _, name := range []string{"vllm:num_requests_running", "vllm:kv_cache_usage_perc"} {
		settle(t, client, url, name)
	}
}
