//go:build !windows

package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"manta/internal/processtest"
	"manta/runtime/weights/weightstest"
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

// tiny makes a model of random weights with a tokenizer of single bytes.
func tiny(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := weightstest.CopyWithBytes("runtime/model/testdata/models/llama", dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// running is a `manta up` of its own.
type running struct {
	t *testing.T
	*processtest.Process
	url string
}

// program is a command of this program.
func program(args ...string) *exec.Cmd {
	cmd := processtest.Command(os.Args[0], args...)
	cmd.Env = append(cmd.Env, "MANTA_TEST_PROCESS=1")
	return cmd
}

func command(data string, args ...string) *exec.Cmd {
	return program(append([]string{"up", "--data-dir", data, "--metrics-port", "0"}, args...)...)
}

// start waits until the process says that it is ready.
func start(t *testing.T, data string, args ...string) *running {
	t.Helper()
	p, url, err := processtest.Up(command(data, append([]string{"--port", "0"}, args...)...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return &running{t, p, url}
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
	model, data := tiny(t), t.TempDir()
	first := start(t, data, model, "--served-model-name", "tiny,alias", "--max-model-len", "128")
	want, before := first.generate(), epoch(t, first)
	if _, models := first.get("/v1/models"); !strings.Contains(models, `"tiny"`) || !strings.Contains(models, `"max_model_len":128`) {
		t.Fatalf("models: %s", models)
	}
	first.Kill()

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
	second.Signal(t, syscall.SIGTERM)
	if code := second.Wait(t); code != 0 {
		t.Fatalf("exit code %d\n%s", code, second.Err)
	}
}

// A start with another model takes the place of the one before, and of nothing that was
// deployed otherwise; one that fails takes nobody's.
func TestStartedWithAnotherModel(t *testing.T) {
	model, data := tiny(t), t.TempDir()
	serves := func(want string, args ...string) *running {
		t.Helper()
		p := start(t, data, args...)
		_, models := p.get("/v1/models")
		var got []string
		for _, found := range regexp.MustCompile(`"id":"(\w+)"`).FindAllStringSubmatch(models, -1) {
			got = append(got, found[1])
		}
		if strings.Join(got, " ") != want {
			t.Fatalf("up %v serves %v, want %s", args, got, want)
		}
		return p
	}
	ends := func(p *running) {
		t.Helper()
		p.Signal(t, syscall.SIGTERM)
		if code := p.Wait(t); code != 0 {
			t.Fatalf("exit code %d\n%s", code, p.Err)
		}
	}
	ends(serves("a", model, "--served-model-name", "a"))
	p := serves("b", model, "--served-model-name", "b")
	if _, errs, code := processtest.Run(t, program("serve", model, "--served-model-name", "c", "--url", p.url)); code != 0 {
		t.Fatal(errs)
	}
	ends(p)
	if _, errs, code := processtest.Run(t, command(data, model, "--port", "0", "--served-model-name", "d", "--dtype", "int17")); code == 0 {
		t.Fatalf("it started: %s", errs)
	}
	if _, errs, code := processtest.Run(t, command(data, model, "--port", "0", "--served-model-name", "d", "--gpu-memory-utilization", "0.000001")); code == 0 {
		t.Fatalf("it started: %s", errs)
	}
	ends(serves("b c"))
	p = serves("c d", model, "--served-model-name", "d")
	if said := p.Out.String(); !strings.Contains(said, `{"model": "d", "prompt"`) || !strings.Contains(said, " -m d\n") {
		t.Errorf("of two models it says: %s", said)
	}
	ends(p)
}

// At the first signal requests in progress go on to their end and new ones are
// refused; at the second the process ends at once.
func TestDrain(t *testing.T) {
	model := tiny(t)
	long := `{"model": "tiny", "prompt": "hello", "max_tokens": 500, "n": 32, "temperature": 0, "stream": true, "ignore_eos": true}`
	for name, signals := range map[string]int{"one signal": 1, "two signals": 2} {
		t.Run(name, func(t *testing.T) {
			// A step takes its time on any machine: the answer is not over before the signals.
			p := start(t, t.TempDir(), model, "--served-model-name", "tiny", "--devices", "sim:1@0.005")
			answer, err := http.Post(p.url+"/v1/completions", "application/json", strings.NewReader(long))
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			stream := bufio.NewReader(answer.Body)
			if line, err := stream.ReadString('\n'); err != nil {
				t.Fatalf("first line %q: %v", line, err)
			}
			p.Signal(t, syscall.SIGTERM)
			if signals == 2 {
				waitFor(t, "the first signal to be taken", func() bool {
					status, _ := p.get("/readyz")
					return status == http.StatusServiceUnavailable
				})
				waitFor(t, "a second signal to end it", func() bool { return p.Send(syscall.SIGTERM) != nil })
				if code := p.Wait(t); code != 130 {
					t.Fatalf("exit code %d", code)
				}
				return
			}
			rest, err := io.ReadAll(stream)
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(rest)), "data: [DONE]") {
				t.Fatalf("the stream was cut: %v, …%s", err, rest[max(0, len(rest)-300):])
			}
			if code := p.Wait(t); code != 0 {
				t.Fatalf("exit code %d\n%s", code, p.Err)
			}
		})
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	processtest.Eventually(t, func() error {
		if ok() {
			return nil
		}
		return errors.New(what)
	})
}

// What keeps a start from succeeding is one clear line and a code other than 0.
func TestStartsThatFail(t *testing.T) {
	model := tiny(t)
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
			out, errs, code := processtest.Run(t, command(t.TempDir(), c.args...))
			lines := strings.Split(strings.TrimSpace(out+errs), "\n")
			if code == 0 || len(lines) != 1 || !strings.Contains(lines[0], c.want) {
				t.Fatalf("exit code %d, %d lines:\n%s%s", code, len(lines), out, errs)
			}
		})
	}
}

// One data directory belongs to one process.
func TestOneProcessPerDirectory(t *testing.T) {
	data := t.TempDir()
	start(t, data, tiny(t))
	if _, errs, code := processtest.Run(t, command(data, "--port", "0")); code == 0 || !strings.Contains(errs, "another manta uses") {
		t.Fatalf("exit code %d: %s", code, errs)
	}
}

// When up returns, no goroutine of it is left.
func TestNothingIsLeft(t *testing.T) {
	http.DefaultClient.CloseIdleConnections()
	before := goleak.IgnoreCurrent()
	ctx, stop := context.WithCancel(t.Context())
	var out, errs processtest.Text
	u := &up{}
	flags := pflag.NewFlagSet("up", pflag.ContinueOnError)
	u.flags(flags)
	args := []string{"--port", "0", "--metrics-port", "0", "--data-dir", t.TempDir()}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := u.complete(flags, []string{tiny(t)}); err != nil {
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
	processtest.Eventually(t, func() error {
		return goleak.Find(before, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
	})
}
