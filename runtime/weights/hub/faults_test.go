package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"manta/runtime/weights/hub/hubtest"
)

// wantWhole fails unless the weights lie in the cache as the hub has them.
func wantWhole(t *testing.T, s Snapshot, files map[string][]byte) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.Path, "model.safetensors"))
	if err != nil || !bytes.Equal(data, files["model.safetensors"]) {
		t.Fatalf("%d bytes of other content (%v)", len(data), err)
	}
}

// A pull that was killed at any byte goes on there: no byte is asked for twice.
func TestResumeAtEveryByte(t *testing.T) {
	server := hubtest.New(t)
	weights := pattern(1, 67)
	server.Put(repositoryName, map[string][]byte{"m.gguf": weights}) // one file: a sync of each costs time
	for at := 0; at <= len(weights); at++ {
		h, _ := newHub(t, server, nil)
		blob := h.options.repository(repositoryName).blob(hubtest.SHA256(weights))
		must(t, os.MkdirAll(filepath.Dir(blob), 0o755))
		must(t, os.WriteFile(blob+".incomplete", weights[:at], 0o644))
		server.Requests()
		s := pullModel(t, h, Request{Repository: repositoryName})
		if data, err := os.ReadFile(s.Path); err != nil || !bytes.Equal(data, weights) {
			t.Fatalf("at byte %d: other content (%v)", at, err)
		}
		want := fmt.Sprintf("bytes=%d-", at)
		if at == 0 {
			want = ""
		}
		fetched := false
		for _, r := range server.Requests() {
			if r.Content && strings.HasSuffix(r.Path, hubtest.SHA256(weights)) {
				fetched = true
				if r.Range != want {
					t.Errorf("at byte %d: range %q", at, r.Range)
				}
			}
		}
		if fetched == (at == len(weights)) {
			t.Errorf("at byte %d: fetched %v", at, fetched)
		}
		if _, err := os.Stat(blob + ".incomplete"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("at byte %d: .incomplete stays (%v)", at, err)
		}
	}
}

// Rubbish where a download was to go on is found by the checksum, and the file is
// fetched anew.
func TestResumeOverRubbish(t *testing.T) {
	server := hubtest.New(t)
	files := modelFiles()
	server.Put(repositoryName, files)
	for _, n := range []int{1, 1000, 3000, 5000} {
		h, _ := newHub(t, server, nil)
		blob := h.options.repository(repositoryName).blob(hubtest.SHA256(files["model.safetensors"]))
		must(t, os.MkdirAll(filepath.Dir(blob), 0o755))
		must(t, os.WriteFile(blob+".incomplete", make([]byte, n), 0o644))
		wantWhole(t, pullModel(t, h, Request{Repository: repositoryName}), files)
	}
}

// part answers a content request with the first n bytes of what is left, and cuts
// the connection there.
func part(w http.ResponseWriter, r *http.Request, data []byte, n int) {
	from := 0
	if header := r.Header.Get("Range"); header != "" {
		if _, err := fmt.Sscanf(header, "bytes=%d-", &from); err != nil {
			panic(err)
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(data[from:min(from+n, len(data))]) // the client may be gone
	if from+n < len(data) {
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// A line that breaks off again and again delivers in the end; one that gives
// nothing is given up after a bounded number of tries and growing pauses.
func TestBreaksOff(t *testing.T) {
	files := modelFiles()
	weights := files["model.safetensors"]
	for _, c := range []struct {
		name  string
		bytes int
		fails bool
	}{{"700 at a time", 700, false}, {"nothing", 0, true}} {
		t.Run(c.name, func(t *testing.T) {
			server := hubtest.New(t)
			server.Put(repositoryName, files)
			server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, hubtest.SHA256(weights)) {
					return false
				}
				part(w, r, weights, c.bytes)
				return true
			})
			h, p := newHub(t, server, nil)
			s, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil)
			if !c.fails {
				must(t, err)
				wantWhole(t, s, files)
				return
			}
			if !errors.Is(err, ErrUnavailable) || len(p.list) != attempts-1 {
				t.Errorf("got %v after pauses %v", err, p.list)
			}
			for i, d := range p.list {
				if d < firstPause/2<<i || d > firstPause<<i {
					t.Errorf("pause %d is %v", i, d)
				}
			}
		})
	}
}

// A stalled line counts as broken.
func TestStalls(t *testing.T) {
	server := hubtest.New(t)
	files := modelFiles()
	weights := files["model.safetensors"]
	server.Put(repositoryName, files)
	var stalled atomic.Bool
	server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, hubtest.SHA256(weights)) || stalled.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(weights)))
		_, _ = w.Write(weights[:100])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done() // until the client hangs up
		return true
	})
	h, p := newHub(t, server, nil)
	h.idle = time.Second // longer than a busy machine lets a line rest
	wantWhole(t, pullModel(t, h, Request{Repository: repositoryName}), files)
	if len(p.list) != 1 {
		t.Errorf("pauses %v", p.list)
	}
}

// A server that lies about sizes, ranges or content never gets a file into the cache.
func TestLies(t *testing.T) {
	files := modelFiles()
	weights := files["model.safetensors"]
	other := bytes.Clone(weights)
	other[1500] ^= 1
	content := func(w http.ResponseWriter, data []byte) { _, _ = w.Write(data) }
	for _, c := range []struct {
		name  string
		serve func(w http.ResponseWriter, r *http.Request)
		is    error
	}{
		{"other content", func(w http.ResponseWriter, r *http.Request) { content(w, other) }, ErrCorrupt},
		{"shorter", func(w http.ResponseWriter, r *http.Request) { content(w, weights[:2999]) }, ErrUnavailable}, // as if broken off
		{"longer", func(w http.ResponseWriter, r *http.Request) { content(w, append(bytes.Clone(weights), 0)) }, ErrCorrupt},
		{"longer, length untold", func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			content(w, append(bytes.Clone(weights), 0))
		}, ErrCorrupt},
		{"another range", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 10-2999/3000")
			w.WriteHeader(http.StatusPartialContent)
			content(w, weights[10:])
		}, ErrCorrupt},
		{"nothing to satisfy", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}, ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := hubtest.New(t)
			server.Put(repositoryName, files)
			server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, hubtest.SHA256(weights)) {
					return false
				}
				c.serve(w, r)
				return true
			})
			h, _ := newHub(t, server, nil)
			_, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil)
			if !errors.Is(err, c.is) {
				t.Errorf("got %v", err)
			}
			blob := h.options.repository(repositoryName).blob(hubtest.SHA256(weights))
			if _, err := os.Stat(blob); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the blob is there (%v)", err)
			}
			if list, _ := h.options.List(); len(list) != 0 {
				t.Errorf("list %+v", list)
			}
		})
	}
}

// A server that knows no ranges makes the download start again, not go wrong.
func TestNoRanges(t *testing.T) {
	server := hubtest.New(t)
	files := modelFiles()
	weights := files["model.safetensors"]
	server.Put(repositoryName, files)
	server.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	})
	h, _ := newHub(t, server, nil)
	blob := h.options.repository(repositoryName).blob(hubtest.SHA256(weights))
	must(t, os.MkdirAll(filepath.Dir(blob), 0o755))
	must(t, os.WriteFile(blob+".incomplete", weights[:1234], 0o644))
	wantWhole(t, pullModel(t, h, Request{Repository: repositoryName}), files)
}

// Metadata that is not sound is refused before it becomes a path or a size.
func TestBadMetadata(t *testing.T) {
	for _, c := range []struct {
		name, path string
		serve      func(w http.ResponseWriter)
	}{
		{"path in a file name", "/api/", func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"sha":"%040d","siblings":[{"rfilename":"../config.json"}]}`, 1)
		}},
		{"no commit", "/api/", func(w http.ResponseWriter) { fmt.Fprint(w, `{"sha":"../main"}`) }},
		{"no JSON", "/api/", func(w http.ResponseWriter) { fmt.Fprint(w, `<html>`) }},
		{"path in the ETag", "/resolve/", func(w http.ResponseWriter) { w.Header().Set("ETag", `"../../x"`) }},
		{"no ETag", "/resolve/", func(http.ResponseWriter) {}},
		{"another commit", "/resolve/", func(w http.ResponseWriter) {
			w.Header().Set("X-Repo-Commit", strings.Repeat("1", 40))
			w.Header().Set("ETag", `"x"`)
		}},
		{"another size", "/resolve/", func(w http.ResponseWriter) {
			w.Header().Set("ETag", `"x"`)
			w.Header().Set("Content-Length", "1")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := hubtest.New(t)
			server.Put(repositoryName, modelFiles())
			server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, c.path) {
					c.serve(w)
					return true
				}
				return false
			})
			h, _ := newHub(t, server, nil)
			if _, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Each refusal says what to do, and is tried again only where that can help.
func TestStatus(t *testing.T) {
	for _, c := range []struct {
		code   int
		reason string
		token  string
		is     error
		says   string
		tries  int
	}{
		{401, "", "", ErrDenied, "set HF_TOKEN", 1},
		{401, "", "hf_x", ErrDenied, "settings/tokens", 1},
		{403, "GatedRepo", "", ErrDenied, "set HF_TOKEN", 1},
		{403, "GatedRepo", "hf_x", ErrDenied, "ask for access at", 1},
		{404, "RepoNotFound", "", ErrNotFound, "check the name", 1},
		{404, "RevisionNotFound", "", ErrNotFound, "no such branch", 1},
		{429, "", "", ErrUnavailable, "higher limit", attempts},
		{500, "", "", ErrUnavailable, "try again later", attempts},
		{503, "", "", ErrUnavailable, "try again later", attempts},
	} {
		for _, path := range []string{"/api/", "/resolve/"} {
			t.Run(fmt.Sprintf("%d%s token %q on %s", c.code, c.reason, c.token, path), func(t *testing.T) {
				server := hubtest.New(t)
				server.Put(repositoryName, map[string][]byte{"model.gguf": pattern(1, 10)})
				var tries atomic.Int32
				server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Path, path) {
						return false
					}
					tries.Add(1)
					w.Header().Set("X-Error-Code", c.reason)
					w.WriteHeader(c.code)
					return true
				})
				h, _ := newHub(t, server, func(o *Options) { o.Token = c.token })
				_, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil)
				says := c.says
				if path == "/resolve/" && c.reason == "RepoNotFound" {
					says = "no such file"
				}
				if !errors.Is(err, c.is) || !strings.Contains(err.Error(), says) || int(tries.Load()) != c.tries {
					t.Errorf("got %v after %d tries", err, tries.Load())
				}
				if strings.Contains(err.Error(), "hf_x") {
					t.Errorf("the error shows the token: %v", err)
				}
			})
		}
	}
}

// An error does not show the signature of a content network's address.
func TestErrorsHideSignatures(t *testing.T) {
	for _, gone := range []bool{true, false} {
		server := hubtest.New(t)
		server.Put(repositoryName, modelFiles())
		server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, hubtest.SHA256(modelFiles()["tokenizer.json"])) {
				return false
			}
			if gone {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusForbidden)
			return true
		})
		h, _ := newHub(t, server, nil)
		_, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil)
		if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), server.Content) {
			t.Errorf("got %v", err)
		}
	}
}

// Retry-After is obeyed; one beyond reason is an error at once.
func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		after string
		fails bool
	}{{"7", false}, {"100000", true}} {
		server := hubtest.New(t)
		server.Put(repositoryName, modelFiles())
		var asked atomic.Bool
		server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if asked.Swap(true) {
				return false
			}
			w.Header().Set("Retry-After", c.after)
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		h, p := newHub(t, server, nil)
		_, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil)
		if c.fails {
			if !errors.Is(err, ErrUnavailable) || len(p.list) != 0 {
				t.Errorf("Retry-After %s: %v, pauses %v", c.after, err, p.list)
			}
		} else if err != nil || len(p.list) != 1 || p.list[0] != 7*time.Second {
			t.Errorf("Retry-After %s: %v, pauses %v", c.after, err, p.list)
		}
	}
	if d := wait(time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)); d < 50*time.Second || d > time.Minute {
		t.Errorf("a date one minute ahead is %v", d)
	}
	if d := wait("soon"); d != 0 {
		t.Errorf("«soon» is %v", d)
	}
}

// A process that is killed leaves a cache that the next one completes, and it
// goes on where the first one was.
func TestKilled(t *testing.T) {
	server := hubtest.New(t)
	files := modelFiles()
	weights := pattern(9, 4<<20)
	files["model.safetensors"] = weights
	server.Put(repositoryName, files)
	cache := t.TempDir()
	half := make(chan struct{})
	var first atomic.Bool
	server.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, hubtest.SHA256(weights)) || first.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(weights)))
		_, _ = w.Write(weights[:len(weights)/2])
		_ = http.NewResponseController(w).Flush()
		close(half)
		<-r.Context().Done() // until the client dies
		return true
	})
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "HUB_TEST_PULL="+cache, "HF_ENDPOINT="+server.URL)
	must(t, child.Start())
	<-half
	r := (Options{Cache: cache}).repository(repositoryName)
	partial := r.blob(hubtest.SHA256(weights)) + ".incomplete"
	written := func() bool { info, err := os.Stat(partial); return err == nil && info.Size() > 0 }
	tick := time.NewTicker(time.Millisecond) // a file tells nobody that it grows
	defer tick.Stop()
	for late := time.After(time.Minute); !written(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the child writes nothing")
		}
	}
	must(t, child.Process.Kill())
	if err := child.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
	if list, _ := (Options{Cache: cache}).List(); len(list) != 0 {
		t.Errorf("half a model is listed: %+v", list)
	}
	server.Requests()
	h, _ := newHub(t, server, func(o *Options) { o.Cache = cache })
	wantWhole(t, pullModel(t, h, Request{Repository: repositoryName}), files)
	for _, r := range server.Requests() {
		if r.Content && strings.HasSuffix(r.Path, hubtest.SHA256(weights)) && r.Range == "" {
			t.Error("the download started again from byte 0")
		}
	}
}

// pullAsChild is the process that TestKilled kills.
func pullAsChild() int {
	h, err := New(Options{Endpoint: os.Getenv("HF_ENDPOINT"), Cache: os.Getenv("HUB_TEST_PULL")})
	if err != nil {
		return 1
	}
	if _, err := h.Pull(context.Background(), Request{Repository: repositoryName}, nil, nil); err != nil {
		return 1
	}
	return 0
}
