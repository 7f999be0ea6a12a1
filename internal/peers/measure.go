package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

const (
	startWithin = time.Minute
	lookEvery   = 5 * time.Millisecond
)

// measure takes every figure of a subject once.
func measure(ctx context.Context, p subject, s settings, t table) error {
	found, err := p.engine(ctx)
	if err != nil {
		return err
	}
	if err := serve(ctx, p, s, found); err != nil {
		return err
	}
	for row, value := range found {
		t.add(row, p, value)
	}
	return nil
}

// serve starts the subject's server and puts load on it.
func serve(ctx context.Context, p subject, s settings, found map[string]float64) (failure error) {
	port, err := freePort()
	if err != nil {
		return err
	}
	data, err := os.MkdirTemp("", "peers-")
	if err != nil {
		return err
	}
	defer func() { failure = errors.Join(failure, os.RemoveAll(data)) }()
	words := p.server(port, data, s.streams)
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	began := time.Now()
	if err := command.Start(); err != nil {
		return err
	}
	defer func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		ended := command.Wait() // by our signal, unless it had crashed
		if failure != nil {
			failure = fmt.Errorf("%w\nthe server, told to end: %v; its last lines:\n%s", failure, ended, said.Bytes()[max(0, said.Len()-4000):])
		}
	}()
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	if err := firstToken(ctx, url, began); err != nil {
		return err
	}
	found[start] = time.Since(began).Seconds()
	if found[resident], err = residentMB(command.Process.Pid); err != nil {
		return err
	}
	alone, err := load(ctx, s.manta, url, 1, 2)
	if err != nil {
		return err
	}
	found[oneStream] = 1000 / alone.InterToken.Mean
	together, err := load(ctx, s.manta, url, s.streams, s.streams)
	if err != nil {
		return err
	}
	found[throughput] = together.TotalPerSec
	found[residentOf], err = residentMB(command.Process.Pid)
	return err
}

// firstToken asks until it is answered.
func firstToken(ctx context.Context, url string, began time.Time) error {
	for {
		response, err := http.Post(url+"/v1/completions", "application/json", bytes.NewReader([]byte(`{"prompt": "Hello", "max_tokens": 1}`)))
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			if err = errors.Join(err, response.Body.Close()); err == nil && response.StatusCode == http.StatusOK {
				return nil
			}
		}
		if time.Since(began) > startWithin {
			return fmt.Errorf("no answer within %s: %w", startWithin, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// report is what `manta bench --json -` prints, as far as it is used.
type report struct {
	Requests    int            `json:"requests"`
	Failed      int            `json:"failed"`
	Errors      map[string]int `json:"errors"` // with the status of the answer, where there was one
	TotalPerSec float64        `json:"total_tokens_per_second"`
	InterToken  struct {
		Mean float64 `json:"mean"`
	} `json:"inter_token_latency_ms"`
}

// load puts the same prompts on a server, by Manta's own client.
func load(ctx context.Context, program, url string, streams, requests int) (report, error) {
	var r report
	out, failed := output(ctx, program, "bench", "--url", url, "--max-concurrency", strconv.Itoa(streams), "--num-prompts", strconv.Itoa(requests),
		"--random-input-len", "128", "--random-output-len", "128", "--temperature", "0", "--seed", strconv.Itoa(streams), "--json", "-")
	if err := json.Unmarshal(out, &r); err != nil {
		return r, errors.Join(failed, fmt.Errorf("bench: %w", err))
	}
	if r.Failed > 0 {
		return r, fmt.Errorf("%d of %d requests failed: %v", r.Failed, r.Requests, r.Errors)
	}
	return r, failed
}
