package jobs

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"manta/head/state"
)

// Cluster is what a runner needs of its head.
type Cluster interface {
	View() *state.View
	// Changed is closed when there is a later View.
	Changed() <-chan struct{}
	// Leading reports whether this head leads: it alone runs jobs.
	Leading() bool
	// Apply commits changes as one command, wherever the leader is.
	Apply(ctx context.Context, changes ...state.Change) error
	// Deploy resolves a deployment's model and accepts it.
	Deploy(ctx context.Context, d state.Deployment) (state.Deployment, error)
}

// Lines answers one request of a batch, as the API answers anyone's.
type Lines interface {
	Line(ctx context.Context, call Call) Answer
}

// Call is a line that is to be answered.
type Call struct {
	URL   string
	Body  []byte
	Owner state.Digest // hash of the key of whoever submitted the batch
	Key   string       // its name
	Seed  uint64       // for a body that gives none: the same line draws the same tokens again
}

// Answer is what the API says to a line.
type Answer struct {
	Status     int
	RequestID  string
	Body       []byte
	RetryAfter time.Duration
}

// Config is what a Runner needs.
type Config struct {
	Head    string // this head's id
	Cluster Cluster
	Store   Store
	Lines   Lines
	Log     *slog.Logger
}

const (
	lookEvery = 250 * time.Millisecond
	// expireEvery is between two removals of files whose time is over.
	expireEvery = 10 * time.Second
	// maxBatches run at once; the others wait in the order of their submission.
	maxBatches = 8
)

// Runner runs jobs while its head leads.
type Runner struct {
	cfg Config

	mu      sync.Mutex
	working map[string]*work // guarded by mu, by job
}

// work is a job in the hands of this runner.
type work struct {
	kind state.JobKind
	stop context.CancelFunc
}

// New makes a runner; Run makes it work.
func New(cfg Config) *Runner {
	return &Runner{cfg: cfg, working: map[string]*work{}}
}

// Run claims jobs and works on them until ctx ends; it returns when all work has
// stopped. What is not done goes on at the next leader.
func (r *Runner) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	expire := time.NewTicker(expireEvery)
	defer expire.Stop()
	for {
		changed := r.cfg.Cluster.Changed()
		if r.cfg.Cluster.Leading() {
			r.begin(ctx, &workers)
		} else {
			r.letGo()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-ticker.C:
		case now := <-expire.C:
			r.expire(ctx, now)
		}
	}
}

// expire deletes files whose time is over, unless a batch reads them.
func (r *Runner) expire(ctx context.Context, now time.Time) {
	if !r.cfg.Cluster.Leading() {
		return
	}
	view := r.cfg.Cluster.View()
	reading := map[string]bool{}
	for _, j := range view.Jobs {
		if j.Batch != nil && !j.Status.Over() {
			reading[j.Batch.Input] = true
		}
	}
	for _, f := range view.Files {
		if !f.Expired(now) || reading[f.ID] {
			continue
		}
		if err := r.cfg.Cluster.Apply(ctx, state.Change{DeleteFile: f.ID}); err != nil && !errors.Is(err, state.ErrUnknown) && ctx.Err() == nil {
			r.cfg.Log.Warn("file not deleted", "file", f.ID, "error", err)
			return // the next time
		}
	}
}

// letGo stops all work: another head leads and goes on with it.
func (r *Runner) letGo() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.working {
		w.stop()
	}
}

// begin starts what is not being worked on.
func (r *Runner) begin(ctx context.Context, workers *sync.WaitGroup) {
	var due []state.Job
	for _, j := range r.cfg.Cluster.View().Jobs {
		if !j.Status.Over() {
			due = append(due, j)
		}
	}
	slices.SortFunc(due, func(a, b state.Job) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	r.mu.Lock()
	defer r.mu.Unlock()
	batches := 0
	for _, w := range r.working {
		if w.kind == state.Batch {
			batches++
		}
	}
	for _, j := range due {
		if r.working[j.ID] != nil {
			continue
		}
		if j.Kind == state.Batch {
			if batches >= maxBatches {
				continue
			}
			batches++
		}
		ctx, stop := context.WithCancel(ctx)
		r.working[j.ID] = &work{kind: j.Kind, stop: stop}
		workers.Go(func() {
			defer stop()
			if err := r.work(ctx, j); err != nil && ctx.Err() == nil && !errors.Is(err, state.ErrStale) {
				r.cfg.Log.Warn("job interrupted", "job", j.ID, "error", err)
				pause(ctx, lookEvery) // and then again, from what is committed
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.working, j.ID)
		})
	}
}

// work claims a job and runs it to its end, or until this head may not go on.
func (r *Runner) work(ctx context.Context, j state.Job) error {
	if !r.cfg.Cluster.Leading() {
		return state.ErrStale // its leader claims it
	}
	claim := state.ClaimJob{ID: j.ID, Runner: r.cfg.Head, After: j.Claim}
	if err := r.cfg.Cluster.Apply(ctx, state.Change{ClaimJob: &claim}); err != nil {
		return err
	}
	mine, ok := r.cfg.Cluster.View().Jobs[j.ID]
	if !ok || mine.Runner != r.cfg.Head || mine.Claim == j.Claim {
		return state.ErrStale
	}
	r.cfg.Log.Info("job claimed", "job", j.ID, "kind", j.Kind, "claim", mine.Claim, "before", j.Claim)
	book := &book{runner: r, job: mine}
	switch {
	case mine.Kind == state.Batch && mine.Batch != nil:
		return r.batch(ctx, book)
	case mine.Kind == state.Serve && mine.Serve != nil:
		return r.serve(ctx, book)
	}
	return book.end(ctx, state.Broken, "this version of manta can't run it")
}

// stopped reports whether a job's end was asked for, or the job is gone.
func (r *Runner) stopped(id string) bool {
	j, ok := r.cfg.Cluster.View().Jobs[id]
	return !ok || !j.Stopping.IsZero()
}

// pause waits, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
