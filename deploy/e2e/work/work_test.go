//go:build e2e

package work

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

var address = regexp.MustCompile(`http://[0-9.]+:\d+`)

// up starts the program with keys on, and gives its address.
func up(t *testing.T, key string) string {
	t.Helper()
	binary := os.Getenv("MANTA_BINARY")
	if binary == "" {
		binary = "../../../bin/manta"
	}
	command := exec.Command(binary, "up", "--port", "0", "--metrics-port", "0", "--data-dir", t.TempDir(), "--api-key", key, "smollm2")
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	found := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if url := address.FindString(lines.Text()); url != "" {
				select {
				case found <- url:
				default:
				}
			}
		}
		_ = command.Wait() // it is told to end
	}()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	select {
	case url := <-found:
		return url
	case <-ended:
		t.Fatal("manta up ended")
	case <-time.After(5 * time.Minute):
		t.Fatal("manta up is not ready after five minutes")
	}
	return ""
}

// Ray's client and OpenAI's package pass unchanged; what is no manta command runs nothing.
func TestClients(t *testing.T) {
	const key = "the-key-of-this-test"
	url := up(t, key)
	ctx, stop := context.WithTimeout(t.Context(), 15*time.Minute)
	defer stop()
	script, err := filepath.Abs("run.sh")
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(ctx, script)
	command.Env = append(os.Environ(), "MANTA_URL="+url, "MANTA_API_KEY="+key, "MANTA_MODEL=smollm2")
	out, err := command.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
