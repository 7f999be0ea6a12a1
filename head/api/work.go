package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"net/http"
	"strconv"
	"time"

	"manta/head/jobs"
	"manta/head/state"
)

// Committer commits changes of the state as one command.
type Committer interface {
	Apply(ctx context.Context, changes ...state.Change) error
}

// handleWork adds what users submit work by: Ray's jobs, OpenAI's files and batches.
func (s *Server) handleWork(mux *http.ServeMux) {
	for pattern, answer := range map[string]answerer{
		"GET /api/version":                    s.rayVersion,
		"POST /api/jobs":                      s.submitJob,
		"POST /api/jobs/{$}":                  s.submitJob,
		"GET /api/jobs":                       s.listJobs,
		"GET /api/jobs/{$}":                   s.listJobs,
		"GET /api/jobs/{id}":                  s.getJob,
		"DELETE /api/jobs/{id}":               s.deleteJob,
		"POST /api/jobs/{id}/stop":            s.stopJob,
		"GET /api/jobs/{id}/logs":             s.jobLogs,
		"GET /api/jobs/{id}/logs/tail":        s.tailJob,
		"GET /api/jobs/{id}/results":          s.jobResults,
		"GET /api/packages/{protocol}/{name}": s.refusePackage,
		"PUT /api/packages/{protocol}/{name}": s.refusePackage,
		"POST /v1/files":                      s.uploadFile,
		"GET /v1/files":                       s.listFiles,
		"GET /v1/files/{id}":                  s.getFile,
		"DELETE /v1/files/{id}":               s.deleteFile,
		"GET /v1/files/{id}/content":          s.fileContent,
		"POST /v1/batches":                    s.createBatch,
		"GET /v1/batches":                     s.listBatches,
		"GET /v1/batches/{id}":                s.getBatch,
		"POST /v1/batches/{id}/cancel":        s.cancelBatch,
	} {
		mux.HandleFunc(pattern, s.answered(answer))
	}
}

var _ jobs.Lines = (*Server)(nil)

// Line answers one request of a batch by the handler that a client's would reach.
func (s *Server) Line(ctx context.Context, call jobs.Call) jobs.Answer {
	answer, ok := map[string]answerer{"/v1/chat/completions": s.chat, "/v1/completions": s.completions}[call.URL]
	c := &caller{hash: call.Owner, admin: true}
	if k, known := s.views.View().Keys[call.Owner]; known {
		c = ofKey(k)
	} else if call.Key != "" {
		c.name = call.Key
	}
	c.line = &call.Seed
	ctx = context.WithValue(ctx, callerKey{}, c)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, call.URL, bytes.NewReader(call.Body))
	if err != nil || !ok {
		return jobs.Answer{Status: http.StatusNotFound, Body: []byte(`{}`)}
	}
	w := &recorder{header: http.Header{}, status: http.StatusOK}
	id := rand.Text()
	w.header.Set(requestIDHeader, id)
	s.answered(answer)(w, r)
	given := jobs.Answer{Status: w.status, RequestID: id, Body: w.body.Bytes()}
	if seconds, err := strconv.Atoi(w.header.Get("Retry-After")); err == nil {
		given.RetryAfter = time.Duration(seconds) * time.Second
	}
	return given
}

// recorder keeps an answer in memory.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
