//go:build e2e && unix

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"manta/internal/processtest"
)

// command runs a command of the program and gives what it prints.
func command(t *testing.T, input string, args ...string) (out, errs string, code int) {
	t.Helper()
	cmd := manta(args...)
	cmd.Stdin = strings.NewReader(input)
	return processtest.Run(t, cmd)
}

// good is command, which must succeed without a complaint.
func good(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, errs, code := command(t, input, args...)
	if code != 0 || errs != "" {
		t.Fatalf("%q: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

// generate prints what the API gives.
func TestGenerateCommand(t *testing.T) {
	want, err := shared.whole(t.Context(), "/v1/completions", object{"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0})
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"generate", "--url", shared.url, "--max-tokens", "12", "--temperature", "0"}
	if got := good(t, "", append(flags, "Once", "upon", "a", "time")...); got != want.Choices[0].Text+"\n" {
		t.Errorf("by arguments %q, want %q", got, want.Choices[0].Text)
	}
	if got := good(t, "Once upon a time", flags...); got != want.Choices[0].Text+"\n" {
		t.Errorf("by standard input %q, want %q", got, want.Choices[0].Text)
	}
}

// Each line of a chat's input is a turn, and the answers come in order.
func TestChatCommandPiped(t *testing.T) {
	body := object{"messages": []object{{"role": "user", "content": "Say hello."}}, "max_tokens": 8, "temperature": 0}
	first, err := shared.whole(t.Context(), "/v1/chat/completions", body)
	if err != nil {
		t.Fatal(err)
	}
	body["messages"] = append(body["messages"].([]object),
		object{"role": "assistant", "content": first.Choices[0].Text}, object{"role": "user", "content": "And again?"})
	second, err := shared.whole(t.Context(), "/v1/chat/completions", body)
	if err != nil {
		t.Fatal(err)
	}
	got := good(t, "Say hello.\nAnd again?\n/bye\nnever sent\n", "chat", "--url", shared.url, "--max-tokens", "8", "--temperature", "0")
	if want := first.Choices[0].Text + "\n" + second.Choices[0].Text + "\n"; got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

// status and list show what is there, to people and to programs.
func TestStatusAndListCommands(t *testing.T) {
	out := good(t, "", "status", "--url", shared.url)
	if !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(*realModel)+` .* 1/1 .* ready`).MatchString(out) || !strings.Contains(out, "cpu") {
		t.Errorf("status:\n%s", out)
	}
	if !json.Valid([]byte(good(t, "", "status", "--json", "--url", shared.url))) {
		t.Error("status --json is not JSON")
	}
	if out := good(t, "", "list"); !strings.Contains(out, filepath.Base(modelFile(t))) {
		t.Errorf("list:\n%s", out)
	}
	if out := good(t, "", "version"); !strings.HasPrefix(out, "manta ") {
		t.Errorf("version: %q", out)
	}
}

// bench gives a table and JSON with the figures that one asks of a server.
func TestBenchCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	out := good(t, "", "bench", "--url", shared.url, "--num-prompts", "6", "--max-concurrency", "3",
		"--random-input-len", "8", "--random-output-len", "4", "--random-range-ratio", "0.5", "--seed", "9", "--json", file)
	for _, word := range []string{"throughput", "time to first token", "inter-token latency", "end to end", "p50", "p90", "p99", "6, of which 0 failed"} {
		if !strings.Contains(out, word) {
			t.Errorf("the table lacks %q:\n%s", word, out)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var report struct{ Requests, Failed int }
	if err := json.Unmarshal(data, &report); err != nil || report.Requests != 6 || report.Failed != 0 {
		t.Errorf("%v, %+v: %s", err, report, data)
	}
}

// A command whose server is not there says so in one line.
func TestCommandsWithoutServer(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"generate", "hello"}, {"chat"}, {"bench", "--num-prompts", "1"}} {
		out, errs, code := command(t, "hello\n", append(args, "--url", "http://127.0.0.1:1")...)
		if code == 0 || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "manta: ") || !strings.Contains(errs, "refused") && args[0] != "bench" {
			t.Errorf("%q: exit code %d\n%s%s", args, code, out, errs)
		}
	}
}
