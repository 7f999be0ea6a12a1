package load

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/head/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Quantiles are by nearest rank.
func TestQuantiles(t *testing.T) {
	var times []time.Duration
	for i := 100; i >= 1; i-- {
		times = append(times, time.Duration(i)*time.Millisecond)
	}
	if got, want := quantiles(times), (Quantiles{50.5, 50, 90, 99, 100}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := quantiles(times[:1]); got.P50 != 1 || got.P99 != 1 {
		t.Errorf("of one: %+v", got)
	}
}

// Lengths and prompts depend on the seed alone, and lie within the bounds.
func TestRandomWorkIsSeeded(t *testing.T) {
	a, b := RandomWork(50, 100, 20, 0.5, 7), RandomWork(50, 100, 20, 0.5, 7)
	if !slices.Equal(a, b) || slices.Equal(a, RandomWork(50, 100, 20, 0.5, 8)) {
		t.Error("work does not follow its seed")
	}
	for _, w := range a {
		if w.Input < 50 || w.Input > 150 || w.Output < 10 || w.Output > 30 {
			t.Errorf("%+v out of bounds", w)
		}
	}
}

func TestReadWork(t *testing.T) {
	name := filepath.Join(t.TempDir(), "work.json")
	for text, ok := range map[string]bool{`[[3,4],[5,6]]`: true, `[]`: false, `[[1]]`: false, `[[0,1]]`: false, `{}`: false} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if work, err := ReadWork(name); (err == nil) != ok {
			t.Errorf("%s: %v, %v", text, work, err)
		}
	}
}

// A run does every request once with the asked lengths, counts tokens as the
// server does, and reports failures.
func TestRun(t *testing.T) {
	var mu sync.Mutex
	asked := map[int]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Prompt    []int `json:"prompt"`
			MaxTokens int   `json:"max_tokens"`
			IgnoreEOS bool  `json:"ignore_eos"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || !body.IgnoreEOS {
			t.Errorf("body %+v, %v", body, err)
		}
		mu.Lock()
		asked[len(body.Prompt)] = body.MaxTokens
		mu.Unlock()
		if len(body.Prompt) == 3 {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		for range body.MaxTokens {
			fmt.Fprint(w, "data: {\"choices\":[{\"text\":\"x\"}]}\n\n")
		}
		fmt.Fprintf(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d}}\n\ndata: [DONE]\n\n",
			len(body.Prompt), body.MaxTokens)
	}))
	defer server.Close()
	c := client.New("", server.URL)
	defer c.Close()
	report, err := Run(t.Context(), Config{
		Clients: []*client.Client{c}, Work: []Work{{Input: 1, Output: 5}, {Input: 2, Output: 6}, {Input: 3, Output: 7}, {Input: 4, Output: 8}}, Concurrency: 2, Vocabulary: [2]int{10, 20}, IgnoreEOS: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if report.Requests != 4 || report.Failed != 1 || report.InputTokens != 7 || report.OutputTokens != 19 || len(asked) != 4 {
		t.Errorf("%+v, asked %v", report, asked)
	}
	var table strings.Builder
	if err := WriteTable(&table, report); err != nil || !strings.Contains(table.String(), "time to first token") {
		t.Errorf("%v\n%s", err, table.String())
	}
}
