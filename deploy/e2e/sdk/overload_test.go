package sdk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// outcomes counts what became of requests.
type outcomes struct {
	answered, refused, left, failed atomic.Int64
	problem                         atomic.Pointer[string]
}

func (o *outcomes) fail(format string, a ...any) {
	o.failed.Add(1)
	text := fmt.Sprintf(format, a...)
	o.problem.CompareAndSwap(nil, &text)
}

// Far more work than a server can do, from clients of which a fifth go away in
// the middle: what is admitted is answered whole, the rest gets 429 with
// Retry-After, and afterwards nothing runs, waits or holds memory.
// OVERLOAD_SECONDS and OVERLOAD_CLIENTS make it longer and harder.
func TestOverload(t *testing.T) {
	url := os.Getenv("MANTA_URL")
	// Each is an open file, and two where this process is the server too; 1,024 are
	// what every machine lets it have. A queue and a full replica hold some 770.
	most := 900
	if url == "" {
		most, url = 400, fake(t)
	}
	clients := number(t, "OVERLOAD_CLIENTS", most)
	_, model := connect(t)
	transport := &http.Transport{MaxIdleConnsPerHost: clients, MaxConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	before := metric(t, client, url, "process_resident_memory_bytes")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	began, length := time.Now(), time.Duration(number(t, "OVERLOAD_SECONDS", 2))*time.Second
	var sum outcomes
	var all sync.WaitGroup
	peak := before
	for i := range clients {
		all.Go(func() {
			draw := rand.New(rand.NewPCG(uint64(i), 1))
			for ctx.Err() == nil {
				// A request that was begun is read to its end, past the test's time.
				one(t.Context(), ctx, client, url, model, draw, &sum)
			}
		})
	}
	watch := time.NewTicker(500 * time.Millisecond)
	defer watch.Stop()
	// A slow machine takes longer until the clients are more than it can bear.
	bears := func() bool { return os.Getenv("MANTA_URL") != "" && sum.refused.Load() == 0 }
	for time.Since(began) < length || bears() && time.Since(began) < patience {
		<-watch.C
		peak = max(peak, metric(t, client, url, "process_resident_memory_bytes"))
	}
	stop()
	all.Wait()
	t.Logf("%d answered, %d refused, %d went away, %d failed; memory %.0f MB before, %.0f MB at most, %.0f MB after",
		sum.answered.Load(), sum.refused.Load(), sum.left.Load(), sum.failed.Load(), before/1e6, peak/1e6,
		metric(t, client, url, "process_resident_memory_bytes")/1e6)
	if sum.failed.Load() > 0 {
		t.Errorf("%d requests failed, the first with: %s", sum.failed.Load(), *sum.problem.Load())
	}
	if sum.answered.Load() == 0 || (sum.refused.Load() == 0 && os.Getenv("MANTA_URL") != "") {
		t.Error("nothing was answered, or nothing refused: this was no overload")
	}
	if before > 0 && peak > before+512e6 {
		t.Errorf("memory grew from %.0f MB to %.0f MB", before/1e6, peak/1e6)
	}
	for _, name := range []string{"vllm:num_requests_running", "vllm:num_requests_waiting", "manta_engine_sequences_running"} {
		settle(t, client, url, name)
	}
}

// one does one request; it may go away before its end.
func one(ctx, test context.Context, client *http.Client, url, model string, draw *rand.Rand, sum *outcomes) {
	tokens := 1 + draw.IntN(24)
	body := fmt.Sprintf(`{"model":%q,"prompt":"Once upon a time %d","max_tokens":%d,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}`,
		model, draw.IntN(1000), tokens)
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	leaves := draw.IntN(5) == 0
	if leaves {
		timer := time.AfterFunc(time.Duration(draw.IntN(2000))*time.Millisecond, leave)
		defer timer.Stop()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", strings.NewReader(body))
	if err != nil {
		sum.fail("%v", err)
		return
	}
	request.Header.Set("Authorization", "Bearer "+key())
	response, err := client.Do(request)
	if err != nil {
		if leaves && errors.Is(err, context.Canceled) {
			sum.left.Add(1)
		} else {
			sum.fail("%v", err)
		}
		return
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusTooManyRequests:
		after, err := strconv.Atoi(response.Header.Get("Retry-After"))
		if err != nil || after < 1 {
			sum.fail("429 with Retry-After %q", response.Header.Get("Retry-After"))
		}
		sum.refused.Add(1)
		select { // try again, but not as soon as the server asks: it shall be overloaded
		case <-time.After(time.Duration(100+draw.IntN(400)) * time.Millisecond):
		case <-test.Done():
		}
		return
	default:
		data, _ := io.ReadAll(response.Body)
		sum.fail("status %d: %s", response.StatusCode, data)
		return
	}
	text, err := io.ReadAll(response.Body)
	switch {
	case err != nil && leaves:
		sum.left.Add(1)
	case err != nil:
		sum.fail("cut: %v", err)
	case !strings.HasSuffix(string(text), "data: [DONE]\n\n") || !strings.Contains(string(text), fmt.Sprintf(`"completion_tokens":%d,`, tokens)):
		sum.fail("not whole: %s", text)
	default:
		sum.answered.Add(1)
	}
}

// metric reads the sum of a metric's series; 0 where the server has none.
func metric(t *testing.T, client *http.Client, url, name string) float64 {
	t.Helper()
	response, err := client.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if series, _, _ = strings.Cut(series, "{"); series == name {
			number, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			sum += number
		}
	}
	return sum
}

// patience bounds every wait: the machine may be busy with other things.
const patience = 4 * time.Minute

// settle waits until a gauge is zero.
func settle(t *testing.T, client *http.Client, url, name string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		value := metric(t, client, url, name)
		if value == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("%s stays at %v", name, value)
			return
		}
	}
}

func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no number", variable, text)
	}
	return n
}
