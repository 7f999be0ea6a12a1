package api

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"manta/head/jobs"
	"manta/head/state"
	"manta/internal/version"
)

// rayProtocol is the version of Ray whose Jobs REST this is; its clients ask.
const rayProtocol = "2.60.0"

func (s *Server) rayVersion(w http.ResponseWriter, r *http.Request) (any, error) {
	return struct {
		Version     string `json:"version"`
		RayVersion  string `json:"ray_version"`
		RayCommit   string `json:"ray_commit"`
		SessionName string `json:"session_name"`
		Manta       string `json:"manta_version"`
	}{"4", rayProtocol, "", "manta", version.String()}, nil
}

// jobRequest is Ray's.
type jobRequest struct {
	Entrypoint   string                     `json:"entrypoint"`
	SubmissionID *string                    `json:"submission_id"`
	JobID        *string                    `json:"job_id"`
	RuntimeEnv   map[string]json.RawMessage `json:"runtime_env"`
	Metadata     map[string]string          `json:"metadata"`
	CPUs         *float64                   `json:"entrypoint_num_cpus"`
	GPUs         *float64                   `json:"entrypoint_num_gpus"`
	Memory       *float64                   `json:"entrypoint_memory"`
	Resources    map[string]float64         `json:"entrypoint_resources"`
	Labels       map[string]string          `json:"entrypoint_label_selector"`
}

// refusePackage answers Ray's client, which sends folders before the job that names them.
func (s *Server) refusePackage(http.ResponseWriter, *http.Request) (any, error) {
	return nil, unsupported("runtime_env", "working_dir and py_modules would bring code; a job is a manta command, it runs none of its own")
}

var jobID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

const (
	maxMetadata      = 64
	maxMetadataBytes = 4096
)

// check refuses what a job here does not have, by the field's name.
func (j *jobRequest) check() error {
	for name := range j.RuntimeEnv {
		if !strings.HasPrefix(name, "_") { // the client's own marks
			return badField("runtime_env", "runtime_env.%s is not supported: a job is a manta command, it runs no code of its own", name)
		}
	}
	for field, given := range map[string]bool{
		"entrypoint_num_cpus": j.CPUs != nil && *j.CPUs != 0, "entrypoint_num_gpus": j.GPUs != nil && *j.GPUs != 0,
		"entrypoint_memory": j.Memory != nil && *j.Memory != 0, "entrypoint_resources": len(j.Resources) > 0,
		"entrypoint_label_selector": len(j.Labels) > 0,
	} {
		if given {
			return unsupported(field, "a deployment's flags say what it needs")
		}
	}
	return checkMetadata(j.Metadata)
}

func checkMetadata(metadata map[string]string) error {
	bytes := 0
	for name, value := range metadata {
		bytes += len(name) + len(value)
	}
	if len(metadata) > maxMetadata || bytes > maxMetadataBytes {
		return badField("metadata", "metadata has %d entries of %d bytes, at most %d of %d", len(metadata), bytes, maxMetadata, maxMetadataBytes)
	}
	return nil
}

func (s *Server) submitJob(w http.ResponseWriter, r *http.Request) (any, error) {
	var request jobRequest
	if err := s.read(w, r, &request); err != nil {
		return nil, err
	}
	job, err := s.newWork(r, &request)
	if err != nil {
		return nil, err
	}
	if err := s.work.Apply(r.Context(), state.Change{PutJob: job}); err != nil {
		if _, exists := s.views.View().Jobs[job.ID]; exists && errors.Is(err, state.ErrStale) {
			err = &Error{Status: http.StatusConflict, Type: "ConflictError", Param: "submission_id",
				Message: "there is a job " + job.ID + " already: give another submission_id, or delete that job first"}
		}
		return nil, err
	}
	return struct {
		JobID        string `json:"job_id"`
		SubmissionID string `json:"submission_id"`
	}{job.ID, job.ID}, nil
}

// newWork makes a job of a request, or says why it can't be one. Nothing is run or
// kept before all of it is checked.
func (s *Server) newWork(r *http.Request, request *jobRequest) (*state.Job, error) {
	if err := request.check(); err != nil {
		return nil, err
	}
	id := "raysubmit_" + rand.Text()[:16]
	for field, given := range map[string]*string{"submission_id": request.SubmissionID, "job_id": request.JobID} {
		if given == nil || *given == "" {
			continue
		}
		if id = *given; !jobID.MatchString(id) {
			return nil, badField(field, "%s must be 1 to 128 letters, digits, '.', '_' or '-', got %q", field, id)
		}
	}
	entry, err := jobs.ParseEntrypoint(request.Entrypoint)
	if err != nil {
		return nil, err
	}
	if c := by(r.Context()); entry.Kind == state.Serve && !c.admin {
		return nil, notAdmin(c)
	}
	job := s.ownWork(r, id, entry.Kind)
	job.Entrypoint, job.Metadata = request.Entrypoint, request.Metadata
	if entry.Kind == state.Batch {
		job.Batch = &entry.Batch
		return job, s.inputOf(r, entry.Batch.Input, "entrypoint")
	}
	data, err := json.Marshal(entry.Serve)
	if err != nil {
		return nil, err
	}
	var wanted deploymentRequest
	if err := parse(data, &wanted); err != nil {
		return nil, err
	}
	d, err := wanted.deployment()
	job.Serve = &state.ServeJob{Deployment: d}
	return job, err
}

// ownWork begins a job of whoever asks.
func (s *Server) ownWork(r *http.Request, id string, kind state.JobKind) *state.Job {
	c := by(r.Context())
	job := &state.Job{ID: id, Kind: kind, Owner: c.hash, Key: c.name}
	// crypto/rand.Read never fails.
	_, _ = rand.Read(job.Token[:])
	return job
}

// jobDetails is Ray's.
type jobDetails struct {
	Type         string            `json:"type"`
	JobID        string            `json:"job_id"`
	SubmissionID string            `json:"submission_id"`
	DriverInfo   *struct{}         `json:"driver_info"`
	Status       state.JobStatus   `json:"status"`
	Entrypoint   string            `json:"entrypoint"`
	Message      string            `json:"message"`
	ErrorType    *string           `json:"error_type"`
	StartTime    *int64            `json:"start_time"`
	EndTime      *int64            `json:"end_time"`
	Metadata     map[string]string `json:"metadata"`
	RuntimeEnv   struct{}          `json:"runtime_env"`
	DriverNode   *string           `json:"driver_node_id"`
	ExitCode     *int              `json:"driver_exit_code"`
	// Manta's own.
	Kind      state.JobKind `json:"manta_kind"`
	Total     int           `json:"manta_lines,omitempty"`
	Completed int           `json:"manta_lines_completed,omitempty"`
	Failed    int           `json:"manta_lines_failed,omitempty"`
	Output    string        `json:"manta_output_file_id,omitempty"`
	Errors    string        `json:"manta_error_file_id,omitempty"`
}

func describeJob(j state.Job) jobDetails {
	millis := func(t time.Time) *int64 {
		if t.IsZero() {
			return nil
		}
		ms := t.UnixMilli()
		return &ms
	}
	d := jobDetails{
		Type: "SUBMISSION", JobID: j.ID, SubmissionID: j.ID, Status: j.Status, Entrypoint: j.Entrypoint, Message: j.Message,
		StartTime: millis(j.Started), EndTime: millis(j.Ended), Metadata: j.Metadata, Kind: j.Kind,
	}
	if d.StartTime == nil {
		d.StartTime = millis(j.Created)
	}
	if j.Runner != "" {
		d.DriverNode = &j.Runner
	}
	if j.Status.Over() {
		code := 0
		if j.Status == state.Broken {
			code = 1
		}
		d.ExitCode = &code
	}
	if b := j.Batch; b != nil {
		d.Total, d.Completed, d.Failed, d.Output, d.Errors = b.Total, b.Completed, b.Failed, b.AnswersFile, b.ErrorsFile
		if d.Entrypoint == "" {
			d.Entrypoint = "manta batch --input " + b.Input
		}
	}
	return d
}

func (s *Server) listJobs(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	list := []jobDetails{}
	for _, j := range ownJobs(view, by(r.Context())) {
		list = append(list, describeJob(j))
	}
	return list, nil
}

// ownJobs gives the jobs that a caller sees, the newest first.
func ownJobs(view *state.View, c *caller) []state.Job {
	var all []state.Job
	for _, j := range view.Jobs {
		if c.sees(j.Owner) {
			all = append(all, j)
		}
	}
	slices.SortFunc(all, func(a, b state.Job) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	return all
}

// job finds the job that a path names.
func (s *Server) job(w http.ResponseWriter, r *http.Request) (state.Job, error) {
	return s.jobAs(w, r, "job", func(state.Job) bool { return true })
}

// jobAs is job for what a path calls otherwise.
func (s *Server) jobAs(w http.ResponseWriter, r *http.Request, what string, is func(state.Job) bool) (state.Job, error) {
	id := r.PathValue("id")
	view, _ := s.newest(w, r)
	j, ok := view.Jobs[id]
	if !ok || !is(j) || !by(r.Context()).sees(j.Owner) {
		return state.Job{}, &Error{Status: http.StatusNotFound, Type: "NotFoundError", Param: "id", Message: "there is no " + what + " " + id}
	}
	return j, nil
}

func (s *Server) getJob(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.job(w, r)
	if err != nil {
		return nil, err
	}
	return describeJob(j), nil
}

func (s *Server) stopJob(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.job(w, r)
	if err != nil {
		return nil, err
	}
	// One that is over is left alone: by now another may have its id.
	if !j.Status.Over() {
		if err := s.work.Apply(r.Context(), state.Change{StopJob: j.ID}); err != nil {
			return nil, err
		}
	}
	return struct {
		Stopped bool `json:"stopped"`
	}{!j.Status.Over()}, nil
}

func (s *Server) deleteJob(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.job(w, r)
	if err != nil {
		return nil, err
	}
	if err := s.work.Apply(r.Context(), state.Change{DeleteJob: j.ID}); err != nil {
		return nil, err
	}
	return struct {
		Deleted bool `json:"deleted"`
	}{true}, nil
}

func (s *Server) jobLogs(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.job(w, r)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(jobs.Open(r.Context(), s.store, j.Log), maxLogBytes))
	if err != nil {
		return nil, err
	}
	return struct {
		Logs string `json:"logs"`
	}{string(bytes.ToValidUTF8(text, []byte("?")))}, nil
}

// maxLogBytes bounds what one answer gives of a log.
const maxLogBytes = 64 << 20

// jobResults gives the lines that are answered so far; of a job that is over all, as long as
// their files are there.
func (s *Server) jobResults(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.job(w, r)
	if err == nil && j.Batch == nil {
		err = badField("id", "job %s is no batch: it has no results", j.ID)
	}
	if err != nil {
		return nil, err
	}
	files := s.views.View().Files
	for _, id := range []string{j.Batch.AnswersFile, j.Batch.ErrorsFile} {
		if _, there := files[id]; id != "" && !there {
			return nil, noFile("id", id+" any more: results of "+j.ID+" were deleted, or have expired")
		}
	}
	return nil, s.download(w, r, j.ID+".jsonl", slices.Concat(j.Batch.Answers, j.Batch.Errors))
}
