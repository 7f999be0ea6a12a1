//go:build e2e && unix

package e2e

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"manta/internal/processtest"
)

// server is a `manta up` of its own.
type server struct {
	*processtest.Process
	url     string // of the API
	metrics string // of the metrics port, if it has one
	dir     string
}

// manta is a command of the program that nothing in the environment changes.
func manta(args ...string) *exec.Cmd { return processtest.Command(binary, args...) }

// launch starts a server and waits until it says that it is ready. With a model
// of "" it starts what the folder knows of.
func launch(dir, model string, args ...string) (*server, error) {
	all := []string{"up", "--data-dir", dir, "--port", "0", "--metrics-port", "0"}
	if model != "" {
		all = append(all, model)
	}
	p, url, err := processtest.Up(manta(append(all, args...)...))
	if err != nil {
		return nil, err
	}
	return &server{Process: p, url: url, dir: dir}, nil
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
		s.Kill()
		if t.Failed() {
			t.Logf("stderr of %s:\n%s", s.url, s.Err)
		}
	})
	return s
}

// memory is the resident set in bytes.
func (s *server) memory() (int64, error) {
	out, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(s.Pid())).Output()
	if err != nil {
		return 0, fmt.Errorf("ps: %w", err)
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return kib << 10, err
}
