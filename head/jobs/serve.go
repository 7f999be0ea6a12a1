package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"manta/head/state"
)

const (
	// deployTimeout bounds one try to have a model resolved.
	deployTimeout = 2 * time.Minute
	retryDeploy   = time.Second
)

// Final is implemented by errors of Deploy that trying again does not mend.
type Final interface {
	error
	Final() bool
}

// serve has a deployment accepted and watches it until the job is stopped.
func (r *Runner) serve(ctx context.Context, b *book) error {
	if !b.job.Serve.Deployed {
		if over, err := r.deploy(ctx, b); over || err != nil {
			return err
		}
	}
	name := b.job.Serve.Deployment.Name
	for {
		changed := r.cfg.Cluster.Changed()
		view := r.cfg.Cluster.View()
		d, there := view.Deployments[name]
		there = there && d.Job == b.job.ID
		switch {
		case r.stopped(b.job.ID):
			return r.withdraw(ctx, b)
		case !there:
			return b.end(ctx, state.Stopped, fmt.Sprintf("deployment %s was deleted", name))
		}
		status, message := watch(view, name)
		if status != b.job.Status || message != b.job.Message {
			b.job.Status, b.job.Message = status, message
			b.say("%s: %s", name, message)
			if err := b.commit(ctx); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// withdraw ends a job that was asked to, and its deployment.
func (r *Runner) withdraw(ctx context.Context, b *book) error {
	name := b.job.Serve.Deployment.Name
	if d, there := r.cfg.Cluster.View().Deployments[name]; there && d.Job == b.job.ID {
		if err := r.cfg.Cluster.Apply(ctx, state.Change{DeleteDeployment: name}); err != nil && !errors.Is(err, state.ErrUnknown) {
			return err
		}
	}
	return b.end(ctx, state.Stopped, "stopped")
}

// watch gives a deployment's status as a job's.
func watch(view *state.View, name string) (state.JobStatus, string) {
	ready, reason := 0, "no replica is placed yet"
	for _, replica := range view.Replicas {
		if replica.Deployment != name {
			continue
		}
		if replica.Phase == state.Ready {
			ready++
			continue
		}
		reason = "the replica is " + string(replica.Phase)
		if replica.Reason != "" {
			reason += ": " + replica.Reason
		}
	}
	if ready == 0 {
		return state.Pending, reason
	}
	return state.Running, fmt.Sprintf("%d replicas are ready", ready)
}

// deploy has the job's deployment accepted. over: the job has ended.
func (r *Runner) deploy(ctx context.Context, b *book) (over bool, err error) {
	next := *b.job.Serve
	b.job.Serve = &next
	d := next.Deployment
	if other, exists := r.cfg.Cluster.View().Deployments[d.Name]; exists && other.Job != b.job.ID {
		return true, b.end(ctx, state.Broken, fmt.Sprintf("deployment %s exists already: give --served-model-name", d.Name))
	}
	d.Job = b.job.ID
	b.say("head %s deploys %s", r.cfg.Head, d.Name)
	for {
		if r.stopped(b.job.ID) {
			return true, r.withdraw(ctx, b) // a head before may have had it accepted
		}
		trying, stop := context.WithTimeout(ctx, deployTimeout)
		accepted, err := r.cfg.Cluster.Deploy(trying, d)
		stop()
		var final Final
		switch {
		case err == nil:
			next.Deployment.Name, next.Deployed = accepted.Name, true
			return false, b.commit(ctx)
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.As(err, &final) && final.Final():
			return true, b.end(ctx, state.Broken, err.Error())
		}
		b.say("not deployed yet: %v", err)
		if err := b.commit(ctx); err != nil {
			return false, err
		}
		pause(ctx, retryDeploy)
	}
}
