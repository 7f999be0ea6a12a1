//go:build e2e

package sdk

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// With the tag e2e every test of this package asks the real program, bin/manta,
// on its default model, unless MANTA_URL names a server.
func TestMain(m *testing.M) {
	if os.Getenv("MANTA_URL") != "" {
		os.Exit(m.Run())
	}
	stop, err := serve()
	if err != nil {
		fmt.Fprintln(os.Stderr, "manta up:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "manta up:", err)
		code = 1
	}
	os.Exit(code)
}

// serve starts bin/manta and sets MANTA_URL once it can generate.
func serve() (stop func() error, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		return nil, err
	}
	data, err := os.MkdirTemp("", "manta-e2e-")
	if err != nil {
		return nil, err
	}
	command := exec.Command("../../../bin/manta", "up", "--port", strconv.Itoa(port), "--metrics-port", "0", "--data-dir", data)
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	stop = func() error {
		signalled := command.Process.Signal(syscall.SIGTERM)
		return errors.Join(signalled, <-ended, os.RemoveAll(data))
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	deadline := time.After(5 * time.Minute)
	for {
		if response, err := http.Get(url + "/health"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return stop, os.Setenv("MANTA_URL", url)
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case err := <-ended:
			return nil, fmt.Errorf("it ended: %w", errors.Join(err, os.RemoveAll(data)))
		case <-deadline:
			return nil, errors.Join(errors.New("it can't generate after five minutes"), stop())
		}
	}
}

// OpenAI's Python package passes its own test, in a virtual environment that is
// made on the first run.
func TestPython(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
	defer stop()
	script, err := filepath.Abs("run.sh")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, script).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
