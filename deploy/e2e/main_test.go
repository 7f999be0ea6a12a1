//go:build e2e && unix

package e2e

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"manta/internal/processtest"
)

var (
	overloadTime  = flag.Duration("overload", 12*time.Second, "how long TestOverload offers too much")
	overloadModel = flag.String("overload-model", "", "model of TestOverload; random weights by default")
	overloadSize  = flag.Int("overload-tokens", 64, "tokens of each answer in TestOverload")
	faulty        = flag.Bool("fault", false, "the program's device faults or stands still at signals (a GPU, make gpu-test)")
	realModel     = flag.String("model", "smollm2", "model of the other tests")
)

// binary is the program under test, shared what tests that change nothing use.
var (
	binary string
	shared *server
)

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
	if binary, err = processtest.Binary(); err != nil {
		return 1, err
	}
	free, err := processtest.Addresses(1)
	if err != nil {
		return 1, err
	}
	_, port, err := net.SplitHostPort(free[0])
	if err != nil {
		return 1, err
	}
	if shared, err = launch(filepath.Join(dir, "data"), *realModel, "--metrics-port", port); err != nil {
		return 1, err
	}
	defer shared.Kill()
	shared.metrics = "http://" + free[0]
	return m.Run(), nil
}
