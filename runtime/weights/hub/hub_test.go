package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"manta/runtime/weights/hub/hubtest"
)

const repositoryName = "org/model"

func TestMain(m *testing.M) {
	if os.Getenv("HUB_TEST_PULL") != "" {
		os.Exit(pullAsChild())
	}
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pattern gives n bytes that differ with seed and place.
func pattern(seed, n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(seed + i*7 + i>>8)
	}
	return data
}

func modelFiles() map[string][]byte {
	return map[string][]byte{
		"config.json":       []byte(`{"model_type":"llama"}`),
		"tokenizer.json":    pattern(3, 500),
		"model.safetensors": pattern(1, 3000),
		"README.md":         []byte("not wanted"),
		"pytorch_model.bin": pattern(2, 10),
		"model-q8_0.gguf":   pattern(4, 10),
	}
}

// newHub gives a Hub on a fresh cache whose pauses take no time; they are listed.
func newHub(t testing.TB, server *hubtest.Hub, change func(*Options)) (*Hub, *pauses) {
	t.Helper()
	o := Options{Endpoint: server.URL, Cache: t.TempDir()}
	if change != nil {
		change(&o)
	}
	h, err := New(o)
	must(t, err)
	t.Cleanup(h.Close)
	p := &pauses{}
	h.pause = p.pause
	return h, p
}

type pauses struct {
	mu   sync.Mutex // guards list
	list []time.Duration
}

func (p *pauses) pause(ctx context.Context, d time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, d)
	return ctx.Err()
}

func pullModel(t testing.TB, h *Hub, req Request) Snapshot {
	t.Helper()
	s, err := h.Pull(context.Background(), req, nil, nil)
	must(t, err)
	return s
}

// A pull lies in the cache as huggingface_hub would have left it, holds one weight
// format, and a second pull fetches no file.
func TestPull(t *testing.T) {
	server := hubtest.New(t)
	files := modelFiles()
	commit := server.Put(repositoryName, files)
	h, _ := newHub(t, server, nil)
	s := pullModel(t, h, Request{Repository: repositoryName})

	root := filepath.Join(h.options.Cache, "models--org--model")
	if s.Path != filepath.Join(root, "snapshots", commit) || s.Commit != commit || !s.Main || s.Bytes != 3522 {
		t.Errorf("snapshot %+v", s)
	}
	names := h.options.repository(repositoryName).names(commit)
	slices.Sort(names)
	if want := []string{"config.json", "model.safetensors", "tokenizer.json"}; !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	for name, etag := range map[string]string{
		"config.json":       hubtest.GitSHA1(files["config.json"]),
		"model.safetensors": hubtest.SHA256(files["model.safetensors"]),
	} {
		target, err := os.Readlink(filepath.Join(s.Path, name))
		if err != nil || target != "../../blobs/"+etag {
			t.Errorf("%s links to %q (%v)", name, target, err)
		}
		data, err := os.ReadFile(filepath.Join(s.Path, name))
		if err != nil || !bytes.Equal(data, files[name]) {
			t.Errorf("%s: other content (%v)", name, err)
		}
	}
	if ref, err := os.ReadFile(filepath.Join(root, "refs", "main")); string(ref) != commit {
		t.Errorf("refs/main is %q (%v)", ref, err)
	}

	server.Requests()
	again := pullModel(t, h, Request{Repository: repositoryName})
	if asked := server.Requests(); len(asked) != 1 || again != s {
		t.Errorf("a second pull asked %v and gave %+v", asked, again)
	}
	pullModel(t, h, Request{Repository: repositoryName, Revision: commit})
	if asked := server.Requests(); len(asked) != 0 {
		t.Errorf("a pull of a commit that is here asked %v", asked)
	}
}

// A revision is resolved once: a commit that is pushed between two requests of one
// pull does not mix with it; a branch that moved brings only what changed.
func TestRevisions(t *testing.T) {
	server := hubtest.New(t)
	first := server.Put(repositoryName, modelFiles())
	server.Tag(repositoryName, "refs/pr/1", first)
	changed := modelFiles()
	changed["config.json"] = []byte(`{"model_type":"llama","vocab_size":7}`)
	second := server.Put(repositoryName, changed)
	h, _ := newHub(t, server, nil)

	if s := pullModel(t, h, Request{Repository: repositoryName, Revision: "refs/pr/1"}); s.Commit != first || s.Main {
		t.Errorf("refs/pr/1 is %+v", s)
	}
	for _, r := range server.Requests() {
		if strings.Contains(r.Path, "resolve") && !strings.Contains(r.Path, first) {
			t.Errorf("a file was asked at another revision: %s", r.Path)
		}
	}
	if s := pullModel(t, h, Request{Repository: repositoryName}); s.Commit != second || !s.Main {
		t.Errorf("main is %+v", s)
	}
	for _, r := range server.Requests() {
		if r.Method == http.MethodGet && strings.HasSuffix(r.Path, ".safetensors") {
			t.Errorf("weights that are here were fetched again: %+v", r)
		}
	}
	if got, _ := h.options.repository(repositoryName).commit("refs/pr/1"); got != first {
		t.Errorf("refs/refs/pr/1 is %q", got)
	}
}

// The token goes to the endpoint and nowhere else, the content network included.
func TestTokenStaysHome(t *testing.T) {
	server := hubtest.New(t)
	server.Put(repositoryName, modelFiles())
	h, _ := newHub(t, server, func(o *Options) { o.Token = "hf_secret" })
	pullModel(t, h, Request{Repository: repositoryName})
	content := 0
	for _, r := range server.Requests() {
		if r.Content {
			content++
		}
		if (r.Authorization == "Bearer hf_secret") == r.Content {
			t.Errorf("%s %s (content network: %v) carries %q", r.Method, r.Path, r.Content, r.Authorization)
		}
	}
	if content == 0 {
		t.Error("the content network was never asked")
	}
}

// What Python fetched is found, offline and online, and no file is fetched again.
func TestPythonsCache(t *testing.T) {
	server := hubtest.New(t)
	files := modelFiles()
	commit := server.Put(repositoryName, files)
	for _, offline := range []bool{true, false} {
		t.Run(fmt.Sprintf("offline %v", offline), func(t *testing.T) {
			h, _ := newHub(t, server, func(o *Options) { o.Offline = offline })
			root := filepath.Join(h.options.Cache, "models--org--model")
			for _, folder := range []string{"blobs", "refs", "snapshots/" + commit} {
				must(t, os.MkdirAll(filepath.Join(root, folder), 0o755))
			}
			must(t, os.WriteFile(filepath.Join(root, "refs/main"), []byte(commit), 0o644))
			for _, name := range []string{"config.json", "tokenizer.json", "model.safetensors"} {
				etag := hubtest.GitSHA1(files[name])
				if hubtest.Large(name) {
					etag = hubtest.SHA256(files[name])
				}
				must(t, os.WriteFile(filepath.Join(root, "blobs", etag), files[name], 0o644))
				must(t, os.Symlink("../../blobs/"+etag, filepath.Join(root, "snapshots", commit, name)))
			}
			server.Requests()
			s := pullModel(t, h, Request{Repository: repositoryName})
			if s.Commit != commit || s.Digest == "" {
				t.Errorf("snapshot %+v", s)
			}
			for _, r := range server.Requests() {
				if offline || strings.Contains(r.Path, "resolve") {
					t.Errorf("asked %+v", r)
				}
			}
		})
	}
}

// Offline, what is not there whole is refused without a request.
func TestOffline(t *testing.T) {
	server := hubtest.New(t)
	server.Put(repositoryName, modelFiles())
	h, _ := newHub(t, server, func(o *Options) { o.Offline = true })
	_, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil)
	if !errors.Is(err, ErrOffline) || !strings.Contains(err.Error(), "HF_HUB_OFFLINE") {
		t.Errorf("got %v", err)
	}
	if asked := server.Requests(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
}

// While the hub is away, a cached branch serves; a missing one is an error.
func TestHubAway(t *testing.T) {
	server := hubtest.New(t)
	commit := server.Put(repositoryName, modelFiles())
	away := false
	server.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		if away {
			w.WriteHeader(http.StatusBadGateway)
		}
		return away
	})
	h, _ := newHub(t, server, nil)
	pullModel(t, h, Request{Repository: repositoryName})
	away = true
	if s := pullModel(t, h, Request{Repository: repositoryName}); s.Commit != commit {
		t.Errorf("snapshot %+v", s)
	}
	if _, err := h.Pull(context.Background(), Request{Repository: "org/other"}, nil, nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// A config that will be refused is refused before the weights are fetched.
func TestCheckComesFirst(t *testing.T) {
	server := hubtest.New(t)
	server.Put(repositoryName, modelFiles())
	h, _ := newHub(t, server, nil)
	refusal := errors.New("quantized")
	_, err := h.Pull(context.Background(), Request{Repository: repositoryName, Check: func([]byte) error { return refusal }}, nil, nil)
	if !errors.Is(err, refusal) {
		t.Errorf("got %v", err)
	}
	for _, r := range server.Requests() {
		if strings.HasSuffix(r.Path, ".safetensors") {
			t.Errorf("asked %+v", r)
		}
	}
}

// Sharded weights are those that the index names; a name that leaves the folder is refused.
func TestShards(t *testing.T) {
	server := hubtest.New(t)
	files := map[string][]byte{
		"config.json":                      []byte("{}"),
		"model.safetensors.index.json":     []byte(`{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}`),
		"model-00001-of-00002.safetensors": pattern(1, 100),
		"model-00002-of-00002.safetensors": pattern(2, 100),
		"model.fp16-00001.safetensors":     pattern(3, 100),
	}
	commit := server.Put(repositoryName, files)
	h, _ := newHub(t, server, nil)
	pullModel(t, h, Request{Repository: repositoryName})
	if names := h.options.repository(repositoryName).names(commit); len(names) != 4 {
		t.Errorf("files %v", names)
	}
	files["model.safetensors.index.json"] = []byte(`{"weight_map":{"a":"../../../secret"}}`)
	server.Put(repositoryName, files)
	if _, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

// A repository that moved answers with a redirect to its new name.
func TestMovedRepository(t *testing.T) {
	server := hubtest.New(t)
	commit := server.Put("new/name", modelFiles())
	server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "old/name") {
			return false
		}
		http.Redirect(w, r, strings.Replace(r.URL.Path, "old/name", "new/name", 1), http.StatusTemporaryRedirect)
		return true
	})
	h, _ := newHub(t, server, nil)
	if s := pullModel(t, h, Request{Repository: "old/name"}); s.Commit != commit {
		t.Errorf("snapshot %+v", s)
	}
}

// Two pulls into one cache fetch each file once.
func TestTwoPullsAtOnce(t *testing.T) {
	server := hubtest.New(t)
	server.Put(repositoryName, modelFiles())
	cache := t.TempDir()
	var wait sync.WaitGroup
	for range 4 {
		h, _ := newHub(t, server, func(o *Options) { o.Cache = cache })
		wait.Go(func() {
			if _, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	seen := map[string]int{}
	for _, r := range server.Requests() {
		if r.Content && r.Method == http.MethodGet {
			seen[r.Path]++
		}
	}
	for path, n := range seen {
		if n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
	if len(seen) != 2 {
		t.Errorf("fetched %v", seen)
	}
}

// List shows what is whole; Remove takes the model, and no blob that another
// revision shows.
func TestListAndRemove(t *testing.T) {
	server := hubtest.New(t)
	first := server.Put(repositoryName, modelFiles())
	h, _ := newHub(t, server, nil)
	old := pullModel(t, h, Request{Repository: repositoryName})
	changed := modelFiles()
	changed["config.json"] = []byte(`{"model_type":"other"}`)
	server.Put(repositoryName, changed)
	current := pullModel(t, h, Request{Repository: repositoryName})
	pullModel(t, h, Request{Repository: repositoryName, Variant: "q8_0"})
	list, err := h.options.List()
	must(t, err)
	if len(list) != 3 {
		t.Fatalf("list %+v", list)
	}
	under := h.options.repository(repositoryName).blob("another" + unfinished)
	must(t, os.WriteFile(under, nil, 0o644))
	must(t, h.options.Remove(Request{Repository: repositoryName, Revision: first}))
	if _, err := os.Stat(under); err != nil {
		t.Errorf("a download under way went: %v", err)
	}
	if _, err := os.Stat(old.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old snapshot is still there: %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(current.Path, "model.safetensors")); err != nil || len(data) != 3000 {
		t.Errorf("a shared blob went: %v", err)
	}
	must(t, h.options.Remove(Request{Repository: repositoryName, Variant: "q8_0"}))
	if list, _ = h.options.List(); len(list) != 1 || list[0].Path != current.Path {
		t.Errorf("list %+v", list)
	}
	must(t, h.options.Remove(Request{Repository: repositoryName}))
	if list, _ = h.options.List(); len(list) != 0 {
		t.Errorf("list %+v", list)
	}
	if err := h.options.Remove(Request{Repository: repositoryName}); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
