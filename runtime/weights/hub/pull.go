package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"sync"

	"golang.org/x/sync/errgroup"

	"manta/runtime/weights/disk"
)

// parallel is how many files are fetched at once: enough to fill a fast line, few
// enough to be a good guest.
const parallel = 4

// Pull brings a model into the cache. waiting, which may be nil, is told when
// another process is fetching a file that is wanted.
func (h *Hub) Pull(ctx context.Context, req Request, progress Progress, waiting func(file string)) (Snapshot, error) {
	r := h.options.repository(req.Repository)
	known, err := r.known(req)
	have := err == nil
	if have && (known.whole() || h.options.Offline) {
		return known.Snapshot, nil
	}
	if h.options.Offline {
		return Snapshot{}, fmt.Errorf("%s: %w (%w): unset HF_HUB_OFFLINE, or put it into %s", req, ErrOffline, err, h.options.Cache)
	}
	tries := attempts
	if have {
		tries = 1 // there is something to fall back on
	}
	answer, err := h.revision(ctx, req, tries)
	if err != nil {
		if have && errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
			slog.Warn("hub not available, cached revision used", "repository", req.Repository, "commit", known.Commit, "error", err)
			return known.Snapshot, nil
		}
		return Snapshot{}, err
	}
	p := &pull{hub: h, request: req, repository: r, commit: answer.SHA, waiting: waiting, progress: progress}
	p.announced(answer)
	return p.run(ctx)
}

// cached is a model that the cache has for a request.
type cached struct {
	Snapshot
	pinned, tokenizer bool
}

// whole: nothing is left to ask the hub. A branch may have moved; a commit can't,
// but a tokenizer may not have been fetched with the weights.
func (c cached) whole() bool { return c.pinned && (c.tokenizer || c.Variant != "") }

func (r repository) known(req Request) (cached, error) {
	commit, ok := r.commit(req.revision())
	if !ok {
		return cached{}, fmt.Errorf("revision %s: %w", req.revision(), ErrNotFound)
	}
	s, err := r.local(commit, req.Variant)
	if err != nil {
		return cached{}, err
	}
	_, err = os.Stat(r.file(commit, "tokenizer.json"))
	return cached{Snapshot: s, pinned: commitName.MatchString(req.Revision), tokenizer: err == nil}, nil
}

// pull is one run. It is used by its own goroutines only while run lasts.
type pull struct {
	hub        *Hub
	request    Request
	repository repository
	commit     string
	names      []string
	sizes      map[string]int64  // where the API tells them
	hashes     map[string]string // SHA-256 where the API tells it
	waiting    func(string)

	reporting sync.Mutex // guards calls of progress
	progress  Progress
}

func (p *pull) announced(answer info) {
	p.sizes, p.hashes = map[string]int64{}, map[string]string{}
	for _, s := range answer.Siblings {
		p.names = append(p.names, s.Name)
		if s.Size != nil {
			p.sizes[s.Name] = *s.Size
		}
		if s.LFS != nil && hexSHA256.MatchString(s.LFS.SHA256) {
			p.sizes[s.Name], p.hashes[s.Name] = s.LFS.Size, s.LFS.SHA256
		}
	}
}

func (p *pull) run(ctx context.Context) (Snapshot, error) {
	c, err := choose(p.names, p.request.Variant)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w", p.request, err)
	}
	if err := p.fetchAll(ctx, c.small); err != nil {
		return Snapshot{}, err
	}
	if c.gguf == "" && p.request.Check != nil {
		config, err := os.ReadFile(p.repository.file(p.commit, configFile))
		if err != nil {
			return Snapshot{}, err
		}
		if err := p.request.Check(config); err != nil {
			return Snapshot{}, fmt.Errorf("%s: %s: %w", p.request, configFile, err)
		}
	}
	heavy := c.heavy
	if c.index {
		index, err := os.ReadFile(p.repository.file(p.commit, indexFile))
		if err != nil {
			return Snapshot{}, err
		}
		if _, heavy, err = ParseIndex(index); err != nil {
			return Snapshot{}, fmt.Errorf("%s: %w", p.request, err)
		}
	}
	if err := p.fetchAll(ctx, heavy); err != nil {
		return Snapshot{}, err
	}
	// Last, so that a revision which is looked up offline is whole.
	if err := p.repository.remember(p.request.revision(), p.commit); err != nil {
		return Snapshot{}, disk.Explain(err, p.repository.folder(), 0)
	}
	return p.repository.describe(p.commit, c, p.repository.names(p.commit))
}

// fetchAll asks for all files' sizes, sees whether they fit, and fetches them.
func (p *pull) fetchAll(ctx context.Context, names []string) error {
	missing := make([]remote, len(names))
	heads, headCtx := errgroup.WithContext(ctx)
	heads.SetLimit(parallel)
	for i, name := range names {
		if p.here(name) {
			continue
		}
		heads.Go(func() error {
			r, err := p.head(headCtx, name)
			missing[i] = r
			return err
		})
	}
	if err := heads.Wait(); err != nil {
		return err
	}
	var wanted int64
	for _, r := range missing {
		if r.name != "" {
			have := p.fetched(r)
			wanted += r.size - have
			p.report(r.name, have, r.size) // so that the sum is known from the start
		}
	}
	if err := disk.Room(p.repository.cache, wanted); err != nil {
		return err
	}
	files, fileCtx := errgroup.WithContext(ctx)
	files.SetLimit(parallel)
	for _, r := range missing {
		if r.name != "" {
			files.Go(func() error { return p.fetch(fileCtx, r) })
		}
	}
	return files.Wait()
}

// here tells a file that the snapshot shows, with the size that the hub announces.
func (p *pull) here(name string) bool {
	info, err := os.Stat(p.repository.file(p.commit, name))
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	size, told := p.sizes[name]
	if told && size != info.Size() {
		return false
	}
	p.report(name, info.Size(), info.Size())
	return true
}

// head asks for a file and compares what its header says with what the API said.
func (p *pull) head(ctx context.Context, name string) (remote, error) {
	r, err := p.hub.head(ctx, p.request, p.commit, name)
	if err != nil {
		return remote{}, err
	}
	size, told := p.sizes[name]
	if r.size < 0 && told {
		r.size = size
	}
	if r.size < 0 {
		return remote{}, fmt.Errorf("%s: %s: the hub tells no size: %w", p.request, name, ErrCorrupt)
	}
	if hash := p.hashes[name]; told && size != r.size || hash != "" && hash != r.etag {
		return remote{}, fmt.Errorf("%s: %s: the hub's API and its file disagree (%d bytes %s, %d bytes %s): %w", p.request, name, size, hash, r.size, r.etag, ErrCorrupt)
	}
	return r, nil
}

// fetched is what the cache has of a file that is not shown yet.
func (p *pull) fetched(r remote) int64 {
	blob := p.repository.blob(r.etag)
	for _, path := range []string{blob, blob + unfinished} {
		if info, err := os.Stat(path); err == nil {
			return min(info.Size(), r.size)
		}
	}
	return 0
}

// fetch brings one file, unless its content is there under another name, and
// shows it in the snapshot.
func (p *pull) fetch(ctx context.Context, r remote) error {
	release, err := disk.Lock(ctx, p.repository.lock(r.etag), func() {
		if p.waiting != nil {
			p.waiting(path.Base(r.name))
		}
	})
	if err != nil {
		return disk.Explain(err, p.repository.cache, 0)
	}
	defer release() // a lock file holds nothing that closing could lose
	blob := p.repository.blob(r.etag)
	if info, err := os.Stat(blob); err != nil || info.Size() != r.size {
		report := func(done int64) { p.report(r.name, done, r.size) }
		if err := p.hub.fetch(ctx, p.request, r, blob, report); err != nil {
			return disk.Explain(err, p.repository.cache, r.size)
		}
	}
	p.report(r.name, r.size, r.size)
	return disk.Explain(p.repository.link(p.commit, r.name, r.etag), p.repository.cache, 0)
}

func (p *pull) report(name string, done, total int64) {
	p.reporting.Lock()
	defer p.reporting.Unlock()
	if p.progress != nil {
		p.progress(name, done, total)
	}
}
