//go:build e2e

package work

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"manta/internal/processtest"
)

// up starts the program with keys on, and gives its file and address.
func up(t *testing.T, key string) (binary, url string) {
	t.Helper()
	binary, err := processtest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	p, url, err := processtest.Up(processtest.Command(binary, "up", "--port", "0", "--metrics-port", "0", "--data-dir", t.TempDir(), "--api-key", key, "smollm2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Send(syscall.SIGTERM) // it may have ended
		<-p.Ended
		if t.Failed() {
			t.Logf("%s", p.Err)
		}
	})
	return binary, url
}

// Ray's client and OpenAI's package pass unchanged; what is no manta command runs nothing.
func TestClients(t *testing.T) {
	const key = "the-key-of-this-test"
	_, url := up(t, key)
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

// The program's own commands do the same.
func TestCommands(t *testing.T) {
	const key = "the-key-of-this-test"
	binary, url := up(t, key)
	manta := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), binary, append(args, "--url", url, "--api-key", key)...).CombinedOutput()
		if err != nil {
			t.Fatalf("manta %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.jsonl"), filepath.Join(dir, "out.jsonl")
	var lines strings.Builder
	for i := range 5 {
		fmt.Fprintf(&lines, `{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"model":"smollm2","prompt":"%d","max_tokens":2,"temperature":%d}}`+"\n", i, i, -(i / 4))
	}
	if err := os.WriteFile(in, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	said := manta("batch", "--input", in, "--output", out)
	for name, want := range map[string]int{out: 4, out + ".errors": 1} {
		data, err := os.ReadFile(name)
		if err != nil || strings.Count(string(data), "\n") != want {
			t.Errorf("%s: %v, %s", name, err, data)
		}
	}
	id := strings.TrimPrefix(strings.Split(said, ";")[0], "job ")
	if list := manta("jobs", "list"); !strings.Contains(list, id) || !strings.Contains(list, "5/5") {
		t.Errorf("manta jobs list: %s", list)
	}
	if log := manta("jobs", "logs", id); !strings.Contains(log, "SUCCEEDED") {
		t.Errorf("manta jobs logs: %s", log)
	}
	job := strings.TrimSpace(manta("jobs", "submit", "manta serve smollm2 --served-model-name second --max-model-len 256"))
	manta("jobs", "stop", job)
	if log := manta("jobs", "logs", "-f", job); !strings.Contains(log, "STOPPED") {
		t.Errorf("manta jobs logs -f: %s", log)
	}
	user := strings.TrimSpace(manta("keys", "create", "alice", "--requests-per-second", "2"))
	if list := manta("keys", "list"); !strings.Contains(list, "alice") || strings.Contains(list, user) {
		t.Errorf("manta keys list: %s", list)
	}
	for _, args := range [][]string{
		{"serve", "smollm2", "--served-model-name", "third"}, {"delete", "smollm2"}, {"jobs", "submit", "manta serve smollm2"},
	} {
		out, err := exec.CommandContext(t.Context(), binary, append(args, "--url", url, "--api-key", user)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "no administrator's") {
			t.Errorf("manta %v with a user's key: %v, %s", args, err, out)
		}
	}
	manta("keys", "revoke", "alice")
}
