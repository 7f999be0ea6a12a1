//go:build e2e

package hub

import (
	"bytes"
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

	"manta/internal/processtest"
	"manta/kernels/ref"
	"manta/runtime/weights/hub/hubtest"
)

// A line gives the bytes of one file up to a place, and then nothing until its
// client is gone.
type line struct {
	data []byte

	mu    sync.Mutex // guards what follows
	until int
	sent  int   // bytes in all
	from  []int // where each request began
}

func (l *line) serve(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasSuffix(r.URL.Path, hubtest.SHA256(l.data)) {
		return false
	}
	from := 0
	if header := r.Header.Get("Range"); header != "" {
		if _, err := fmt.Sscanf(header, "bytes=%d-", &from); err != nil {
			http.Error(w, header, http.StatusBadRequest)
			return true
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(l.data)-1, len(l.data)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(l.data)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	l.mu.Lock()
	until := l.until
	l.from = append(l.from, from)
	l.mu.Unlock()
	n, _ := w.Write(l.data[from:max(from, until)]) // the client may be killed meanwhile
	_ = http.NewResponseController(w).Flush()
	l.mu.Lock()
	l.sent += n
	l.mu.Unlock()
	if until < len(l.data) {
		<-r.Context().Done()
	}
	return true
}

// A pull that is killed with SIGKILL at several bytes goes on there each time: the
// server sends every byte once, and the model answers.
func TestKilledPullGoesOn(t *testing.T) {
	hub := hubtest.New(t)
	r := repositories()[1]
	folder := t.TempDir()
	r.write(t, folder, 1)
	weights, err := os.ReadFile(filepath.Join(folder, "model.safetensors"))
	must(t, err)
	_, err = hub.PutFolder(r.name, folder)
	must(t, err)
	l := &line{data: weights}
	hub.Intercept(l.serve)
	m := newMachine(t, hub)
	partial := filepath.Join(m.cache(r.name), "blobs", hubtest.SHA256(weights)+".incomplete")

	places := []int{1, 8, 4097, len(weights) / 3, len(weights)/2 + 1, len(weights) - 1}
	for _, place := range places {
		l.mu.Lock()
		l.until = place
		l.mu.Unlock()
		cmd := m.command("pull", r.name)
		must(t, cmd.Start())
		late := time.After(processtest.Patience)
		for have := -1; have < place; {
			if info, err := os.Stat(partial); err == nil {
				have = int(info.Size())
			} else if !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			select {
			case <-late:
				_ = cmd.Process.Kill()
				t.Fatalf("%d bytes of %d", have, place)
			case <-time.After(2 * time.Millisecond): // a file tells nobody that it grows
			}
		}
		must(t, cmd.Process.Kill())
		if err := cmd.Wait(); err == nil {
			t.Fatal("the pull ended before it was killed")
		}
		if code, out := exitCode(t, m.command("list")); code != 0 || strings.Contains(out, r.name) {
			t.Errorf("after byte %d half a model is listed: %s", place, out)
		}
	}
	l.mu.Lock()
	l.until = len(weights)
	l.mu.Unlock()
	if code, out := exitCode(t, m.command("pull", r.name)); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	if want := append([]int{0}, places...); !slices.Equal(l.from, want) {
		t.Errorf("downloads began at %v, want %v", l.from, want)
	}
	if l.sent != len(weights) {
		t.Errorf("%d bytes were sent for %d", l.sent, len(weights))
	}
	for _, q := range hub.Requests() {
		if !q.Content && strings.HasSuffix(q.Path, ".bin") {
			t.Errorf("asked %s", q.Path)
		}
	}
	m.environment = []string{"HF_HUB_OFFLINE=1"}
	s := m.up(t, r.name)
	check(t, ref.New(), folder, s.complete(), prompt)
	s.stop()
	if asked := hub.Requests(); len(asked) != 0 {
		t.Errorf("offline, the hub was asked %v", asked)
	}
}

// Offline, what is not in the cache is refused in one line that says so.
func TestOffline(t *testing.T) {
	hub := hubtest.New(t)
	m := newMachine(t, hub)
	m.environment = []string{"HF_HUB_OFFLINE=1"}
	wantRefusal(t, m, "org/model", "offline mode is on", "HF_HUB_OFFLINE")
	if asked := hub.Requests(); len(asked) != 0 {
		t.Errorf("offline, the hub was asked %v", asked)
	}
}

// wantRefusal starts a model that can't start: one line, and every word in it.
func wantRefusal(t *testing.T, m *machine, model string, words ...string) {
	t.Helper()
	code, out := exitCode(t, m.command("up", model, "--data-dir", t.TempDir(), "--port", "0", "--metrics-port", "0"))
	if code == 0 || strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			t.Errorf("%q is not in: %s", word, out)
		}
	}
}

// A gated repository asks for a token, then for access, and comes to who has both.
// Neither token is shown in an error, and none goes to the content network.
func TestGated(t *testing.T) {
	hub := hubtest.New(t)
	r := repositories()[1]
	folder := t.TempDir()
	r.write(t, folder, 1)
	_, err := hub.PutFolder(r.name, folder)
	must(t, err)
	hub.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, r.name) { // the content network
			return false
		}
		switch q.Header.Get("Authorization") {
		case "Bearer hf_member":
			return false
		case "":
			w.Header().Set("X-Error-Code", "GatedRepo")
			w.Header().Set("X-Error-Message", "Access to this model is restricted")
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("X-Error-Code", "GatedRepo")
			w.WriteHeader(http.StatusForbidden)
		}
		return true
	})
	m := newMachine(t, hub)
	wantRefusal(t, m, r.name, "401", "set HF_TOKEN")
	m.environment = []string{"HF_TOKEN=hf_stranger"}
	wantRefusal(t, m, r.name, "403", "ask for access at "+hub.URL+"/"+r.name)
	hub.Requests()
	m.environment = []string{"HUGGING_FACE_HUB_TOKEN=hf_member"} // the seed's name for it
	s := m.up(t, r.name)
	check(t, ref.New(), folder, s.complete(), prompt)
	s.stop()
	for _, q := range hub.Requests() {
		if q.Content && q.Authorization != "" {
			t.Errorf("%s carries the token", q.Path)
		}
	}
}

// A revision is what it names: a commit, a tag or a branch each answer with their
// own weights, whatever main has become.
func TestRevisions(t *testing.T) {
	hub := hubtest.New(t)
	r := repositories()[1]
	older, newer := t.TempDir(), t.TempDir()
	r.write(t, older, 1)
	r.write(t, newer, 2)
	first, err := hub.PutFolder(r.name, older)
	must(t, err)
	hub.Tag(r.name, "v1.0", first)
	_, err = hub.PutFolder(r.name, newer)
	must(t, err)
	m := newMachine(t, hub)
	for _, c := range []struct{ model, folder string }{
		{r.name, newer}, {r.name + "@" + first, older}, {"hf:" + r.name + "@v1.0", older}, {r.name + "@main", newer},
	} {
		s := m.up(t, c.model)
		check(t, ref.New(), c.folder, s.complete(), prompt)
		s.stop()
	}
	wantRefusal(t, m, r.name+"@v9", "no such branch, tag or commit")
	for name, want := range map[string]string{"snapshots/" + first + "/config.json": older, "refs/v1.0": ""} {
		data, err := os.ReadFile(filepath.Join(m.cache(r.name), name))
		must(t, err)
		if want == "" {
			if string(data) != first {
				t.Errorf("%s is %q", name, data)
			}
			continue
		}
		original, err := os.ReadFile(filepath.Join(want, "config.json"))
		must(t, err)
		if !bytes.Equal(data, original) {
			t.Errorf("%s has other content", name)
		}
	}
}
