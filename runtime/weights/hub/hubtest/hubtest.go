// Package hubtest serves repositories as the Hugging Face hub does, on this
// machine, with large files on a second address (the content network). Tests own
// its servers; Intercept lets them break what they like.
package hubtest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Request is one that was seen.
type Request struct {
	Method, Path, Range, Authorization string
	Content                            bool // it came to the content network
}

// A Hub serves until its test ends.
type Hub struct {
	URL     string
	Content string // address of the content network

	mu       sync.Mutex // guards what follows
	instead  func(w http.ResponseWriter, r *http.Request) (answered bool)
	commits  map[string]map[string][]byte // "ORG/NAME@COMMIT" → file → content
	refs     map[string]string            // "ORG/NAME@REVISION" → commit
	content  map[string][]byte            // SHA-256 → content
	requests []Request
}

// New starts a hub without repositories.
func New(t testing.TB) *Hub {
	h := &Hub{commits: map[string]map[string][]byte{}, refs: map[string]string{}, content: map[string][]byte{}}
	main := httptest.NewServer(h.handler(false, h.serve))
	network := httptest.NewServer(h.handler(true, h.serveContent))
	t.Cleanup(main.Close)
	t.Cleanup(network.Close)
	// Another host by name: clients treat a redirect to their own host differently.
	h.URL, h.Content = main.URL, strings.Replace(network.URL, "127.0.0.1", "localhost", 1)
	return h
}

// Put makes files the newest commit of a repository's main and gives the commit.
func (h *Hub) Put(repository string, files map[string][]byte) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	sum := sha1.New()
	for _, name := range sorted(files) {
		fmt.Fprintf(sum, "%s %x\n", name, sha256.Sum256(files[name]))
		h.content[SHA256(files[name])] = files[name]
	}
	commit := hex.EncodeToString(sum.Sum(nil))
	h.commits[repository+"@"+commit] = files
	h.refs[repository+"@"+commit] = commit
	h.refs[repository+"@main"] = commit
	return commit
}

// PutFolder puts the regular files below a folder, so that a model that lies on
// disk is served as its repository would be.
func (h *Hub) PutFolder(repository, folder string) (commit string, err error) {
	files := map[string][]byte{}
	err = filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, path)
		files[filepath.ToSlash(name)] = data
		return err
	})
	if err != nil {
		return "", err
	}
	return h.Put(repository, files), nil
}

// Tag lets a revision stand for a commit.
func (h *Hub) Tag(repository, revision, commit string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refs[repository+"@"+revision] = commit
}

// Intercept lets f answer in the hub's place; it may be called from many goroutines.
func (h *Hub) Intercept(f func(w http.ResponseWriter, r *http.Request) (answered bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.instead = f
}

// Requests gives what was asked since the last call.
func (h *Hub) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := h.requests
	h.requests = nil
	return seen
}

func (h *Hub) handler(content bool, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.requests = append(h.requests, Request{r.Method, r.URL.Path, r.Header.Get("Range"), r.Header.Get("Authorization"), content})
		instead := h.instead
		h.mu.Unlock()
		if instead == nil || !instead(w, r) {
			next(w, r)
		}
	})
}

// serve answers /api/models/ORG/NAME/revision/REVISION, …/tree/REVISION (which
// Python's client asks) and /ORG/NAME/resolve/COMMIT/FILE.
func (h *Hub) serve(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/api/models/"); ok {
		if repository, revision, ok := strings.Cut(rest, "/tree/"); ok {
			h.tree(w, repository, revision)
			return
		}
		repository, revision, _ := strings.Cut(rest, "/revision/")
		h.describe(w, repository, revision)
		return
	}
	repository, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/resolve/")
	revision, name, _ := strings.Cut(rest, "/")
	commit, files := h.files(repository, revision)
	data, ok := files[name]
	if !ok {
		h.missing(w, "EntryNotFound")
		return
	}
	w.Header().Set("X-Repo-Commit", commit)
	if !Large(name) {
		w.Header().Set("ETag", `"`+GitSHA1(data)+`"`)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(data))
		return
	}
	w.Header().Set("X-Linked-Etag", `"`+SHA256(data)+`"`)
	w.Header().Set("X-Linked-Size", fmt.Sprint(len(data)))
	http.Redirect(w, r, h.Content+"/"+SHA256(data)+"?signature=secret", http.StatusFound)
}

func (h *Hub) serveContent(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	data, ok := h.content[path.Base(r.URL.Path)]
	h.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (h *Hub) files(repository, revision string) (string, map[string][]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	commit := h.refs[repository+"@"+revision]
	return commit, h.commits[repository+"@"+commit]
}

func (h *Hub) missing(w http.ResponseWriter, reason string) {
	w.Header().Set("X-Error-Code", reason)
	w.Header().Set("X-Error-Message", "it is not there")
	http.Error(w, reason, http.StatusNotFound)
}

func (h *Hub) describe(w http.ResponseWriter, repository, revision string) {
	commit, files := h.files(repository, revision)
	if files == nil {
		reason := "RevisionNotFound"
		if _, any := h.files(repository, "main"); any == nil {
			reason = "RepoNotFound"
		}
		h.missing(w, reason)
		return
	}
	siblings := []map[string]any{}
	for _, name := range sorted(files) {
		s := map[string]any{"rfilename": name, "size": len(files[name]), "blobId": GitSHA1(files[name])}
		if Large(name) {
			s["lfs"] = map[string]any{"sha256": SHA256(files[name]), "size": len(files[name]), "pointerSize": 134}
		}
		siblings = append(siblings, s)
	}
	writeJSON(w, map[string]any{"id": repository, "sha": commit, "siblings": siblings})
}

// tree lists all files of a revision.
func (h *Hub) tree(w http.ResponseWriter, repository, revision string) {
	_, files := h.files(repository, revision)
	if files == nil {
		h.missing(w, "RevisionNotFound")
		return
	}
	entries := []map[string]any{}
	for _, name := range sorted(files) {
		e := map[string]any{"type": "file", "path": name, "size": len(files[name]), "oid": GitSHA1(files[name])}
		if Large(name) {
			e["lfs"] = map[string]any{"oid": SHA256(files[name]), "size": len(files[name]), "pointerSize": 134}
		}
		entries = append(entries, e)
	}
	writeJSON(w, entries)
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// Large tells what the hub keeps apart, as LFS.
func Large(name string) bool {
	return slices.Contains([]string{".safetensors", ".gguf", ".bin"}, path.Ext(name)) || path.Base(name) == "tokenizer.json"
}

// SHA256 is the hash that names a large file's content.
func SHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// GitSHA1 is the hash that names a small file's content.
func GitSHA1(data []byte) string {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(data))
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}

func sorted(files map[string][]byte) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
