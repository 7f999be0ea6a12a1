package hub

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"manta/runtime/weights/disk"
)

// A repository is one model's folder in the cache.
type repository struct {
	cache, name string // name: models--ORG--NAME
}

const (
	prefix     = "models--"
	unfinished = ".incomplete" // ends the name of a blob that is being fetched
)

var (
	commitName = regexp.MustCompile(`^[0-9a-f]{40}$`)
	etagName   = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$`)
)

func (o Options) repository(name string) repository {
	return repository{o.Cache, prefix + strings.ReplaceAll(name, "/", "--")}
}

func (r repository) folder() string             { return filepath.Join(r.cache, r.name) }
func (r repository) blob(etag string) string    { return filepath.Join(r.folder(), "blobs", etag) }
func (r repository) snapshot(c string) string   { return filepath.Join(r.folder(), "snapshots", c) }
func (r repository) ref(revision string) string { return filepath.Join(r.folder(), "refs", revision) }
func (r repository) lock(etag string) string {
	return filepath.Join(r.cache, ".locks", r.name, etag+".lock")
}

// file is where a snapshot shows a file.
func (r repository) file(commit, name string) string {
	return filepath.Join(r.snapshot(commit), filepath.FromSlash(name))
}

// commit gives what a revision stood for when it was last resolved.
func (r repository) commit(revision string) (string, bool) {
	if commitName.MatchString(revision) {
		return revision, true
	}
	if !safeName(revision) {
		return "", false
	}
	data, err := os.ReadFile(r.ref(revision))
	commit := strings.TrimSpace(string(data))
	return commit, err == nil && commitName.MatchString(commit)
}

// remember writes what a revision stands for.
func (r repository) remember(revision, commit string) error {
	if revision == commit {
		return nil
	}
	if old, ok := r.commit(revision); ok && old == commit {
		return nil
	}
	path := r.ref(revision)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return disk.Replace(path, []byte(commit)) // no newline: huggingface_hub reads it as it is
}

// link shows a blob in a snapshot, by a relative link as huggingface_hub does, so
// that the cache can be moved.
func (r repository) link(commit, name, etag string) error {
	path := r.file(commit, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	target, err := filepath.Rel(filepath.Dir(path), r.blob(etag))
	if err != nil {
		return err
	}
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	// A link beside it, renamed: a reader sees the old or the new one.
	fresh := path + ".link"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, fresh); err != nil && !errors.Is(err, fs.ErrExist) { // another process's is the same
		return err
	}
	if err := os.Rename(fresh, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = os.Stat(path)
	return err
}

// names lists the files that a snapshot shows and whose content is there.
func (r repository) names(commit string) []string {
	root := r.snapshot(commit)
	var names []string
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // what can't be read is not there
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			if name, err := filepath.Rel(root, path); err == nil {
				names = append(names, filepath.ToSlash(name))
			}
		}
		return nil
	})
	return names
}

// local gives a model of a snapshot if all its weights are in the cache.
func (r repository) local(commit, variant string) (Snapshot, error) {
	names := r.names(commit)
	c, err := choose(names, variant)
	if err != nil {
		return Snapshot{}, err
	}
	return r.describe(commit, c, names)
}

// describe makes a Snapshot of chosen files, all of which must be there.
func (r repository) describe(commit string, c choice, names []string) (Snapshot, error) {
	heavy := c.heavy
	if c.index {
		index, err := os.ReadFile(r.file(commit, indexFile))
		if err != nil {
			return Snapshot{}, err
		}
		if _, heavy, err = ParseIndex(index); err != nil {
			return Snapshot{}, err
		}
	}
	s := Snapshot{Repository: r.repository(), Commit: commit, Path: r.snapshot(commit), Variant: c.gguf}
	if c.gguf != "" {
		s.Path = r.file(commit, c.gguf)
	}
	if main, ok := r.commit("main"); ok {
		s.Main = main == commit
	}
	for _, name := range append(slices.Clone(c.small), heavy...) {
		info, err := os.Stat(r.file(commit, name))
		if err != nil || !slices.Contains(names, name) {
			return Snapshot{}, fmt.Errorf("%s is missing: %w", name, ErrNotFound)
		}
		s.Bytes += info.Size()
	}
	s.Digest = r.digest(commit, heavy)
	return s, nil
}

func (r repository) repository() string {
	return strings.Replace(strings.TrimPrefix(r.name, prefix), "--", "/", 1)
}

// digest hashes the names and content hashes of files. A blob's name is its hash,
// so nothing is read.
func (r repository) digest(commit string, files []string) string {
	h := sha256.New()
	for _, name := range files {
		target, err := os.Readlink(r.file(commit, name))
		if err != nil {
			return "" // a cache without links
		}
		fmt.Fprintf(h, "%s  %s\n", filepath.Base(target), name)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// List gives every model that lies whole in the cache.
func (o Options) List() ([]Snapshot, error) {
	entries, err := os.ReadDir(o.Cache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Snapshot
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		r := repository{o.Cache, e.Name()}
		commits, err := os.ReadDir(filepath.Join(r.folder(), "snapshots"))
		if err != nil {
			continue // nothing was fetched
		}
		for _, commit := range commits {
			list = append(list, r.models(commit.Name())...)
		}
	}
	return list, nil
}

// models gives the safetensors model of a snapshot and each of its GGUF models.
func (r repository) models(commit string) []Snapshot {
	var list []Snapshot
	names := r.names(commit)
	variants := ggufModels(names)
	if slices.Contains(names, configFile) {
		variants = append([]string{""}, variants...)
	}
	for _, v := range variants {
		if c, err := choose(names, v); err == nil {
			if s, err := r.describe(commit, c, names); err == nil {
				list = append(list, s)
			}
		}
	}
	return list
}

// Remove takes a repository from the cache, or what of it the request names: a
// revision's snapshot, a variant's files. Blobs that nothing shows any more go.
func (o Options) Remove(req Request) error {
	r := o.repository(req.Repository)
	if _, err := os.Stat(r.folder()); err != nil {
		return fmt.Errorf("%s: %w in %s", req.Repository, ErrNotFound, o.Cache)
	}
	if req.Revision == "" && req.Variant == "" {
		return errors.Join(os.RemoveAll(r.folder()), os.RemoveAll(filepath.Join(r.cache, ".locks", r.name)))
	}
	commit, ok := r.commit(req.revision())
	if !ok {
		return fmt.Errorf("%s: %w in %s", req, ErrNotFound, o.Cache)
	}
	if req.Variant == "" {
		if err := os.RemoveAll(r.snapshot(commit)); err != nil {
			return err
		}
	} else {
		c, err := choose(r.names(commit), req.Variant)
		if err != nil {
			return err
		}
		for _, name := range c.heavy {
			if err := os.Remove(r.file(commit, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return r.sweep()
}

// sweep removes blobs that no snapshot shows. Downloads that are not whole stay:
// another process may be at them.
func (r repository) sweep() error {
	shown := map[string]bool{}
	commits, err := os.ReadDir(filepath.Join(r.folder(), "snapshots"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, c := range commits {
		for _, name := range r.names(c.Name()) {
			if target, err := os.Readlink(r.file(c.Name(), name)); err == nil {
				shown[filepath.Base(target)] = true
			}
		}
	}
	blobs, err := os.ReadDir(filepath.Join(r.folder(), "blobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, b := range blobs {
		if !shown[b.Name()] && !strings.HasSuffix(b.Name(), unfinished) {
			if err := os.Remove(r.blob(b.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
