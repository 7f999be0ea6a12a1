//go:build e2e && linux

package scale

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"manta/head/api"
	"manta/head/client"
)

var (
	sizes     = flag.String("nodes", "1,4", "how many nodes there are, one measurement each, growing")
	streams   = flag.Int("streams", 128, "streams that are open")
	speed     = flag.Float64("speed", 0.04, "of a simulated device, in H200s: a step of an 8B model takes 4.2 ms over it")
	length    = flag.Duration("length", 5*time.Second, "of each measurement")
	headCount = flag.Int("heads", 3, "how many heads there are")
	every     = flag.Int("interval", 1, "the heads' --stream-interval")
)

// figures are what one size came to.
type figures struct {
	nodes        int
	idle         float64 // part of a processor, all heads
	idleSleeps   float64 // a second
	perToken     time.Duration
	perWrite     time.Duration // a token, of a program that does nothing but write as much to as many
	perQueued    time.Duration // of that, until the kernel has the bytes
	sleeps       float64       // of heads' threads, a token
	tokensPerSec float64
	tokensWrite  float64 // tokens an event
	perMB        time.Duration
	memory       int64           // bytes a stream
	first, alone []time.Duration // token of a probe, with the streams and without
}

// What heads cost, from one node on: the table of `make bench-scale`.
func TestScale(t *testing.T) {
	b := start(t)
	b.until("all heads", func(s *api.ClusterState) bool { return len(s.Heads) == *headCount })
	// Requests to this replica take a step that hardly takes time: what they wait is
	// the cluster's own.
	b.add(1, fmt.Sprintf("sim:%d@100", devices), map[string]string{"pool": "probe"})
	b.deploy("probe", 1, 16)
	var all []figures
	for _, text := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < b.nodes-1 {
			t.Fatalf("-nodes %s: give growing numbers", *sizes)
		}
		b.add(n-(b.nodes-1), fmt.Sprintf("sim:%d@%g", devices, *speed), map[string]string{"pool": "load"})
		b.deploy("load", n*devices, max(4, 2**streams/(n*devices)))
		f := b.measure(n)
		t.Logf("%d nodes: %+v first token p50 %v, %.2f sleeps a token, %.0f a second when idle", n, f.perToken, at(f.first, 0.5), f.sleeps, f.idleSleeps)
		all = append(all, f)
	}
	report(all)
}

func (b *bench) deploy(name string, replicas, sequences int) {
	b.t.Helper()
	body := map[string]any{
		"name": name, "model": b.model, "load_format": "dummy", "replicas": replicas,
		"max_model_len": 4096, "max_num_seqs": sequences, "node_selector": map[string]string{"pool": name},
	}
	if err := b.client.Post(b.t.Context(), "/api/cluster/deployments", body, nil); err != nil {
		b.t.Fatal(err)
	}
	b.until(fmt.Sprintf("%d replicas of %s", replicas, name), func(s *api.ClusterState) bool {
		i := slices.IndexFunc(s.Deployments, func(d api.Deployment) bool { return d.Name == name })
		return i >= 0 && s.Deployments[i].Ready == replicas && s.Deployments[i].Wanted == replicas
	})
}

func pause(d time.Duration) { <-time.After(d) }

func (b *bench) measure(n int) figures {
	f := figures{nodes: n}
	pause(2 * time.Second)
	before := b.cost()
	pause(*length)
	idle := b.cost().minus(before)
	f.idle, f.idleSleeps = idle.processor.Seconds()/length.Seconds(), float64(idle.sleeps)/length.Seconds()
	b.t.Logf("%d nodes: idle %.3f of a processor", n, f.idle)

	f.alone = b.probe()
	resident := b.cost().resident
	ctx, stop := context.WithCancel(b.t.Context())
	defer stop()
	var counted relayed
	var begun, ended sync.WaitGroup
	begun.Add(*streams)
	for i := range *streams {
		ended.Go(func() {
			var once sync.Once
			defer once.Do(begun.Done)
			err := stream(ctx, b.urls[i%*headCount], "load", 3900, func(bytes int) {
				counted.events.Add(1)
				counted.bytes.Add(int64(bytes))
				once.Do(begun.Done)
			})
			if ctx.Err() == nil {
				b.t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	begun.Wait()
	pause(time.Second)
	tokens := b.metric("vllm:generation_tokens_total", "load")
	before, events, bytes, from := b.cost(), counted.events.Load(), counted.bytes.Load(), time.Now()
	pause(*length)
	used, took := b.cost().minus(before), time.Since(from)
	events, bytes = max(counted.events.Load()-events, 1), counted.bytes.Load()-bytes
	tokens = b.metric("vllm:generation_tokens_total", "load") - tokens
	work := used.processor - time.Duration(f.idle*float64(took))
	f.tokensPerSec, f.tokensWrite = tokens/took.Seconds(), tokens/float64(events)
	f.perToken = time.Duration(float64(work) / tokens)
	f.sleeps = (float64(used.sleeps) - f.idleSleeps*took.Seconds()) / tokens
	f.memory = (b.cost().resident - resident) / int64(*streams)
	f.first = b.probe()
	stop()
	ended.Wait()
	f.perMB = b.prompts(f.idle)
	write, queued := floor(b.t, int(bytes/events), float64(events)/took.Seconds())
	f.perWrite, f.perQueued = time.Duration(float64(write)/f.tokensWrite), time.Duration(float64(queued)/f.tokensWrite)
	return f
}

// clients keep their connections, as many as there may be streams.
var clients = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024}}

// relayed is what has come to the clients.
type relayed struct{ events, bytes atomic.Int64 }

// stream asks one head for so many tokens and tells the size of each event that comes.
// It is a client that costs little: it shares the machine with what is measured.
func stream(ctx context.Context, url, model string, tokens int, each func(bytes int)) error {
	return question{model: model, prompt: "x", tokens: tokens}.ask(ctx, url, each)
}

// question is what a client asks.
type question struct {
	key, session  string // "": none
	model, prompt string
	tokens        int
}

// refused is an answer that is no stream.
type refused struct {
	status     int
	retryAfter string
	text       string
}

func (r *refused) Error() string {
	return fmt.Sprintf("status %d, Retry-After %q: %s", r.status, r.retryAfter, r.text)
}

// ask is stream for any question.
func (q question) ask(ctx context.Context, url string, each func(bytes int)) error {
	body := fmt.Sprintf(`{"model":%q,"prompt":%q,"max_tokens":%d,"ignore_eos":true,"stream":true}`, q.model, q.prompt, q.tokens)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	if q.key != "" {
		request.Header.Set("Authorization", "Bearer "+q.key)
	}
	if q.session != "" {
		request.Header.Set("X-Session-Id", q.session)
	}
	response, err := clients.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(response.Body) // it is for a message
		return &refused{response.StatusCode, response.Header.Get("Retry-After"), string(text)}
	}
	lines, size := bufio.NewReader(response.Body), 0
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return err
		}
		size += len(line)
		if bytes.HasPrefix(line, []byte("data: {")) {
			each(size + 1)
			size = -1
		}
		if bytes.HasPrefix(line, []byte("data: [DONE]")) {
			return nil
		}
	}
}

// probe asks for single tokens while the streams run. The devices that give them take
// no time to speak of, so that what it takes is what the cluster adds.
func (b *bench) probe() []time.Duration {
	var times []time.Duration
	for i := range 300 {
		var first time.Duration
		start := time.Now()
		err := stream(b.t.Context(), b.urls[i%*headCount], "probe", 1, func(int) {
			if first == 0 {
				first = time.Since(start)
			}
		})
		if err != nil {
			b.t.Fatalf("probe: %v", err)
		}
		times = append(times, first)
		pause(10 * time.Millisecond)
	}
	slices.Sort(times)
	return times
}

// prompts sends long prompts and gives the heads' processor time for a MB.
func (b *bench) prompts(idle float64) time.Duration {
	one := 1
	text := strings.Repeat("word ", 600)
	before, from, bytes := b.cost(), time.Now(), 0
	for time.Since(from) < *length {
		if _, err := b.client.Complete(b.t.Context(), "probe", text, client.Options{MaxTokens: &one, IgnoreEOS: true}, func(client.Piece) error { return nil }); err != nil {
			b.t.Fatalf("prompt: %v", err)
		}
		bytes += len(text)
	}
	used := b.cost().minus(before).processor - time.Duration(idle*float64(time.Since(from)))
	return time.Duration(float64(used) / (float64(bytes) / 1e6))
}

// own is what a head takes for a token but for the way of its bytes through loopback.
func (f figures) own() time.Duration { return f.perToken - (f.perWrite - f.perQueued) }

func at(times []time.Duration, part float64) time.Duration {
	return times[int(part*float64(len(times)-1))]
}

func report(all []figures) {
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintf(table, "nodes (simulated, %d devices each)\tidle, of a processor\tprocessor a relayed token\ta bare write\tof that until it is queued\thead's beyond loopback\tsleeps a token\ttokens/s\ttokens a write\tprocessor a MB of prompt\tmemory a stream\tfirst token alone p50\twith the streams p50\tp99\n", devices)
	micro := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	milli := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	for _, f := range all {
		fmt.Fprintf(table, "%d\t%.3f\t%.2f µs\t%.2f µs\t%.2f µs\t%.2f µs\t%.2f\t%.0f\t%.2f\t%.1f ms\t%.0f KiB\t%.2f ms\t%.2f ms\t%.2f ms\n", f.nodes, f.idle, micro(f.perToken), micro(f.perWrite),
			micro(f.perQueued), micro(f.own()), f.sleeps, f.tokensPerSec, f.tokensWrite, milli(f.perMB), float64(f.memory)/1024, milli(at(f.alone, 0.5)), milli(at(f.first, 0.5)), milli(at(f.first, 0.99)))
	}
	fmt.Fprintf(table, "growth\t%+.0f%%\t%+.0f%%\t%+.0f%%\t\t%+.0f%%\t\t\t\t%+.0f%%\n", growth(all, func(f figures) float64 { return f.idle }),
		growth(all, func(f figures) float64 { return float64(f.perToken) }), growth(all, func(f figures) float64 { return float64(f.perWrite) }), growth(all, func(f figures) float64 { return float64(f.own()) }), growth(all, func(f figures) float64 { return float64(f.perMB) }))
	table.Flush()
}

// growth is from the first size to the last, in percent.
func growth(all []figures, of func(figures) float64) float64 {
	return 100 * (of(all[len(all)-1])/of(all[0]) - 1)
}
