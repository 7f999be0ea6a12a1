//go:build e2e && unix

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

var (
	overloadTime  = flag.Duration("overload", 12*time.Second, "how long TestOverload offers too much")
	overloadModel = flag.String("overload-model", "", "model of TestOverload; random weights by default")
	overloadSize  = flag.Int("overload-tokens", 64, "tokens of each answer in TestOverload")
	faulty        = flag.Bool("fault", false, "the program's device faults at SIGUSR2 (a GPU, make gpu-test)")
	realModel     = flag.String("model", "smollm2", "model of the other tests")
)

// binary is the program under test, shared what tests that change nothing use.
var (
	binary string
	shared *server
)

// patience bounds every wait: the machine may be busy with other things.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "manta-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if binary, err = program(dir); err != nil {
		return 1, err
	}
	port, err := freePort()
	if err != nil {
		return 1, err
	}
	shared, err = launch(filepath.Join(dir, "data"), *realModel, "--metrics-port", port)
	if err != nil {
		return 1, err
	}
	defer shared.kill()
	shared.metrics = "http://127.0.0.1:" + port
	return m.Run(), nil
}

// program gives the Makefile's binary, or builds one.
func program(dir string) (string, error) {
	built, err := filepath.Abs("../../bin/manta")
	if err != nil {
		return "", err
	}
	if name := os.Getenv("MANTA_BINARY"); name != "" {
		return filepath.Abs(name)
	}
	if _, err := os.Stat(built); err == nil {
		return built, nil
	}
	built = filepath.Join(dir, "manta")
	build := exec.Command("go", "build", "-trimpath", "-o", built, "manta")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return built, nil
}
