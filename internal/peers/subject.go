package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
)

// A subject is a program that is measured.
type subject interface {
	label() string
	// engine gives tokens a second without a server: one stream's, and a prompt of
	// 512's. Manta adds its limit.
	engine(ctx context.Context) (map[string]float64, error)
	// server is the command that serves on a port; data is a folder of its own.
	server(port int, data string, streams int) []string
}

// Rows of the table.
const (
	decode     = "decode, one stream: tokens/s"
	prompt512  = "prompt of 512: tokens/s"
	limit      = "decode, limit by read bandwidth: tokens/s"
	throughput = "streams through HTTP, 128 in, 128 out: in + out, tokens/s"
	oneStream  = "decode, one stream through HTTP: tokens/s"
	start      = "start to first token: s"
	resident   = "resident memory after it: MB"
	residentOf = "resident memory after the streams: MB"
)

var rows = []string{decode, limit, prompt512, oneStream, throughput, start, resident, residentOf}

type manta struct{ program, model string }

func (m *manta) label() string { return "Manta" }

func (m *manta) engine(ctx context.Context) (map[string]float64, error) {
	out, err := output(ctx, m.program, "bench", "engine", "--rounds", "1", "--json", m.model)
	if err != nil {
		return nil, err
	}
	var speeds []struct {
		Decode float64 `json:"decode_tokens_per_second"`
		Prompt float64 `json:"prompt_tokens_per_second"`
		Read   float64 `json:"read_bytes_per_second"`
		Bytes  float64 `json:"bytes_per_token"`
	}
	if err := json.Unmarshal(out, &speeds); err != nil || len(speeds) != 1 {
		return nil, fmt.Errorf("bench engine: %q: %w", out, err)
	}
	s := speeds[0]
	return map[string]float64{decode: s.Decode, prompt512: s.Prompt, limit: s.Read / s.Bytes}, nil
}

func (m *manta) server(port int, data string, _ int) []string {
	return []string{m.program, "up", "--port", strconv.Itoa(port), "--metrics-port", "0", "--data-dir", data, m.model}
}

type llama struct {
	name    string
	tools   tools
	model   string
	threads int
}

func (l *llama) label() string { return l.name }

func (l *llama) engine(ctx context.Context) (map[string]float64, error) {
	out, err := output(ctx, l.tools.path("llama-bench"), "-m", l.model, "-t", strconv.Itoa(l.threads), "-p", "512", "-n", "128", "-r", "1", "-o", "json")
	if err != nil {
		return nil, err
	}
	var tests []struct {
		Prompt int     `json:"n_prompt"`
		Speed  float64 `json:"avg_ts"`
	}
	if err := json.Unmarshal(out, &tests); err != nil || len(tests) != 2 {
		return nil, fmt.Errorf("llama-bench: %q: %w", out, err)
	}
	found := map[string]float64{}
	for _, t := range tests {
		if t.Prompt > 0 {
			found[prompt512] = t.Speed
		} else {
			found[decode] = t.Speed
		}
	}
	return found, nil
}

func (l *llama) server(port int, _ string, streams int) []string {
	return []string{l.tools.path("llama-server"), "-m", l.model, "--port", strconv.Itoa(port), "-t", strconv.Itoa(l.threads),
		"-np", strconv.Itoa(streams), "-c", strconv.Itoa(288 * streams), "--no-webui"}
}

// freePort gives a port that the kernel chose.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

// residentMB reads how much of a process's memory is resident.
func residentMB(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, pages float64
	if _, err := fmt.Sscan(string(data), &size, &pages); err != nil {
		return 0, fmt.Errorf("statm: %w", err)
	}
	return pages * float64(os.Getpagesize()) / 1e6, nil
}
