//go:build e2e

// Package hub shows the way of a model from the hub to an answer, with the real
// program and a hub server on this machine: a repository of each family pulls and
// answers as ref does, a pull that is killed goes on where it was, and the cache
// is the one of Python's huggingface_hub.
package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"manta/internal/processtest"
	"manta/kernels"
	"manta/kernels/cpu"
	"manta/kernels/ref"
	"manta/runtime/token"
	"manta/runtime/weights"
	"manta/runtime/weights/hub/hubtest"
)

const asked = 12 // tokens of an answer

// manta is the program under test.
var manta string

func TestMain(m *testing.M) {
	var err error
	if manta, err = processtest.Binary(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A machine is a home directory whose hub is the test's.
type machine struct {
	home, endpoint string
	environment    []string
}

func newMachine(t *testing.T, server *hubtest.Hub) *machine {
	return &machine{home: t.TempDir(), endpoint: server.URL}
}

// command makes a manta of this machine, with nothing of the user's own.
func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(manta, args...)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + m.home, "HF_HOME=" + filepath.Join(m.home, "hf"), "HF_ENDPOINT=" + m.endpoint,
		"NO_PROXY=127.0.0.1,localhost", "no_proxy=127.0.0.1,localhost",
	}, m.environment...)
	return cmd
}

// cache is the folder of a repository in the machine's cache.
func (m *machine) cache(repository string) string {
	return filepath.Join(m.home, "hf", "hub", "models--"+strings.ReplaceAll(repository, "/", "--"))
}

// A server is a `manta up` that answers.
type server struct {
	t *testing.T
	*processtest.Process
	url   string
	model string
}

// up starts a model and waits until it answers.
func (m *machine) up(t *testing.T, model string, flags ...string) *server {
	t.Helper()
	p, url, err := processtest.Up(m.command(append([]string{"up", model, "--data-dir", t.TempDir(), "--port", "0", "--metrics-port", "0",
		"--max-model-len", "128", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.02", "--kv-cache-dtype", "float32"}, flags...)...))
	must(t, err)
	t.Cleanup(p.Kill)
	return &server{t, p, url, model}
}

// stop ends the server as Kubernetes does.
func (s *server) stop() {
	s.t.Helper()
	s.Signal(s.t, syscall.SIGTERM)
	if code := s.Wait(s.t); code != 0 {
		s.t.Fatalf("exit code %d\n%s", code, s.Err)
	}
}

// An answer is what of a completion is compared.
type answer struct {
	prompt, tokens []int32
	text           string
}

// post asks and gives the first choice, or the status and the error's text.
func (s *server) post(path string, body object) (answer, int, string) {
	s.t.Helper()
	body["model"], body["max_tokens"], body["temperature"] = s.model, asked, 0
	body["repetition_penalty"], body["ignore_eos"], body["return_token_ids"], body["skip_special_tokens"] = 1, true, true, false
	data, err := json.Marshal(body)
	must(s.t, err)
	response, err := http.Post(s.url+path, "application/json", bytes.NewReader(data))
	must(s.t, err)
	defer response.Body.Close()
	data, err = io.ReadAll(response.Body)
	must(s.t, err)
	if response.StatusCode != http.StatusOK {
		return answer{}, response.StatusCode, string(data)
	}
	var decoded struct {
		Prompt  []int32 `json:"prompt_token_ids"`
		Choices []struct {
			Text    string
			Message struct{ Content string }
			Prompt  []int32 `json:"prompt_token_ids"`
			Tokens  []int32 `json:"token_ids"`
		}
	}
	must(s.t, json.Unmarshal(data, &decoded))
	if len(decoded.Choices) != 1 {
		s.t.Fatalf("%s: %s", path, data)
	}
	c := decoded.Choices[0]
	return answer{append(decoded.Prompt, c.Prompt...), c.Tokens, c.Text + c.Message.Content}, http.StatusOK, ""
}

func (s *server) complete() answer {
	s.t.Helper()
	a, status, problem := s.post("/v1/completions", object{"prompt": prompt})
	if status != http.StatusOK {
		s.t.Fatalf("status %d: %s\n%s", status, problem, s.Err)
	}
	return a
}

const (
	prompt  = "The quick brown fox jumps over the lazy dog."
	message = "Where is the fox? — Où est le renard ?"
)

// check compares an answer with what the model says on a device: its tokens, and
// the text that its tokenizer makes of them.
func check(t *testing.T, ops kernels.Ops, path string, a answer, text string) {
	t.Helper()
	w, err := weights.Open(path)
	must(t, err)
	defer func() { must(t, w.Close()) }()
	source, err := w.Tokenizer()
	must(t, err)
	tokenizer, err := token.New(source)
	must(t, err)
	if got := tokenizer.Decode(a.prompt, true); !strings.Contains(got, text) {
		t.Errorf("the prompt %v reads %q", a.prompt, got)
	}
	want := greedy(t, ops, w, a.prompt, asked)
	if !slices.Equal(a.tokens, want) {
		t.Errorf("prompt %v\ngot  %v\nwant %v", a.prompt, a.tokens, want)
	}
	if decoded := tokenizer.Decode(append(slices.Clone(a.prompt), want...), false); !strings.HasSuffix(decoded, a.text) {
		t.Errorf("text %q of %q", a.text, decoded)
	}
}

// A model of each family, laid out as its repository is, pulls and answers, text
// and chat, with the tokens that ref gives. Of the repository nothing else is
// fetched.
func TestFamilies(t *testing.T) {
	for i, r := range repositories() {
		t.Run(r.name, func(t *testing.T) {
			hub := hubtest.New(t)
			folder := t.TempDir()
			r.write(t, folder, uint64(i))
			_, err := hub.PutFolder(r.name, folder)
			must(t, err)
			s := newMachine(t, hub).up(t, r.name, "--dtype", "float32") // as ref computes
			for _, q := range hub.Requests() {
				for _, name := range append(r.beside, "README.md") {
					if strings.HasSuffix(q.Path, "/"+name) {
						t.Errorf("fetched %s", q.Path)
					}
				}
			}
			check(t, ref.New(), folder, s.complete(), prompt)
			chat := object{"messages": []object{{"role": "user", "content": message}}}
			a, status, problem := s.post("/v1/chat/completions", chat)
			switch {
			case r.template == "":
				if status != http.StatusBadRequest || !strings.Contains(problem, "chat template") {
					t.Errorf("a base model answers a chat with %d: %s", status, problem)
				}
			case status != http.StatusOK:
				t.Errorf("chat: status %d: %s", status, problem)
			default:
				check(t, ref.New(), folder, a, message)
			}
			s.stop()
		})
	}
}

// Of a repository of GGUF files the named one is fetched and answers, with the
// tokens that the processor's own kernels give.
func TestGGUF(t *testing.T) {
	all := repositories()
	llama, qwen := all[0], all[5]
	qwen.padding = 0
	hub := hubtest.New(t)
	hub.Put("org/llama-GGUF", map[string][]byte{
		"llama-f32.gguf": llama.gguf(t, "llama", "llama", "default", false),
		"llama-q8.gguf":  []byte("another"), "README.md": []byte("text"), "config.json": []byte(`{"model_type": "llama"}`),
	})
	hub.Put("org/qwen3-GGUF", map[string][]byte{
		"Qwen3-tiny-Q8_0.gguf":   qwen.gguf(t, "qwen3", "gpt2", "qwen2", true),
		"Qwen3-tiny-Q4_K_M.gguf": []byte("another"), "mmproj-F16.gguf": []byte("another"), "imatrix.gguf": []byte("another"),
	})
	for _, model := range []string{"org/llama-GGUF:llama-f32.gguf", "hf:org/qwen3-GGUF:Q8_0"} {
		t.Run(model, func(t *testing.T) {
			m := newMachine(t, hub)
			s := m.up(t, model)
			files, err := filepath.Glob(filepath.Join(m.home, "hf/hub/models--*/snapshots/*/*.gguf"))
			if err != nil || len(files) != 1 {
				t.Fatalf("files %v (%v)", files, err)
			}
			ops, err := cpu.New(cpu.Options{Threads: 1, Precision: cpu.Int8}) // the default
			must(t, err)
			defer func() { must(t, ops.Close()) }()
			check(t, ops, files[0], s.complete(), prompt)
			a, status, problem := s.post("/v1/chat/completions", object{"messages": []object{{"role": "user", "content": message}}})
			if status != http.StatusOK {
				t.Fatalf("chat: status %d: %s", status, problem)
			}
			check(t, ops, files[0], a, message)
			s.stop()
		})
	}
}

// exitCode runs a command to its end.
func exitCode(t *testing.T, cmd *exec.Cmd) (int, string) {
	t.Helper()
	out, errs, code := processtest.Run(t, cmd)
	return code, out + errs
}
