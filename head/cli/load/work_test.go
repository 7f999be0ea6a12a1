package load

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"manta/head/client"
)

// Arrivals keep to the rate whatever their shape, and the gaps vary as a gamma
// distribution's do: the variance over the squared mean is 1 / shape.
func TestArrivals(t *testing.T) {
	const n, rate = 20000, 50.0
	for _, shape := range []float64{0.3, 1, 4} {
		begins := arrivals(n, rate, shape, 3)
		if !slices.IsSorted(begins) || !slices.Equal(begins, arrivals(n, rate, shape, 3)) {
			t.Errorf("shape %v: out of order, or not seeded", shape)
		}
		mean := begins[n-1].Seconds() / (n - 1)
		variance := 0.0
		for i := 1; i < n; i++ {
			d := (begins[i] - begins[i-1]).Seconds() - mean
			variance += d * d / (n - 1)
		}
		if got := variance / mean / mean * shape; mean*rate < 0.95 || mean*rate > 1.05 || got < 0.85 || got > 1.15 {
			t.Errorf("shape %v: mean gap %.4f of 1/rate, variance %.2f of what it must be", shape, mean*rate, got)
		}
	}
	if begins := arrivals(3, 0, 1, 1); begins[2] != 0 {
		t.Errorf("a closed loop waits until %v", begins[2])
	}
}

// Requests of one prefix begin with the same tokens and go on with their own.
func TestSharedPrefixes(t *testing.T) {
	work := RandomWork(6, 8, 1, 0, 1)
	SharePrefixes(work, 2, 5)
	config := Config{Work: work, Vocabulary: [2]int{0, 1 << 20}, Seed: 9}
	var prompts [][]int
	for i, w := range work {
		prompts = append(prompts, prompt(&config, w, i))
	}
	for i, p := range prompts {
		for j, q := range prompts[:i] {
			if len(p) != 13 || slices.Equal(p[:5], q[:5]) != (i%2 == j%2) || slices.Equal(p[5:], q[5:]) {
				t.Errorf("prompts %d and %d: %v, %v", i, j, p, q)
			}
		}
	}
}

// fakeChats answers chats and remembers what was asked.
func fakeChats(t *testing.T) (url string, asked func() [][]client.Message) {
	var mu sync.Mutex
	var all [][]client.Message
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Messages []client.Message }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		mu.Lock()
		all = append(all, body.Messages)
		n := len(all)
		mu.Unlock()
		fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"answer %d\"}}]}\n\ndata: [DONE]\n\n", n)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() [][]client.Message { mu.Lock(); defer mu.Unlock(); return all }
}

// A turn brings all that was said before it, to the endpoint that said it; the
// conversations are spread over the endpoints.
func TestConversations(t *testing.T) {
	one, askedOne := fakeChats(t)
	two, askedTwo := fakeChats(t)
	work := RandomWork(12, 4, 4, 0, 1)
	Converse(work, 3)
	clients := []*client.Client{client.New("", one), client.New("", two)}
	for _, c := range clients {
		defer c.Close()
	}
	bound, err := ParseBound([]string{"ttft:60000", "e2el:60000"})
	if err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), Config{Clients: clients, Work: work, Concurrency: 2, Rate: 500, Vocabulary: [2]int{1, 2}, Goodput: bound})
	if err != nil || report.Failed != 0 || report.Requests != 12 || report.Good != 12 {
		t.Fatalf("%+v, %v", report, err)
	}
	for _, asked := range [][][]client.Message{askedOne(), askedTwo()} {
		lengths := map[int]int{}
		for _, messages := range asked {
			lengths[len(messages)]++
			for i, m := range messages {
				if (i%2 == 1) != strings.HasPrefix(m.Content, "answer") {
					t.Errorf("message %d of %d: %+v", i, len(messages), m)
				}
			}
		}
		if lengths[1] != 2 || lengths[3] != 2 || lengths[5] != 2 {
			t.Errorf("an endpoint was asked %v", lengths)
		}
	}
}

// A turn that fails ends its chat: what would follow would be another chat.
func TestFailedTurn(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 2 {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		fmt.Fprint(w, "data: {\"choices\":[{\"delta\":{\"content\":\"yes\"}}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,"+
			"\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\ndata: [DONE]\n\n")
	}))
	defer server.Close()
	work := RandomWork(4, 4, 4, 0, 1)
	Converse(work, 4)
	c := client.New("", server.URL)
	defer c.Close()
	bound, err := ParseBound([]string{"tpot:12.5", "ttft:60000"})
	if err != nil || bound.String() != "ttft:60000,tpot:12.5" {
		t.Errorf("%v, %v", bound, err)
	}
	report, err := Run(t.Context(), Config{Clients: []*client.Client{c}, Work: work, Concurrency: 1, Vocabulary: [2]int{1, 2}, Goodput: bound})
	if err != nil || asked != 2 || report.Failed != 3 || report.CachedTokens != 3 {
		t.Fatalf("%d asked, %+v, %v", asked, report, err)
	}
	var table strings.Builder
	if err := WriteTable(&table, report); err != nil || !strings.Contains(table.String(), "1 of 4 within ttft:60000,tpot:12.5") || !strings.Contains(table.String(), "33% from the prefix cache") {
		t.Errorf("%v\n%s", err, &table)
	}
}

// What is beyond the bound is not good; a bound that is none is refused.
func TestGoodput(t *testing.T) {
	b, err := ParseBound([]string{"ttft:100", "tpot:10"})
	if err != nil {
		t.Fatal(err)
	}
	ms := time.Millisecond
	for s, want := range map[*sample]bool{
		{first: 100 * ms, total: 190 * ms, output: 10}: true, {first: 101 * ms, total: 190 * ms, output: 10}: false,
		{first: 100 * ms, total: 300 * ms, output: 10}: false, {first: ms, total: ms, output: 1}: true, {err: io.EOF}: false,
	} {
		if b.holds(s) != want {
			t.Errorf("%+v: %v", s, !want)
		}
	}
	for _, bad := range []string{"ttft", "ttft:x", "ttft:-1", "itl:5"} {
		if _, err := ParseBound([]string{bad}); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

// A report that was written is read again and set beside another.
func TestComparison(t *testing.T) {
	name := filepath.Join(t.TempDir(), "r.json")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteJSON(file, &Report{OutputPerSec: 100, FirstToken: Quantiles{P50: 8}}); err != nil {
		t.Fatal(err)
	}
	file.Close()
	before, err := ReadReport(name)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := WriteComparison(&out, before, &Report{Seed: 7, OutputPerSec: 150, FirstToken: Quantiles{P50: 4}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1.500", "0.500", "seed 0 and 7"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no ratio of %s in\n%s", want, &out)
		}
	}
}
