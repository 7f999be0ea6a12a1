package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"manta/head/state"
)

const (
	// atOnce is how many lines of a batch are in flight.
	atOnce = 64
	// flushLines and flushEvery bound what a death costs: a line counts as done once
	// it is flushed.
	flushLines = 64
	flushEvery = 200 * time.Millisecond
	// logEvery is between two lines of the log about progress.
	logEvery = 2 * time.Second
	// tries is how often a line is asked that meets a fault of ours.
	tries      = 4
	longestTry = 10 * time.Second
)

// batch answers the lines that are not answered yet.
func (r *Runner) batch(ctx context.Context, b *book) error {
	own := *b.job.Batch // the View's own is not ours to change
	b.job.Batch, b.job.Status = &own, state.Running
	input, known := r.cfg.Cluster.View().Files[own.Input]
	if !known {
		b.finish()
		return b.end(ctx, state.Broken, fmt.Sprintf("there is no file %q", own.Input))
	}
	if own.Total == 0 {
		total, err := count(ctx, r.cfg.Store, input, own.Endpoint)
		if errors.Is(err, errInvalid) {
			return b.end(ctx, state.Broken, err.Error())
		}
		if err != nil {
			return err
		}
		own.Total = total
	}
	answered, err := done(ctx, r.cfg.Store, &own)
	if err != nil {
		return err
	}
	b.say("head %s answers %d of %d lines", r.cfg.Head, own.Total-len(answered), own.Total)
	if err := b.commit(ctx); err != nil {
		return err
	}
	why, err := r.answer(ctx, b, input, answered)
	if err != nil {
		return err
	}
	b.finish()
	switch now := b.job.Batch; {
	case why != "":
		return b.end(ctx, state.Stopped, why)
	case now.Completed == 0:
		return b.end(ctx, state.Broken, fmt.Sprintf("all %d lines failed", now.Total))
	default:
		return b.end(ctx, state.Succeeded, fmt.Sprintf("%d lines answered, %d failed", now.Completed, now.Failed))
	}
}

// Reasons why a batch ends early.
const (
	stoppedByUser = "stopped"
	Expired       = "its completion window has passed"
)

// answer works through the input. It returns why it ended early, or "".
func (r *Runner) answer(ctx context.Context, b *book, input state.File, answered map[int]bool) (why string, err error) {
	working, cancel := context.WithDeadline(ctx, b.job.Created.Add(b.job.Batch.Window))
	defer cancel()
	job := b.job // the workers' own: collect writes in the book
	results := make(chan finished)
	lines := make(chan line)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for l := range lines {
				if f, ok := r.line(working, job, input, l); ok {
					results <- f
				}
			}
		})
	}
	read := make(chan error, 1)
	go func() { // ends with the input; collect reads until results is closed
		read <- eachLine(Open(working, r.cfg.Store, input.Parts), func(number int, data []byte) error {
			if answered[number] {
				return nil
			}
			l, err := parseLine(data, number, job.Batch.Endpoint)
			if err != nil {
				return err // it was checked: the store gave other bytes
			}
			select {
			case lines <- l:
				return nil
			case <-working.Done():
				return working.Err()
			}
		})
		close(lines)
		workers.Wait()
		close(results)
	}()
	why, err = r.collect(ctx, b, results, cancel)
	if failure := <-read; err == nil && failure != nil && working.Err() == nil {
		err = failure
	}
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return "", err
	case why == "" && errors.Is(working.Err(), context.DeadlineExceeded):
		why = Expired
	}
	return why, nil
}

// collect stores what comes, and cancels the rest when the job is to stop or can't
// be written down any more. It returns when results is closed.
func (r *Runner) collect(ctx context.Context, b *book, results <-chan finished, cancel context.CancelFunc) (why string, failure error) {
	var waiting []finished
	logged := time.Now()
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	flush := func() {
		if len(waiting) == 0 || failure != nil {
			return
		}
		if time.Since(logged) > logEvery {
			logged = time.Now()
			b.say("%d of %d lines, %d failed", b.job.Batch.Completed+b.job.Batch.Failed+len(waiting), b.job.Batch.Total, b.job.Batch.Failed)
		}
		if failure = b.record(ctx, waiting); failure != nil {
			cancel()
		}
		waiting = waiting[:0]
	}
	for {
		select {
		case f, more := <-results:
			if !more {
				flush()
				return why, failure
			}
			if waiting = append(waiting, f); len(waiting) >= flushLines {
				flush()
			}
		case <-ticker.C:
			flush()
			if why == "" && r.stopped(b.job.ID) {
				why = stoppedByUser
				cancel()
			}
		}
	}
}

// finished is a line's result, encoded.
type finished struct {
	data   []byte
	failed bool
	usage  state.BatchUsage
}

// record makes results last.
func (b *book) record(ctx context.Context, all []finished) error {
	next := *b.job.Batch
	var answers, failures []byte
	for _, f := range all {
		if f.failed {
			failures = append(append(failures, f.data...), '\n')
			next.Failed++
		} else {
			answers = append(append(answers, f.data...), '\n')
			next.Completed++
			next.Usage.Answers++
			next.Usage.Input += f.usage.Input
			next.Usage.Cached += f.usage.Cached
			next.Usage.Output += f.usage.Output
		}
	}
	var err error
	if next.Answers, err = appendPart(ctx, b.runner.cfg.Store, next.Answers, answers); err != nil {
		return err
	}
	if next.Errors, err = appendPart(ctx, b.runner.cfg.Store, next.Errors, failures); err != nil {
		return err
	}
	b.job.Batch = &next
	return b.commit(ctx)
}

// line asks until there is an answer that lasts, or ctx ends.
func (r *Runner) line(ctx context.Context, j state.Job, input state.File, l line) (finished, bool) {
	call := Call{URL: l.URL, Body: l.Body, Owner: j.Owner, Key: j.Key, Seed: seed(input, l.number)}
	wait := 100 * time.Millisecond
	for faults := 0; ; {
		a := r.cfg.Lines.Line(ctx, call)
		if ctx.Err() != nil {
			return finished{}, false
		}
		switch {
		case a.Status == http.StatusTooManyRequests, a.Status == http.StatusServiceUnavailable:
			pause(ctx, min(max(wait, a.RetryAfter), longestTry)) // a batch may wait for days
			wait = min(2*wait, longestTry)
			continue
		case a.Status >= 500 || a.Status == clientGone:
			if faults++; faults < tries {
				pause(ctx, wait)
				continue
			}
		}
		out := result{
			ID: resultID(j.ID, l.number), CustomID: l.CustomID,
			Response: &response{StatusCode: a.Status, RequestID: a.RequestID, Body: a.Body},
		}
		data, err := json.Marshal(out)
		if err != nil || len(data) >= maxLineBytes {
			out.Response, out.Error = nil, &failure{"too_large", fmt.Sprintf("the answer has %d bytes, at most %d", len(a.Body), maxLineBytes)}
			a.Status = 0
			if data, err = json.Marshal(out); err != nil {
				r.cfg.Log.Error("result not encoded", "job", j.ID, "line", l.number, "error", err)
				return finished{}, false
			}
		}
		return finished{data: data, failed: a.Status/100 != 2, usage: usageOf(a.Body)}, true
	}
}

// usageOf reads what an answer says it took; nothing where it doesn't.
func usageOf(body []byte) state.BatchUsage {
	var answer struct {
		Usage struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
			Details    struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return state.BatchUsage{}
	}
	u := answer.Usage
	return state.BatchUsage{Input: u.Prompt, Cached: u.Details.Cached, Output: u.Completion}
}

// clientGone is the API's status of a request that was cut off.
const clientGone = 499

// seed is that of a line without one: it depends on the input alone.
func seed(input state.File, number int) uint64 {
	sum := sha256.New()
	for _, p := range input.Parts {
		sum.Write(p.Digest[:])
	}
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(number))
	sum.Write(n[:])
	return binary.LittleEndian.Uint64(sum.Sum(nil)) >> 1
}

// finish makes files of the results.
func (b *book) finish() {
	next := *b.job.Batch
	name := next.Output
	if name == "" {
		name = b.job.ID + "_output.jsonl"
	}
	file := func(suffix, name string, parts []state.Part) string {
		if len(parts) == 0 {
			return ""
		}
		sum := sha256.Sum256([]byte(b.job.ID + suffix))
		f := state.File{
			ID: fmt.Sprintf("file-%x", sum[:12]), Name: name, Purpose: "batch_output",
			Owner: b.job.Owner, Key: b.job.Key, Parts: parts, Lasts: next.ResultsLast,
		}
		b.files = append(b.files, f)
		return f.ID
	}
	next.AnswersFile = file("output", name, next.Answers)
	next.ErrorsFile = file("errors", b.job.ID+"_error.jsonl", next.Errors)
	b.job.Batch = &next
}
