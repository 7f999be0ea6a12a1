package api

import (
	"crypto/rand"
	"net/http"
	"strings"
	"time"

	"manta/head/jobs"
	"manta/head/state"
)

// batchRequest is OpenAI's.
type batchRequest struct {
	InputFile string            `json:"input_file_id"`
	Endpoint  string            `json:"endpoint"`
	Window    string            `json:"completion_window"`
	Metadata  map[string]string `json:"metadata"`
	Expires   *expiresAfter     `json:"output_expires_after"`
}

// expiresAfter is OpenAI's: a file's time from its creation.
type expiresAfter struct {
	Anchor  string `json:"anchor"`
	Seconds int    `json:"seconds"`
}

// last checks it and gives the time; 0: none is asked for.
func (e *expiresAfter) last(field string) (time.Duration, error) {
	const least, most = time.Hour, 30 * 24 * time.Hour // OpenAI's
	if e == nil {
		return 0, nil
	}
	if e.Anchor != "created_at" {
		return 0, badField(field, "%s: anchor must be created_at, got %q", field, e.Anchor)
	}
	if e.Seconds < int(least.Seconds()) || e.Seconds > int(most.Seconds()) {
		return 0, badField(field, "%s: seconds must be between %.0f and %.0f, got %d", field, least.Seconds(), most.Seconds(), e.Seconds)
	}
	return time.Duration(e.Seconds) * time.Second, nil
}

// batchObject is OpenAI's.
type batchObject struct {
	ID           string            `json:"id"`
	Object       string            `json:"object"`
	Endpoint     string            `json:"endpoint"`
	Errors       *batchErrors      `json:"errors"`
	InputFile    string            `json:"input_file_id"`
	Window       string            `json:"completion_window"`
	Status       string            `json:"status"`
	OutputFile   *string           `json:"output_file_id"`
	ErrorFile    *string           `json:"error_file_id"`
	CreatedAt    int64             `json:"created_at"`
	InProgressAt *int64            `json:"in_progress_at"`
	ExpiresAt    *int64            `json:"expires_at"`
	FinalizingAt *int64            `json:"finalizing_at"`
	CompletedAt  *int64            `json:"completed_at"`
	FailedAt     *int64            `json:"failed_at"`
	ExpiredAt    *int64            `json:"expired_at"`
	CancellingAt *int64            `json:"cancelling_at"`
	CancelledAt  *int64            `json:"cancelled_at"`
	Counts       batchCounts       `json:"request_counts"`
	Usage        *batchUsage       `json:"usage"`
	Metadata     map[string]string `json:"metadata"`
}

type batchErrors struct {
	Object string       `json:"object"`
	Data   []batchError `json:"data"`
}

type batchError struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Param   *string `json:"param"`
	Line    *int    `json:"line"`
}

type batchCounts struct {
	Total     int `json:"total"`
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
}

// batchUsage is OpenAI's. No model here reasons apart from its answer.
type batchUsage struct {
	Input  int `json:"input_tokens"`
	Inputs struct {
		Cached int `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	Output  int `json:"output_tokens"`
	Outputs struct {
		Reasoning int `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	Total int `json:"total_tokens"`
}

// describeUsage gives none where not all answers were counted.
func describeUsage(b *state.BatchJob) *batchUsage {
	if b.Usage.Answers != b.Completed {
		return nil
	}
	u := &batchUsage{Input: b.Usage.Input, Output: b.Usage.Output, Total: b.Usage.Input + b.Usage.Output}
	u.Inputs.Cached = b.Usage.Cached
	return u
}

func describeBatch(j state.Job) batchObject {
	b := j.Batch
	seconds := func(t time.Time) *int64 {
		if t.IsZero() {
			return nil
		}
		s := t.Unix()
		return &s
	}
	named := func(id string) *string {
		if id == "" {
			return nil
		}
		return &id
	}
	o := batchObject{
		ID: j.ID, Object: "batch", Endpoint: b.Endpoint, InputFile: b.Input, Window: window(b.Window),
		OutputFile: named(b.AnswersFile), ErrorFile: named(b.ErrorsFile), CreatedAt: j.Created.Unix(),
		InProgressAt: seconds(j.Started), ExpiresAt: seconds(j.Created.Add(b.Window)), CancellingAt: seconds(j.Stopping),
		Counts: batchCounts{b.Total, b.Completed, b.Failed}, Usage: describeUsage(b), Metadata: j.Metadata,
	}
	switch {
	case j.Status == state.Succeeded, j.Status == state.Broken && b.Failed > 0:
		o.Status, o.FinalizingAt, o.CompletedAt = "completed", seconds(j.Ended), seconds(j.Ended)
	case j.Status == state.Broken:
		o.Status, o.FailedAt = "failed", seconds(j.Ended)
		o.Errors = &batchErrors{"list", []batchError{{Code: "invalid_input", Message: j.Message}}}
	case j.Status == state.Stopped && j.Message == jobs.Expired:
		o.Status, o.ExpiredAt = "expired", seconds(j.Ended)
	case j.Status == state.Stopped:
		o.Status, o.CancelledAt = "cancelled", seconds(j.Ended)
	case !j.Stopping.IsZero():
		o.Status = "cancelling"
	case b.Total == 0:
		o.Status = "validating"
	default:
		o.Status = "in_progress"
	}
	return o
}

func window(d time.Duration) string {
	text := d.String() // 24h0m0s
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

func (s *Server) createBatch(w http.ResponseWriter, r *http.Request) (any, error) {
	job, err := s.newBatch(w, r)
	if err != nil {
		return nil, err
	}
	if err := s.work.Apply(r.Context(), state.Change{PutJob: job}); err != nil {
		return nil, err
	}
	job.Created = time.Now()
	return describeBatch(*job), nil
}

func (s *Server) newBatch(w http.ResponseWriter, r *http.Request) (*state.Job, error) {
	var request batchRequest
	if err := s.read(w, r, &request); err != nil {
		return nil, err
	}
	if request.InputFile == "" {
		return nil, badField("input_file_id", "input_file_id must be given: upload the file with POST /v1/files first")
	}
	if err := jobs.CheckEndpoint(request.Endpoint); err != nil {
		return nil, badField("endpoint", "endpoint: %v", err)
	}
	length, err := time.ParseDuration(request.Window)
	if err != nil || length <= 0 || length > jobs.MaxWindow {
		return nil, badField("completion_window", "completion_window must be a time such as 24h, at most %s, got %q", jobs.MaxWindow, request.Window)
	}
	if err := checkMetadata(request.Metadata); err != nil {
		return nil, err
	}
	last, err := request.Expires.last("output_expires_after")
	if err != nil {
		return nil, err
	}
	if err := s.inputOf(r, request.InputFile, "input_file_id"); err != nil {
		return nil, err
	}
	job := s.ownWork(r, "batch_"+rand.Text(), state.Batch)
	job.Metadata = request.Metadata
	job.Batch = &state.BatchJob{Input: request.InputFile, Endpoint: request.Endpoint, Window: length, ResultsLast: last}
	return job, nil
}

// batchOf finds the batch that a path names.
func (s *Server) batchOf(w http.ResponseWriter, r *http.Request) (state.Job, error) {
	return s.jobAs(w, r, "batch", func(j state.Job) bool { return j.Batch != nil })
}

func (s *Server) getBatch(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.batchOf(w, r)
	if err != nil {
		return nil, err
	}
	return describeBatch(j), nil
}

func (s *Server) cancelBatch(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.batchOf(w, r)
	if err != nil {
		return nil, err
	}
	if err := s.work.Apply(r.Context(), state.Change{StopJob: j.ID}); err != nil {
		return nil, err
	}
	if now, ok := s.views.View().Jobs[j.ID]; ok {
		j = now
	}
	return describeBatch(j), nil
}

// batchPage is how many batches a page has when nothing is asked for.
const batchPage = 20

func (s *Server) listBatches(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	var list []batchObject
	for _, j := range ownJobs(view, by(r.Context())) {
		if j.Batch != nil {
			list = append(list, describeBatch(j))
		}
	}
	answer, err := page(r, list, batchPage, func(b batchObject) string { return b.ID })
	if err != nil {
		return nil, err
	}
	return answer, nil
}
