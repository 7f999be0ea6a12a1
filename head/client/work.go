package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
)

// Job is a job's state.
type Job struct {
	ID         string `json:"submission_id"`
	Status     string `json:"status"`
	Message    string `json:"message"`
	Entrypoint string `json:"entrypoint"`
	Started    int64  `json:"start_time"` // Unix milliseconds
	Ended      int64  `json:"end_time"`
	Lines      int    `json:"manta_lines"`
	Completed  int    `json:"manta_lines_completed"`
	Failed     int    `json:"manta_lines_failed"`
	Output     string `json:"manta_output_file_id"`
	Errors     string `json:"manta_error_file_id"`
}

// Over reports whether nothing changes any more.
func (j Job) Over() bool {
	return j.Status == "STOPPED" || j.Status == "SUCCEEDED" || j.Status == "FAILED"
}

func jobPath(id string) string { return "/api/jobs/" + url.PathEscape(id) }

// Submit gives the id of a new job. The client chooses it, so that a head that dies
// before it answers, and the next one that is asked, make one job and not two.
func (c *Client) Submit(ctx context.Context, entrypoint string) (string, error) {
	id := "raysubmit_" + rand.Text()[:16]
	err := c.Post(ctx, "/api/jobs/", map[string]string{"entrypoint": entrypoint, "submission_id": id}, nil)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusConflict {
		if _, missing := c.Job(ctx, id); missing == nil {
			return id, nil // nobody else has this id: the head that did not answer took the job
		}
	}
	return id, err
}

// Jobs lists the jobs, the newest first.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	var all []Job
	return all, c.Get(ctx, "/api/jobs/", &all)
}

// Job gives one job.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	var j Job
	return j, c.Get(ctx, jobPath(id), &j)
}

// JobLogs gives a job's log.
func (c *Client) JobLogs(ctx context.Context, id string) (string, error) {
	var answer struct {
		Logs string `json:"logs"`
	}
	return answer.Logs, c.Get(ctx, jobPath(id)+"/logs", &answer)
}

// StopJob asks for a job's end.
func (c *Client) StopJob(ctx context.Context, id string) error {
	return c.Post(ctx, jobPath(id)+"/stop", struct{}{}, nil)
}

// DeleteJob forgets a job that is over.
func (c *Client) DeleteJob(ctx context.Context, id string) error { return c.Delete(ctx, jobPath(id)) }

// JobDetails gives a job as the API describes it, indented.
func (c *Client) JobDetails(ctx context.Context, id string) (string, error) {
	var all json.RawMessage
	if err := c.Get(ctx, jobPath(id), &all); err != nil {
		return "", err
	}
	var text bytes.Buffer
	err := json.Indent(&text, all, "", "  ")
	return text.String(), err
}

// Upload gives the id of a new file for batches. The head that takes it, of several the
// first that is ready, must be there to the end: a cut upload is to be begun again.
func (c *Client) Upload(ctx context.Context, name string, from io.Reader) (string, error) {
	if len(c.bases) > 1 {
		_ = c.Get(ctx, "/readyz", nil) // where none is ready, the upload fails
	}
	body, writer := io.Pipe()
	form := multipart.NewWriter(writer)
	done := make(chan struct{})
	defer func() { body.Close(); <-done }()
	go func() {
		defer close(done)
		part, err := form.CreateFormFile("file", name)
		if err == nil {
			_, err = io.Copy(part, from)
		}
		if err == nil {
			err = errors.Join(form.WriteField("purpose", "batch"), form.Close())
		}
		writer.CloseWithError(err)
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.bases[c.first.Load()]+"/v1/files", body)
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", form.FormDataContentType())
	if c.key != "" {
		request.Header.Set("Authorization", "Bearer "+c.key)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", readError(response)
	}
	var file struct{ ID string }
	if err := json.NewDecoder(response.Body).Decode(&file); err != nil {
		return "", fmt.Errorf("/v1/files: the answer is not JSON: %w", err)
	}
	return file.ID, nil
}

// Download writes a file's bytes, from whichever head has them.
func (c *Client) Download(ctx context.Context, id string, to io.Writer) error {
	var failure error
	for at := range c.all() {
		response, err := c.send(ctx, at, http.MethodGet, "/v1/files/"+url.PathEscape(id)+"/content", nil, nil)
		if err != nil {
			if failure = err; ctx.Err() != nil || answered(err) {
				return err
			}
			continue
		}
		defer response.Body.Close()
		_, err = io.Copy(to, response.Body)
		return err
	}
	return failure
}
