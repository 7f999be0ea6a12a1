package state

import (
	"fmt"
	"time"
)

// A Job is work submitted to the API. Whoever leads runs it: its claim is a raft
// index, and what an older claim's holder reports is refused.
type Job struct {
	ID         string
	Kind       JobKind
	Entrypoint string            // as it was given; "": by /v1/batches
	Metadata   map[string]string // the user's own
	Token      Digest            // of this submission: the same one twice is one job
	Owner      Digest            // hash of the key that submitted it; zero: none
	Key        string            // that key's name
	Status     JobStatus
	Message    string // for people
	Created    time.Time
	Started    time.Time // zero: not yet
	Ended      time.Time // zero: not yet
	Stopping   time.Time // when its stop was asked for; zero: it was not
	Runner     string    // the head that runs it
	Claim      uint64    // raft index at which Runner took it; 0: nobody has
	Serve      *ServeJob
	Batch      *BatchJob
	Log        []Part
}

// JobKind says what a job does.
type JobKind string

const (
	Serve JobKind = "serve" // keep a deployment running
	Batch JobKind = "batch" // answer a file of requests
)

// JobStatus is how far a job has come, in Ray's words.
type JobStatus string

const (
	Pending   JobStatus = "PENDING"
	Running   JobStatus = "RUNNING"
	Stopped   JobStatus = "STOPPED"
	Succeeded JobStatus = "SUCCEEDED"
	Broken    JobStatus = "FAILED"
)

// Over reports whether nothing changes any more.
func (s JobStatus) Over() bool { return s == Stopped || s == Succeeded || s == Broken }

// ServeJob keeps a deployment.
type ServeJob struct {
	Deployment Deployment // as asked for
	Deployed   bool       // it was accepted
}

// BatchJob answers a file of requests in OpenAI's batch form.
type BatchJob struct {
	Input     string // file id
	Endpoint  string // /v1/chat/completions or /v1/completions; "": each line's own
	Output    string // file name of the output
	Window    time.Duration
	Total     int // lines; 0: not counted yet
	Completed int
	Failed    int
	// Answers and Errors are what is there so far, a JSON line each; in no order.
	Answers, Errors []Part
	AnswersFile     string // file id, once the job is over; "": none
	ErrorsFile      string
	Usage           BatchUsage    `cbor:",omitzero" since:"5"`
	ResultsLast     time.Duration `cbor:",omitzero" since:"5"` // as File.Lasts
}

// BatchUsage is what answers took, in tokens.
type BatchUsage struct {
	Answers               int // that it counts: fewer than there are where an earlier version wrote some down
	Input, Cached, Output int
}

// A Part is a piece of a file: bytes in the store.
type Part struct {
	Digest Digest
	Size   int64
}

// A File is bytes that a user uploaded, or a job's results.
type File struct {
	ID      string
	Name    string
	Purpose string
	Owner   Digest
	Key     string
	Parts   []Part
	Created time.Time
	Lasts   time.Duration `cbor:",omitzero" since:"5"` // after Created; 0: until it is deleted
}

// Expired reports whether a file's time is over.
func (f File) Expired(now time.Time) bool {
	return f.Lasts > 0 && now.Sub(f.Created) >= f.Lasts
}

// Size is the file's length in bytes.
func (f File) Size() int64 { return Length(f.Parts) }

// Length is that of parts together.
func Length(parts []Part) int64 {
	var n int64
	for _, p := range parts {
		n += p.Size
	}
	return n
}

// ClaimJob gives a job to a runner.
type ClaimJob struct {
	ID     string
	Runner string
	After  uint64 // the claim that this was decided on
}

// JobReport is what a job's runner has got done: all of it up to now, so that the
// same report twice is no harm.
type JobReport struct {
	ID      string
	Claim   uint64
	Status  JobStatus
	Message string
	Serve   *ServeJob
	Batch   *BatchJob
	Log     []Part
	Files   []File // made by the job
}

// Bounds on what the state holds.
const (
	MaxJobs  = 10_000
	MaxFiles = 100_000
)

func (d *draft) putJob(j Job, at time.Time) error {
	if old, ok := d.Jobs[j.ID]; ok {
		if old.Token == j.Token {
			return nil
		}
		return fmt.Errorf("%w: job %q exists", ErrStale, j.ID)
	}
	if len(d.Jobs) >= MaxJobs {
		return fmt.Errorf("%w: there are %d jobs, the most there may be: delete some", ErrStale, len(d.Jobs))
	}
	j.Status, j.Created = Pending, at
	owned(&d.View.Jobs, &d.own.jobs)[j.ID] = j
	return nil
}

// deleteJob forgets a job that is over.
func (d *draft) deleteJob(id string) error {
	j, ok := d.Jobs[id]
	switch {
	case !ok:
		return fmt.Errorf("%w: job %q", ErrUnknown, id)
	case !j.Status.Over():
		return fmt.Errorf("%w: job %q is %s: stop it first", ErrStale, id, j.Status)
	}
	delete(owned(&d.View.Jobs, &d.own.jobs), id)
	return nil
}

func (d *draft) claimJob(c ClaimJob, at time.Time) error {
	j, ok := d.Jobs[c.ID]
	switch {
	case !ok:
		return fmt.Errorf("%w: job %q", ErrUnknown, c.ID)
	case j.Claim != c.After || j.Status.Over():
		return fmt.Errorf("%w: job %q is %s, claimed at %d, not %d", ErrStale, c.ID, j.Status, j.Claim, c.After)
	}
	j.Runner, j.Claim = c.Runner, d.Index
	if j.Started.IsZero() {
		j.Started = at
	}
	owned(&d.View.Jobs, &d.own.jobs)[c.ID] = j
	return nil
}

func (d *draft) reportJob(r JobReport, at time.Time) error {
	j, ok := d.Jobs[r.ID]
	switch {
	case !ok:
		return fmt.Errorf("%w: job %q", ErrUnknown, r.ID)
	case j.Claim != r.Claim:
		return fmt.Errorf("%w: job %q was claimed again at %d, after %d", ErrStale, r.ID, j.Claim, r.Claim)
	case j.Status.Over() && j.Status != r.Status:
		return fmt.Errorf("%w: job %q is %s", ErrStale, r.ID, j.Status)
	}
	j.Status, j.Message, j.Serve, j.Batch, j.Log = r.Status, r.Message, r.Serve, r.Batch, r.Log
	if r.Status.Over() && j.Ended.IsZero() {
		j.Ended = at
	}
	owned(&d.View.Jobs, &d.own.jobs)[r.ID] = j
	for _, f := range r.Files {
		f.Created = at
		owned(&d.View.Files, &d.own.files)[f.ID] = f
	}
	return nil
}

// stopJob asks for a job's end. One that nobody has begun ends at once.
func (d *draft) stopJob(id string, at time.Time) error {
	j, ok := d.Jobs[id]
	if !ok {
		return fmt.Errorf("%w: job %q", ErrUnknown, id)
	}
	if j.Status.Over() || !j.Stopping.IsZero() {
		return nil
	}
	j.Stopping = at
	if j.Claim == 0 {
		j.Status, j.Message, j.Ended = Stopped, "stopped before it began", at
	}
	owned(&d.View.Jobs, &d.own.jobs)[id] = j
	return nil
}

func (d *draft) putFile(f File, at time.Time) error {
	if _, exists := d.Files[f.ID]; !exists && len(d.Files) >= MaxFiles {
		return fmt.Errorf("%w: there are %d files, the most there may be: delete some", ErrStale, len(d.Files))
	}
	f.Created = at
	owned(&d.View.Files, &d.own.files)[f.ID] = f
	return nil
}

// Referenced calls use for every digest in the store that the state names. The results
// of a job that is over are its files': whoever deletes those, has deleted them.
func (v *View) Referenced(use func(Digest)) {
	parts := func(all []Part) {
		for _, p := range all {
			use(p.Digest)
		}
	}
	for _, d := range v.Deployments {
		use(d.Tokenizer)
		use(d.Template)
	}
	for _, f := range v.Files {
		parts(f.Parts)
	}
	for _, j := range v.Jobs {
		parts(j.Log)
		if j.Batch != nil && j.Batch.AnswersFile == "" {
			parts(j.Batch.Answers)
		}
		if j.Batch != nil && j.Batch.ErrorsFile == "" {
			parts(j.Batch.Errors)
		}
	}
}
