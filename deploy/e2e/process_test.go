//go:build e2e && unix

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// server is a `manta up` of its own.
type server struct {
	cmd     *exec.Cmd
	url     string // of the API
	metrics string // of the metrics port, if it has one
	dir     string
	log     text
	ended   chan struct{} // closed when the process has ended
	code    int           // read it after ended
}

// text gathers what a process writes while others read it.
type text struct {
	mu     sync.Mutex
	buffer bytes.Buffer // guarded by mu
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buffer.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buffer.String()
}

// manta is a command of the program that nothing in the environment changes.
func manta(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		switch {
		case strings.HasPrefix(name, "MANTA_"), name == "MODEL_NAME", name == "TENSOR_PARALLEL_SIZE", name == "GPU_MEMORY_UTILIZATION":
		default:
			cmd.Env = append(cmd.Env, pair)
		}
	}
	return cmd
}

var address = regexp.MustCompile(`http://[0-9.]+:\d+`)

// launch starts a server and waits until it says that it is ready. With a model
// of "" it starts what the folder knows of.
func launch(dir, model string, args ...string) (*server, error) {
	all := []string{"up", "--data-dir", dir, "--port", "0", "--metrics-port", "0"}
	if model != "" {
		all = append(all, model)
	}
	s := &server{cmd: manta(append(all, args...)...), dir: dir, ended: make(chan struct{})}
	s.cmd.Stderr = &s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	found := make(chan string, 1)
	go func() { // ends with the process
		defer close(s.ended)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if url := address.FindString(lines.Text()); url != "" {
				select {
				case found <- url:
				default:
				}
			}
		}
		s.code = exitCode(s.cmd.Wait())
	}()
	select {
	case s.url = <-found:
		return s, nil
	case <-s.ended:
		return nil, fmt.Errorf("manta up ended with %d:\n%s", s.code, &s.log)
	case <-time.After(patience):
		s.kill()
		return nil, fmt.Errorf("manta up is not ready after %s:\n%s", patience, &s.log)
	}
}

// start is launch for one test, in a folder of its own unless one is given.
func start(t *testing.T, dir, model string, args ...string) *server {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	s, err := launch(dir, model, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("stderr of %s:\n%s", s.url, &s.log)
		}
	})
	return s
}

// kill ends the process without a word, as a crash does.
func (s *server) kill() {
	// It may have ended by itself.
	_ = s.cmd.Process.Kill()
	<-s.ended
}

func (s *server) signal(t *testing.T, what os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(what); err != nil {
		t.Fatalf("signal: %v", err)
	}
}

// wait gives the exit code.
func (s *server) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-s.ended:
		return s.code
	case <-time.After(patience):
		t.Fatalf("the process does not end:\n%s", &s.log)
		return -1
	}
}

// memory is the resident set in bytes.
func (s *server) memory() (int64, error) {
	out, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(s.cmd.Process.Pid)).Output()
	if err != nil {
		return 0, fmt.Errorf("ps: %w", err)
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return kib << 10, err
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func freePort() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	return port, err
}

// eventually asks again and again until it holds, and tells why it never did.
func eventually(t *testing.T, limit time.Duration, holds func() error) {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	end := time.After(limit)
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-end:
			t.Fatalf("not within %s: %v", limit, err)
		}
	}
}
