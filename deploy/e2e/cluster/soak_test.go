//go:build e2e && unix

package cluster

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"manta/head/api"
)

var (
	soak  = flag.Duration("soak", 20*time.Second, "how long the soak takes")
	every = flag.Duration("every", 10*time.Second, "time between two faults of the soak")
	seed  = flag.Uint64("seed", 1, "of the soak's choice of faults")
)

// usage is what a process holds.
type usage struct {
	pid        int
	files      int
	resident   int64 // bytes
	threads    int
	goroutines int // of heads; 0: not known
}

func (b *bench) usage(name string) usage {
	b.t.Helper()
	u := usage{pid: b.Member(name).Pid()}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", u.pid))
	if err != nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	u.files = len(files)
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(u.pid), "status"))
	if err != nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		number, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch key {
		case "RssAnon":
			u.resident = number << 10
		case "Threads":
			u.threads = int(number)
		}
	}
	if i, err := strconv.Atoi(strings.TrimPrefix(name, "head")); err == nil {
		u.goroutines = int(b.metric(i, "go_goroutines"))
	}
	return u
}

// metric reads a figure of a head, the sum over its labels.
func (b *bench) metric(head int, name string) (sum float64) {
	b.t.Helper()
	answer, err := http.Get("http://" + b.API[head] + "/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			b.t.Fatal(err)
		}
		sum += value
	}
	return sum
}

// spared live through the whole soak, so that what leaks is seen to grow: they are
// stopped and cut off, but never killed.
var spared = []string{"head0", "node0"}

// disturb makes one fault, and mends it after a while.
func (b *bench) disturb(random *rand.Rand) string {
	b.t.Helper()
	var names []string
	for i := range headCount {
		names = append(names, fmt.Sprint("head", i))
	}
	for i := range nodeCount {
		names = append(names, fmt.Sprint("node", i))
	}
	victim := names[random.IntN(len(names))]
	kind := random.IntN(3)
	if kind == 0 && (victim == spared[0] || victim == spared[1]) || kind == 2 && b.network == nil {
		kind = 1
	}
	var mend func()
	switch kind {
	case 0:
		mend = b.kill(victim)
	case 1:
		mend = b.freeze(victim)
	case 2:
		mend = b.network.isolate(victim)
	}
	after := time.Duration(1+random.IntN(4)) * *every / 8
	<-time.After(after) // the fault lasts so long
	mend()
	return fmt.Sprintf("%s of %s for %v", []string{"kill", "stop", "cut"}[kind], victim, after)
}

// Faults come one after the other while streams run: none fails, each gives the
// tokens of the undisturbed run, and at the end no process holds more blocks,
// goroutines, files or memory than work of that kind takes.
func TestSoak(t *testing.T) {
	n := newNetwork(t)
	b := newBenchOn(t, n, "cpu")
	b.deploy()
	undisturbed := b.all(func() {})
	b.rest()
	before := map[string]usage{}
	for _, name := range b.Names() {
		before[name] = b.usage(name)
	}
	ctx, stop := context.WithTimeout(t.Context(), *soak)
	defer stop()
	var running sync.WaitGroup
	var told atomic.Int64
	for i := range *streams {
		running.Go(func() {
			for head := i; ctx.Err() == nil; head++ {
				s := b.tell(head%headCount, i, func() {})
				if told.Add(1); s.err != nil || s.text != undisturbed[i].text {
					t.Errorf("stream %d: %v: %q, undisturbed %q", i, s.err, s.text, undisturbed[i].text)
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	faults := 0
	ticker := time.NewTicker(*every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		t.Log(b.disturb(random))
		faults++
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	running.Wait()
	b.rest()
	t.Logf("%d faults, %d streams", faults, told.Load())
	for name, was := range before {
		var is usage
		b.until("nothing that grew of "+name, func(*api.ClusterState) bool {
			is = b.usage(name)
			return is.files <= was.files+32 && is.goroutines <= was.goroutines+64 && is.resident <= was.resident+was.resident/2+256<<20
		})
		same := ""
		if is.pid == was.pid {
			same = ", the same process"
		}
		t.Logf("%s: files %d to %d, threads %d to %d, goroutines %d to %d, memory %d to %d MiB%s", name,
			was.files, is.files, was.threads, is.threads, was.goroutines, is.goroutines, was.resident>>20, is.resident>>20, same)
	}
}

// rest waits until the cluster is whole and nothing runs, and checks that no block
// is held.
func (b *bench) rest() {
	b.t.Helper()
	b.whole()
	b.until("a ready replica", ready)
	b.until("idle drivers", func(*api.ClusterState) bool {
		return b.metric(0, "manta_engine_sequences_running") == 0 && b.metric(0, "vllm:kv_cache_usage_perc") == 0
	})
	for i := range headCount {
		b.until("an idle head", func(*api.ClusterState) bool {
			return b.metric(i, "vllm:num_requests_running") == 0 && b.metric(i, "vllm:num_requests_waiting") == 0
		})
	}
}
