//go:build e2e

package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"manta/internal/processtest"
)

// With the tag e2e every test of this package asks the real program, bin/manta,
// on its default model, unless MANTA_URL names a server.
func TestMain(m *testing.M) {
	if os.Getenv("MANTA_URL") != "" {
		os.Exit(m.Run())
	}
	code, err := serve(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

// serve runs the tests while bin/manta serves at MANTA_URL, which then ends in order.
func serve(tests func() int) (code int, err error) {
	binary, err := processtest.Binary()
	if err != nil {
		return 0, err
	}
	data, err := os.MkdirTemp("", "manta-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	p, url, err := processtest.Up(processtest.Command(binary, "up", "--port", "0", "--metrics-port", "0", "--data-dir", data))
	if err != nil {
		return 0, err
	}
	defer p.Kill()
	if err := os.Setenv("MANTA_URL", url); err != nil {
		return 0, err
	}
	code = tests()
	if err := p.Send(syscall.SIGTERM); err != nil {
		return 0, err
	}
	<-p.Ended
	if p.Code() != 0 {
		return 0, fmt.Errorf("manta up ended with %d:\n%s", p.Code(), p.Err)
	}
	return code, nil
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
