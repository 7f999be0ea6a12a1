package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"manta/head/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeHeads is raft and the store of several heads, of which one leads.
type fakeHeads struct {
	mu      sync.Mutex
	view    *state.View
	changed chan struct{}
	leader  string
	blobs   map[state.Digest][]byte
	calls   map[string]int // by line
	deploy  func(state.Deployment) (state.Deployment, error)
	answer  func(call Call, times int) Answer // nil: 200 after a while
	reads   int                               // the newest version that all read; 0: any
}

func newFakeHeads() *fakeHeads {
	return &fakeHeads{
		view: &state.View{Index: 10}, changed: make(chan struct{}), leader: "a",
		blobs: map[state.Digest][]byte{}, calls: map[string]int{},
	}
}

func (f *fakeHeads) PutBlob(ctx context.Context, data []byte) (state.Digest, error) {
	<-time.After(time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	d := state.Digest(sha256.Sum256(data))
	f.blobs[d] = bytes.Clone(data)
	return d, ctx.Err()
}

func (f *fakeHeads) Blob(_ context.Context, d state.Digest) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.blobs[d]
	if !ok {
		return nil, fmt.Errorf("no blob %x", d[:4])
	}
	return data, nil
}

// Line answers after a time, unless the head that asks dies.
func (f *fakeHeads) Line(ctx context.Context, call Call) Answer {
	select {
	case <-time.After(time.Duration(10+call.Seed%50) * time.Millisecond):
	case <-ctx.Done():
		return Answer{Status: clientGone}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[string(call.Body)]++
	if f.answer != nil {
		return f.answer(call, f.calls[string(call.Body)])
	}
	return Answer{Status: 200, RequestID: "r", Body: fmt.Appendf(nil, `{"text":%q,"seed":%d,"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}`, call.Body, call.Seed)}
}

// head is one head's part.
type fakeHead struct {
	*fakeHeads
	id string
}

func (h fakeHead) View() *state.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view
}

func (h fakeHead) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

func (h fakeHead) Leading() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.leader == h.id
}

func (h fakeHead) Apply(ctx context.Context, changes ...state.Change) error {
	<-time.After(2 * time.Millisecond)
	if err := ctx.Err(); err != nil {
		return err
	}
	data, err := state.Command{At: time.Now(), Changes: changes}.Encode()
	if err != nil {
		return err
	}
	command, err := state.DecodeCommand(data)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reads > 0 && command.Version > h.reads {
		return state.ErrVersion
	}
	h.view, err = h.view.Apply(h.view.Index+1, command)
	close(h.changed)
	h.changed = make(chan struct{})
	return err
}

func (h fakeHead) Deploy(ctx context.Context, d state.Deployment) (state.Deployment, error) {
	if h.deploy != nil {
		if d, err := h.deploy(d); err != nil {
			return d, err
		}
	}
	return d, h.Apply(ctx, state.Change{PutDeployment: &d})
}

// start runs a head's runner; the result kills it.
func (f *fakeHeads) start(id string) (kill func()) {
	ctx, stop := context.WithCancel(context.Background())
	r := New(Config{Head: id, Cluster: fakeHead{f, id}, Store: f, Lines: f, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() { stop(); <-done }
}

func (f *fakeHeads) lead(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = id
}

// submit gives the id of a new batch of so many lines.
func (f *fakeHeads) submit(t *testing.T, id, input string) {
	t.Helper()
	parts, err := PutFile(t.Context(), f, strings.NewReader(input), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	h := fakeHead{f, "client"}
	file := state.File{ID: "file-" + id, Parts: parts}
	job := state.Job{ID: id, Kind: state.Batch, Token: state.Digest{1}, Batch: &state.BatchJob{Input: file.ID, Window: time.Minute}}
	if err := h.Apply(t.Context(), state.Change{PutFile: &file}, state.Change{PutJob: &job}); err != nil {
		t.Fatal(err)
	}
}

func input(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"custom_id":"line-%d","method":"POST","url":"/v1/completions","body":{"prompt":"%d"}}`+"\n", i, i)
	}
	return b.String()
}

// over waits for a job's end.
func (f *fakeHeads) over(id string) state.Job {
	h := fakeHead{f, ""}
	for {
		changed := h.Changed()
		if j := h.View().Jobs[id]; j.Status.Over() {
			return j
		}
		<-changed
	}
}

func (f *fakeHeads) text(t *testing.T, parts []state.Part) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := out.ReadFrom(Open(t.Context(), f, parts)); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// results gives the answers by custom id, each of which must stand there once.
func (f *fakeHeads) results(t *testing.T, parts []state.Part) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(f.text(t, parts)) {
		var r result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if _, twice := all[r.CustomID]; twice {
			t.Errorf("%s stands twice", r.CustomID)
		}
		if r.Response != nil {
			all[r.CustomID] = string(r.Response.Body)
		}
	}
	return all
}

// Leaders that die, or lose the lead and live on, lose nothing of a batch: each
// line stands once in the output, with the tokens that it has undisturbed, and no
// more lines were computed again than were in flight.
func TestBatchOutlivesItsRunners(t *testing.T) {
	const lines, kills = 2000, 20
	for seed := range uint64(3) {
		synctest.Test(t, func(t *testing.T) {
			calm := newFakeHeads()
			kill := calm.start("a")
			calm.submit(t, "b", input(lines))
			want := calm.results(t, calm.over("b").Batch.Answers)
			kill()

			f := newFakeHeads()
			draw := rand.New(rand.NewPCG(seed, 1))
			runners := map[string]func(){"a": f.start("a"), "b": f.start("b"), "c": f.start("c")}
			f.submit(t, "b", input(lines))
			for range kills {
				<-time.After(time.Duration(draw.IntN(80)) * time.Millisecond)
				next := string(rune('a' + draw.IntN(3)))
				if old := f.leader; draw.IntN(2) == 0 {
					runners[old]()
					runners[old] = f.start(old)
				}
				f.lead(next)
			}
			j := f.over("b")
			if j.Status != state.Succeeded || j.Batch.Completed != lines || j.Batch.Failed != 0 || j.Batch.Total != lines {
				t.Fatalf("%+v %+v", j, j.Batch)
			}
			if want := (state.BatchUsage{Answers: lines, Input: 3 * lines, Cached: lines, Output: 2 * lines}); j.Batch.Usage != want {
				t.Errorf("it took %+v, want %+v", j.Batch.Usage, want)
			}
			got := f.results(t, fakeHead{f, ""}.View().Files[j.Batch.AnswersFile].Parts)
			for id, text := range want {
				if got[id] != text {
					t.Errorf("%s: %s, undisturbed %s", id, got[id], text)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d results, want %d", len(got), len(want))
			}
			calls := 0
			for _, n := range f.calls {
				calls += n
			}
			if most := lines + kills*(atOnce+flushLines+flushLines); calls > most {
				t.Errorf("%d lines computed, at most %d", calls, most)
			}
			if len(j.Batch.Answers) > manyParts+2 || len(j.Log) > manyParts+2 {
				t.Errorf("%d parts of answers, %d of the log", len(j.Batch.Answers), len(j.Log))
			}
			for _, stop := range runners {
				stop()
			}
		})
	}
}

// A batch goes on while a head is still to be upgraded that can't read what it took, and
// says of itself that not all is counted.
func TestBatchGoesOnDuringAnUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeHeads()
		f.reads = 4
		defer f.start("a")()
		f.submit(t, "b", input(1000))
		f.until(func(v *state.View) bool { return v.Jobs["b"].Batch.Completed > 100 })
		f.mu.Lock()
		f.reads = 5
		f.mu.Unlock()
		j := f.over("b")
		if u := j.Batch.Usage; j.Status != state.Succeeded || j.Batch.Completed != 1000 || u.Answers == 0 || u.Answers == 1000 {
			t.Errorf("%s: %s, %d answers, %+v", j.Status, j.Message, j.Batch.Completed, u)
		}
	})
}

// A file is deleted when its time is over, unless a batch reads it; then after that.
func TestFilesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeHeads()
		f.answer = func(Call, int) Answer { return Answer{Status: 503} }
		defer f.start("a")()
		h := fakeHead{f, ""}
		parts, err := PutFile(t.Context(), f, strings.NewReader(input(1)), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		job := state.Job{ID: "b", Kind: state.Batch, Token: state.Digest{1}, Batch: &state.BatchJob{Input: "read", Window: 2 * time.Hour}}
		for id, lasts := range map[string]time.Duration{"kept": 0, "later": 3 * time.Hour, "idle": time.Hour, "read": time.Hour} {
			if err := h.Apply(t.Context(), state.Change{PutFile: &state.File{ID: id, Parts: parts, Lasts: lasts}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Apply(t.Context(), state.Change{PutJob: &job}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			after time.Duration
			want  string
		}{{time.Hour - time.Minute, "idle kept later read"}, {2 * time.Minute, "kept later read"}, {time.Hour, "kept later"}, {time.Hour, "kept"}} {
			<-time.After(c.after)
			if got := strings.Join(slices.Sorted(maps.Keys(h.View().Files)), " "); got != c.want {
				t.Errorf("%v later: %s, want %s", c.after, got, c.want)
			}
		}
	})
}

// What a job comes to, by its input and by what happens meanwhile.
func TestBatchEnds(t *testing.T) {
	refuse := func(status int) func(Call, int) Answer {
		return func(Call, int) Answer { return Answer{Status: status, Body: []byte(`{}`)} }
	}
	for name, c := range map[string]struct {
		input   string
		answer  func(Call, int) Answer
		during  func(t *testing.T, f *fakeHeads)
		status  state.JobStatus
		message string
	}{
		"empty":          {"\n\n", nil, nil, state.Broken, "empty"},
		"not JSON":       {"x\n", nil, nil, state.Broken, "line 1"},
		"twice":          {input(1) + input(1), nil, nil, state.Broken, "stands in line 1 too"},
		"another url":    {`{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{}}`, nil, nil, state.Broken, "/v1/embeddings"},
		"a stream":       {`{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"stream":true}}`, nil, nil, state.Broken, "body.stream"},
		"too many":       {input(MaxLines + 1), nil, nil, state.Broken, "50000"},
		"all refused":    {input(3), refuse(400), nil, state.Broken, "all 3"},
		"faults of ours": {input(3), refuse(500), nil, state.Broken, "all 3"},
		"busy for a time": {input(3), func(_ Call, n int) Answer {
			return Answer{Status: map[bool]int{true: 429, false: 200}[n < 9], Body: []byte(`{}`)}
		}, nil, state.Succeeded, "3 lines"},
		"stopped": {input(1000), nil, func(t *testing.T, f *fakeHeads) {
			<-time.After(200 * time.Millisecond)
			if err := (fakeHead{f, ""}).Apply(t.Context(), state.Change{StopJob: "b"}); err != nil {
				t.Fatal(err)
			}
		}, state.Stopped, "stopped"},
		"expired": {input(100), refuse(503), func(*testing.T, *fakeHeads) {}, state.Stopped, Expired},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeHeads()
				f.answer = c.answer
				defer f.start("a")()
				f.submit(t, "b", c.input)
				if c.during != nil {
					c.during(t, f)
				}
				j := f.over("b")
				if j.Status != c.status || !strings.Contains(j.Message, c.message) {
					t.Errorf("%s: %s", j.Status, j.Message)
				}
				log := f.text(t, j.Log)
				if !strings.Contains(log, string(j.Status)) {
					t.Errorf("the log: %s", log)
				}
				files := fakeHead{f, ""}.View().Files
				b := j.Batch
				if got := len(f.results(t, files[b.AnswersFile].Parts)); got != b.Completed {
					t.Errorf("%d answers in the output, %d counted", got, b.Completed)
				}
				if got := len(f.results(t, files[b.ErrorsFile].Parts)); got != b.Failed {
					t.Errorf("%d errors in the output, %d counted", got, b.Failed)
				}
				for body, n := range f.calls {
					if c.answer != nil && n > tries && name == "faults of ours" {
						t.Errorf("%s was asked %d times", body, n)
					}
				}
			})
		})
	}
}

type finalError struct{}

func (finalError) Error() string { return "no such model" }
func (finalError) Final() bool   { return true }

// A serve job keeps a deployment: pending until a replica is ready, ended with it,
// and it takes nobody else's.
func TestServe(t *testing.T) {
	errBusy := errors.New("no node yet")
	for name, c := range map[string]struct {
		deploy  func(state.Deployment) (state.Deployment, error)
		during  func(f *fakeHeads, apply func(...state.Change))
		status  state.JobStatus
		message string
	}{
		"stopped": {nil, func(f *fakeHeads, apply func(...state.Change)) {
			apply(state.Change{StartReplica: &state.StartReplica{Replica: state.Replica{ID: "r", Deployment: "d"}}})
			<-time.After(time.Second)
			epoch := f.view.Replicas["r"].Epoch
			apply(state.Change{SetPhase: &state.SetPhase{Replica: "r", Epoch: epoch, Phase: state.Ready}})
			f.until(func(v *state.View) bool { return v.Jobs["s"].Status == state.Running })
			apply(state.Change{StopJob: "s"})
			f.until(func(v *state.View) bool { return len(v.Deployments) == 0 })
		}, state.Stopped, "stopped"},
		"deleted by hand": {nil, func(_ *fakeHeads, apply func(...state.Change)) {
			apply(state.Change{DeleteDeployment: "d"})
		}, state.Stopped, "was deleted"},
		"no such model": {func(d state.Deployment) (state.Deployment, error) { return d, finalError{} }, nil, state.Broken, "no such model"},
		"stopped while it waits for a node": {func(d state.Deployment) (state.Deployment, error) { return d, errBusy }, func(_ *fakeHeads, apply func(...state.Change)) {
			<-time.After(10 * time.Second)
			apply(state.Change{StopJob: "s"})
		}, state.Stopped, "stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeHeads()
				f.deploy = c.deploy
				apply := func(changes ...state.Change) {
					if err := (fakeHead{f, ""}).Apply(t.Context(), changes...); err != nil {
						t.Error(err)
					}
				}
				defer f.start("a")()
				serve := func(id string) {
					apply(state.Change{PutJob: &state.Job{ID: id, Kind: state.Serve, Token: state.Digest{1}, Serve: &state.ServeJob{Deployment: state.Deployment{Name: "d", Model: "m"}}}})
				}
				serve("s")
				if c.deploy == nil {
					f.until(func(v *state.View) bool { return v.Jobs["s"].Serve.Deployed })
					serve("other")
					if j := f.over("other"); j.Status != state.Broken || !strings.Contains(j.Message, "exists already") {
						t.Errorf("a second one of the name: %s %s", j.Status, j.Message)
					}
				}
				if c.during != nil {
					c.during(f, apply)
				}
				if j := f.over("s"); j.Status != c.status || !strings.Contains(j.Message, c.message) {
					t.Errorf("%s: %s", j.Status, j.Message)
				}
			})
		})
	}
}

func (f *fakeHeads) until(holds func(*state.View) bool) {
	h := fakeHead{f, ""}
	for {
		changed := h.Changed()
		if holds(h.View()) {
			return
		}
		<-changed
	}
}
