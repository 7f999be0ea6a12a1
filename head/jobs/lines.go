package jobs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"manta/head/state"
)

// Bounds on a batch, OpenAI's.
const (
	MaxLines      = 50_000
	MaxInputBytes = 200 << 20
	DefaultWindow = 24 * time.Hour
	MaxWindow     = 30 * 24 * time.Hour
	maxLineBytes  = 16 << 20
	// maxFaults is how many faults of an input are told.
	maxFaults = 10
)

// Endpoints are what a batch's lines may ask.
var Endpoints = []string{"/v1/chat/completions", "/v1/completions"}

// CheckEndpoint says what is wrong with an endpoint.
func CheckEndpoint(endpoint string) error {
	if !slices.Contains(Endpoints, endpoint) {
		return fmt.Errorf("%q is not served in batches: give %s", endpoint, strings.Join(Endpoints, " or "))
	}
	return nil
}

// line is one request of a batch.
type line struct {
	number   int             // from 0, over the lines that are not empty
	CustomID string          `json:"custom_id"`
	Method   string          `json:"method"`
	URL      string          `json:"url"`
	Body     json.RawMessage `json:"body"`
}

func parseLine(data []byte, number int, endpoint string) (line, error) {
	l := line{number: number}
	if err := json.Unmarshal(data, &l); err != nil {
		return l, fmt.Errorf("it is not a JSON object with custom_id, method, url and body: %w", err)
	}
	switch {
	case l.CustomID == "":
		return l, errors.New("custom_id must be given")
	case l.Method != http.MethodPost:
		return l, fmt.Errorf("method must be POST, got %q", l.Method)
	case endpoint != "" && l.URL != endpoint:
		return l, fmt.Errorf("url is %q, the batch's endpoint %q", l.URL, endpoint)
	case len(l.Body) == 0 || l.Body[0] != '{':
		return l, errors.New("body must be a JSON object")
	}
	if err := CheckEndpoint(l.URL); err != nil {
		return l, fmt.Errorf("url: %w", err)
	}
	var stream struct {
		Stream bool `json:"stream"`
	}
	if json.Unmarshal(l.Body, &stream) == nil && stream.Stream {
		return l, errors.New("body.stream: a batch has no streams, leave it out")
	}
	return l, nil
}

// eachLine reads a file of lines; those that are empty are passed over.
func eachLine(from io.Reader, do func(number int, data []byte) error) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(make([]byte, 64<<10), maxLineBytes)
	for number := 0; lines.Scan(); {
		data := bytes.TrimSpace(lines.Bytes())
		if len(data) == 0 {
			continue
		}
		if err := do(number, data); err != nil {
			return err
		}
		number++
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line is longer than %d bytes", maxLineBytes)
	}
	return lines.Err()
}

// errInvalid is wrapped by what is wrong with an input.
var errInvalid = errors.New("the input is not a batch")

// count checks a whole input before any of it runs, and gives the number of lines.
func count(ctx context.Context, store Store, input state.File, endpoint string) (int, error) {
	if input.Size() > MaxInputBytes {
		return 0, fmt.Errorf("%w: it has %d bytes, at most %d", errInvalid, input.Size(), MaxInputBytes)
	}
	total := 0
	seen := map[string]int{}
	var faults []string
	err := eachLine(Open(ctx, store, input.Parts), func(number int, data []byte) error {
		total++
		l, err := parseLine(data, number, endpoint)
		if first, twice := seen[l.CustomID]; err == nil && twice {
			err = fmt.Errorf("custom_id %q stands in line %d too", l.CustomID, first+1)
		}
		seen[l.CustomID] = number
		if err != nil && len(faults) < maxFaults {
			faults = append(faults, fmt.Sprintf("line %d: %v", number+1, err))
		}
		if total > MaxLines {
			return fmt.Errorf("%w: it has more than %d lines", errInvalid, MaxLines)
		}
		return nil
	})
	switch {
	case err != nil:
		return 0, err
	case len(faults) > 0:
		return 0, fmt.Errorf("%w: %s", errInvalid, strings.Join(faults, "; "))
	case total == 0:
		return 0, fmt.Errorf("%w: it is empty", errInvalid)
	}
	return total, nil
}

// result is a line of the output, in OpenAI's form.
type result struct {
	ID       string    `json:"id"`
	CustomID string    `json:"custom_id"`
	Response *response `json:"response"`
	Error    *failure  `json:"error"`
}

type response struct {
	StatusCode int             `json:"status_code"`
	RequestID  string          `json:"request_id"`
	Body       json.RawMessage `json:"body"`
}

type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

const resultPrefix = "batch_req_"

// resultID names a line of a job; the number comes last, to be found again.
func resultID(job string, number int) string {
	return resultPrefix + strings.TrimPrefix(job, "batch_") + "_" + strconv.Itoa(number)
}

// done finds the lines that stand in a batch's output already.
func done(ctx context.Context, store Store, b *state.BatchJob) (map[int]bool, error) {
	all := map[int]bool{}
	for _, parts := range [][]state.Part{b.Answers, b.Errors} {
		err := eachLine(Open(ctx, store, parts), func(_ int, data []byte) error {
			var r result
			if err := json.Unmarshal(data, &r); err != nil {
				return fmt.Errorf("a result that can't be read: %w", err)
			}
			number, err := strconv.Atoi(r.ID[strings.LastIndexByte(r.ID, '_')+1:])
			if err != nil {
				return fmt.Errorf("a result with id %q: %w", r.ID, err)
			}
			all[number] = true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
