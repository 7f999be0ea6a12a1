package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"manta/head/state"
)

// book is what a runner writes down of a job: its log, its results, its status.
// It belongs to the one goroutine that works on the job.
type book struct {
	runner *Runner
	job    state.Job
	said   []byte // log lines that are not stored yet
	files  []state.File
}

// say adds a line to the log; commit makes it last.
func (b *book) say(format string, a ...any) {
	b.said = fmt.Appendf(b.said, "%s %s\n", time.Now().UTC().Format(time.RFC3339), fmt.Sprintf(format, a...))
}

// commit stores the log and reports the job as it stands. What it reported is
// acknowledged by a majority of the heads when it returns.
func (b *book) commit(ctx context.Context) error {
	log, err := appendPart(ctx, b.runner.cfg.Store, b.job.Log, b.said)
	if err != nil {
		return err
	}
	report := state.JobReport{
		ID: b.job.ID, Claim: b.job.Claim, Status: b.job.Status, Message: b.job.Message,
		Serve: b.job.Serve, Batch: b.job.Batch, Log: log, Files: b.files,
	}
	err = b.runner.cfg.Cluster.Apply(ctx, state.Change{ReportJob: &report})
	if errors.Is(err, state.ErrVersion) && report.Batch != nil && report.Batch.Usage != (state.BatchUsage{}) {
		uncounted := *report.Batch // a head is still to be upgraded: the batch goes on meanwhile
		uncounted.Usage = state.BatchUsage{}
		b.job.Batch, report.Batch = &uncounted, &uncounted
		err = b.runner.cfg.Cluster.Apply(ctx, state.Change{ReportJob: &report})
	}
	if err != nil {
		return err
	}
	b.job.Log, b.said, b.files = log, nil, nil
	return nil
}

// end commits a job's last status.
func (b *book) end(ctx context.Context, status state.JobStatus, message string) error {
	b.job.Status, b.job.Message = status, message
	b.say("%s: %s", status, message)
	b.runner.cfg.Log.Info("job over", "job", b.job.ID, "status", status, "message", message)
	return b.commit(ctx)
}
