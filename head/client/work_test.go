package client

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
)

// A head that takes a job and dies before it says so leaves one job, whose id the
// client has.
func TestSubmitOfALostAnswer(t *testing.T) {
	var mu sync.Mutex
	jobs := map[string]bool{}
	head := func(dies bool) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				mu.Lock()
				there := jobs[path.Base(r.URL.Path)]
				mu.Unlock()
				if !there {
					w.WriteHeader(http.StatusNotFound)
				}
				_, _ = w.Write([]byte(`{}`))
				return
			}
			var asked struct {
				ID string `json:"submission_id"`
			}
			if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.ID == "" {
				t.Errorf("submission_id %q, %v", asked.ID, err)
			}
			mu.Lock()
			there := jobs[asked.ID]
			jobs[asked.ID] = true
			mu.Unlock()
			switch {
			case dies:
				panic(http.ErrAbortHandler)
			case there:
				w.WriteHeader(http.StatusConflict)
			}
			_, _ = w.Write([]byte(`{}`))
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	c := New("", head(true), head(false))
	t.Cleanup(c.Close)
	id, err := c.Submit(t.Context(), "manta serve smollm2")
	if err != nil || len(jobs) != 1 || !jobs[id] {
		t.Errorf("id %q of %v, %v", id, jobs, err)
	}
	if other, err := c.Submit(t.Context(), "manta serve smollm2"); err != nil || other == id || len(jobs) != 2 {
		t.Errorf("a second job: id %q of %v, %v", other, jobs, err)
	}
}

// A file goes to a head that is there, whichever is named first.
func TestUploadFindsAHead(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/files" {
			file, _, err := r.FormFile("file")
			if err != nil {
				t.Error(err)
				return
			}
			data, err := io.ReadAll(file)
			if err != nil || string(data) != "lines" || r.FormValue("purpose") != "batch" {
				t.Errorf("%q, purpose %q, %v", data, r.FormValue("purpose"), err)
			}
		}
		_, _ = w.Write([]byte(`{"id":"file-1"}`))
	}))
	t.Cleanup(server.Close)
	c := New("", "127.0.0.1:0", server.URL)
	t.Cleanup(c.Close)
	if id, err := c.Upload(t.Context(), "in.jsonl", strings.NewReader("lines")); err != nil || id != "file-1" {
		t.Errorf("%q, %v", id, err)
	}
}
