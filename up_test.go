//go:build !windows

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

// TestMain is the program itself when a test starts it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("MANTA_TEST_PROCESS") != "" {
		os.Unsetenv("MANTA_TEST_PROCESS")
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const patience = 60 * time.Second

// modelFolder makes a model of random weights with a tokenizer of single bytes.
func modelFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"config.json", "generation_config.json", "model.safetensors"} {
		data, err := os.ReadFile(filepath.Join("runtime/model/testdata/models/llama", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var config struct {
		Vocabulary int `json:"vocab_size"`
	}
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	vocabulary := map[string]int{}
	next := rune(256)
	for b := range 256 { // GPT-2's alphabet of bytes: Radford et al. 2019, §2.2
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae) {
			r, next = next, next+1
		}
		vocabulary[string(r)] = b
	}
	for id := 256; id < config.Vocabulary; id++ {
		vocabulary[fmt.Sprintf("<%d>", id)] = id
	}
	tokenizer, err := json.Marshal(map[string]any{
		"version": "1.0", "added_tokens": []any{}, "normalizer": nil, "post_processor": nil,
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
		"decoder":       map[string]any{"type": "ByteLevel"},
		"model":         map[string]any{"type": "BPE", "vocab": vocabulary, "merges": []string{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), tokenizer, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A running process is a `manta up` of its own.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	errors bytes.Buffer
	ended  chan error
}

func command(t *testing.T, data string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{"up", "--data-dir", data, "--metrics-port", "0"}, args...)...)
	cmd.Env = append(os.Environ(), "MANTA_TEST_PROCESS=1", "MODEL_NAME=", "MANTA_API_KEY=")
	return cmd
}

// start waits until the process says that it is ready.
func start(t *testing.T, data string, args ...string) *running {
	t.Helper()
	p := &running{t: t, cmd: command(t, data, append([]string{"--port", "0"}, args...)...), ended: make(chan error, 1)}
	p.cmd.Stderr = &p.errors
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	found := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if url := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text()); url != "" {
				select {
				case found <- url:
				default:
				}
			}
		}
		p.ended <- p.cmd.Wait()
	}()
	select {
	case p.url = <-found:
	case err := <-p.ended:
		t.Fatalf("ended at start: %v\n%s", err, &p.errors)
	case <-time.After(patience):
		t.Fatal("not ready in time")
	}
	return p
}

// wait gives the exit code.
func (p *running) wait() int {
	p.t.Helper()
	select {
	case err := <-p.ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		if err != nil {
			p.t.Fatal(err)
		}
		return 0
	case <-time.After(patience):
		p.t.Fatalf("does not end\n%s", &p.errors)
		return -1
	}
}

func (p *running) get(path string) (int, string) {
	p.t.Helper()
	answer, err := http.Get(p.url + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// generate gives 32 greedy tokens.
func (p *running) generate() string {
	p.t.Helper()
	answer, err := http.Post(p.url+"/generate", "application/json", strings.NewReader(`{"prompt": "hello", "max_tokens": 32, "temperature": 0}`))
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		p.t.Fatalf("status %d, %v: %s", answer.StatusCode, err, body)
	}
	return string(body)
}

func epoch(t *testing.T, p *running) int {
	t.Helper()
	_, state := p.get("/api/cluster")
	found := regexp.MustCompile(`"epoch":(\d+)`).FindStringSubmatch(state)
	if found == nil {
		t.Fatalf("no epoch in %s", state)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What was deployed is there again after a kill, without being named, under a
// greater epoch and with the same answers.
func TestKilledAndStartedAgain(t *testing.T) {
	model, data := modelFolder(t), t.TempDir()
	first := start(t, data, model, "--served-model-name", "tiny,alias", "--max-model-len", "128")
	want, before := first.generate(), epoch(t, first)
	if _, models := first.get("/v1/models"); !strings.Contains(models, `"tiny"`) || !strings.Contains(models, `"max_model_len":128`) {
		t.Fatalf("models: %s", models)
	}
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-first.ended

	second := start(t, data)
	if status, health := second.get("/health"); status != http.StatusOK || !strings.Contains(health, "tiny") {
		t.Fatalf("health %d: %s", status, health)
	}
	if got := second.generate(); got != want {
		t.Fatalf("answers\n%s after\n%s", got, want)
	}
	if after := epoch(t, second); after <= before {
		t.Fatalf("epoch %d after %d", after, before)
	}
	if err := second.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := second.wait(); code != 0 {
		t.Fatalf("exit code %d\n%s", code, &second.errors)
	}
}

// At the first signal requests in progress go on to their end and new ones are
// refused; at the second the process ends at once.
func TestDrain(t *testing.T) {
	model := modelFolder(t)
	long := `{"model": "tiny", "prompt": "hello", "max_tokens": 500, "n": 32, "temperature": 0, "stream": true, "ignore_eos": true}`
	for name, signals := range map[string]int{"one signal": 1, "two signals": 2} {
		t.Run(name, func(t *testing.T) {
			p := start(t, t.TempDir(), model, "--served-model-name", "tiny")
			answer, err := http.Post(p.url+"/v1/completions", "application/json", strings.NewReader(long))
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			stream := bufio.NewReader(answer.Body)
			if line, err := stream.ReadString('\n'); err != nil {
				t.Fatalf("first line %q: %v", line, err)
			}
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if signals == 2 {
				waitFor(t, "the first signal to be taken", func() bool {
					status, _ := p.get("/readyz")
					return status == http.StatusServiceUnavailable
				})
				waitFor(t, "a second signal to end it", func() bool { return p.cmd.Process.Signal(syscall.SIGTERM) != nil })
				if code := p.wait(); code != 130 {
					t.Fatalf("exit code %d", code)
				}
				return
			}
			rest, err := io.ReadAll(stream)
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(rest)), "data: [DONE]") {
				t.Fatalf("the stream was cut: %v, …%s", err, rest[max(0, len(rest)-300):])
			}
			if code := p.wait(); code != 0 {
				t.Fatalf("exit code %d\n%s", code, &p.errors)
			}
		})
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-ticker.C:
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// What keeps a start from succeeding is one clear line and a code other than 0.
func TestStartsThatFail(t *testing.T) {
	model := modelFolder(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	port := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)
	broken := filepath.Join(t.TempDir(), "broken.gguf")
	if err := os.WriteFile(broken, []byte("this is no model"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"port taken":       {[]string{model, "--port", port}, "port " + port + " is taken"},
		"unknown model":    {[]string{"no-such-model", "--port", "0"}, "unknown model"},
		"broken file":      {[]string{broken, "--port", "0"}, "not \"GGUF\""},
		"no memory":        {[]string{model, "--port", "0", "--gpu-memory-utilization", "0.000001"}, "more than"},
		"context too long": {[]string{model, "--port", "0", "--max-model-len", "1000000"}, "max_model_len"},
		"no key":           {[]string{model, "--port", "0", "--host", "0.0.0.0"}, "API key"},
		"too many ranks":   {[]string{model, "--port", "0", "--tensor-parallel-size", "77"}, "tensor degree 77"},
		"type":             {[]string{model, "--port", "0", "--dtype", "float8"}, "float8"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := command(t, t.TempDir(), c.args...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stop := time.AfterFunc(patience, func() { cmd.Process.Kill() })
			defer stop.Stop()
			err := cmd.Wait()
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if err == nil || len(lines) != 1 || !strings.Contains(lines[0], c.want) {
				t.Fatalf("%v, %d lines:\n%s", err, len(lines), &out)
			}
		})
	}
}

// One data directory belongs to one process.
func TestOneProcessPerDirectory(t *testing.T) {
	data := t.TempDir()
	start(t, data, modelFolder(t))
	cmd := command(t, data, "--port", "0")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another manta uses") {
		t.Fatalf("%v: %s", err, out)
	}
}

// When up returns, no goroutine of it is left.
func TestNothingIsLeft(t *testing.T) {
	http.DefaultClient.CloseIdleConnections()
	before := goleak.IgnoreCurrent()
	ctx, stop := context.WithCancel(t.Context())
	var out, errs syncBuffer
	u := &up{}
	flags := pflag.NewFlagSet("up", pflag.ContinueOnError)
	u.flags(flags)
	args := []string{"--port", "0", "--metrics-port", "0", "--data-dir", t.TempDir()}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := u.complete(flags, []string{modelFolder(t)}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- u.run(ctx, &out, &errs) }()
	waitFor(t, "readiness", func() bool { return strings.Contains(out.String(), "ready after") })
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// A probe that memberlist has under way ends by itself, at its timeout.
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
