//go:build e2e && unix

package e2e

import (
	"crypto/rand"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"manta/internal/processtest"
)

// refused runs `manta up`, which must end by itself, with a code other than 0,
// nothing on standard output, and one line on standard error that says why.
func refused(t *testing.T, want string, args ...string) {
	t.Helper()
	out, errs, code := processtest.Run(t, manta(append([]string{"up"}, args...)...))
	line := strings.TrimSuffix(errs, "\n")
	if code != 1 || out != "" || !strings.HasPrefix(line, "manta: ") || strings.Contains(line, "\n") || !strings.Contains(line, want) {
		t.Errorf("exit code %d; want one line with %q, got\n%s%s", code, want, out, errs)
	}
	for _, internal := range []string{"goroutine ", "panic:"} {
		if strings.Contains(line, internal) && !strings.Contains(want, internal) {
			t.Errorf("the line shows internals: %s", line)
		}
	}
}

// fresh are the flags of a server of its own.
func fresh(t *testing.T, args ...string) []string {
	return append([]string{"--data-dir", t.TempDir(), "--port", "0", "--metrics-port", "0"}, args...)
}

// What can't work is said at once, in one line, with what to do.
func TestFlagsRefused(t *testing.T) {
	model := tiny(t)
	for name, c := range map[string]struct {
		want string
		args []string
	}{
		"unknown flag":       {"unknown flag: --no-such-flag", []string{"--no-such-flag"}},
		"port no number":     {"--port", []string{"--port", "http"}},
		"two models":         {"accepts at most 1 arg", []string{model, model}},
		"length beyond":      {"max_model_len=100000 is more than the model's context of 512", []string{"--max-model-len", "100000", model}},
		"length negative":    {"max_model_len must not be negative", []string{"--max-model-len", "-5", model}},
		"seqs negative":      {"max_num_seqs must not be negative", []string{"--max-num-seqs", "-5", model}},
		"few batched tokens": {"max_num_batched_tokens=8 is less than max_num_seqs=9", []string{"--max-num-batched-tokens", "8", "--max-num-seqs", "9", model}},
		"no memory, tokens":  {"does not fit", []string{"--max-num-batched-tokens", "1000000000", model}},
		"no memory, seqs":    {"does not fit", []string{"--max-num-seqs", "100000000", model}},
		"tensor degree":      {"tensor degree 7", []string{"--tensor-parallel-size", "7", model}},
		"no tensor degree":   {"--tensor-parallel-size", []string{"--tensor-parallel-size", "0", model}},
		"dtype":              {`dtype "fp8"`, []string{"--dtype", "fp8", model}},
		"cache dtype":        {"kv_cache_dtype", []string{"--kv-cache-dtype", "int4", model}},
		"memory utilization": {"--gpu-memory-utilization", []string{"--gpu-memory-utilization", "1.5", model}},
		"no key":             {"an API key is needed to listen beyond loopback", []string{"--host", "0.0.0.0", model}},
		"no key, IPv6":       {"an API key is needed to listen beyond loopback", []string{"--host", "::", model}},
		"no file of keys":    {"no such file", []string{"--api-key", "@/no/such/file", model}},
		"no address of ours": {"192.0.2.1", []string{"--host", "192.0.2.1", "--api-key", "none", model}}, // RFC 5737
		"log level":          {"--log-level", []string{"--log-level", "loud", model}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.want, fresh(t, c.args...)...) })
	}
}

// A name that is no model, and a model that is damaged or that the program does
// not do.
func TestModelsRefused(t *testing.T) {
	dir := t.TempDir()
	real := modelFile(t)
	cut := func(name string, part int64) string {
		name = filepath.Join(dir, name)
		write(t, name, head(t, real, part))
		return name
	}
	noise := make([]byte, 1<<16)
	_, _ = rand.Read(noise) // never fails
	noise[0] = '!'
	write(t, filepath.Join(dir, "noise.gguf"), noise)
	write(t, filepath.Join(dir, "empty.gguf"), nil)

	short := tiny(t)
	write(t, filepath.Join(short, "model.safetensors"), head(t, filepath.Join(short, "model.safetensors"), 1<<19))
	broken := tiny(t)
	write(t, filepath.Join(broken, "config.json"), []byte("{"))
	speechless := tiny(t)
	if err := os.Remove(filepath.Join(speechless, "tokenizer.json")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ want, model string }{
		"unknown name":         {`unknown model`, "no-such-model"},
		"no such path":         {"not found", filepath.Join(dir, "nowhere")},
		"empty folder":         {"config.json: not found", t.TempDir()},
		"empty GGUF":           {"damaged", filepath.Join(dir, "empty.gguf")},
		"random bytes":         {"damaged", filepath.Join(dir, "noise.gguf")},
		"GGUF cut in metadata": {"damaged", cut("metadata.gguf", 1_000_000)},
		"GGUF cut in tensors":  {"is the download complete?", cut("tensors.gguf", 60_000_000)},
		"safetensors cut":      {"is the download complete?", short},
		"config.json broken":   {"config.json", broken},
		"no tokenizer":         {"tokenizer.json", speechless},
		"architecture":         {`"nope"`, tinyBut(t, "model_type", "nope")},
		"quantization":         {`"awq"`, tinyBut(t, "quantization_config", object{"quant_method": "awq"})},
		"shape":                {"1048576", tinyBut(t, "hidden_size", 1<<20)},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.want, fresh(t, c.model)...) })
	}
}

// modelFile is the GGUF file of the shared server's model.
func modelFile(t *testing.T) string {
	t.Helper()
	out, err := manta("pull", *realModel).Output()
	if err != nil {
		t.Fatalf("pull: %v", err)
	}
	fields := strings.Split(strings.TrimSpace(string(out)), "\t")
	if name := fields[len(fields)-1]; strings.HasSuffix(name, ".gguf") {
		return name
	}
	t.Fatalf("pull says %q, not where a .gguf file is", out)
	return ""
}

// head is the beginning of a file.
func head(t *testing.T, name string, bytes int64) []byte {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	data := make([]byte, bytes)
	if _, err := file.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return data
}

// Ports and folders that others use.
func TestTakenRefused(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	model := tiny(t)
	refused(t, "port "+port+" is taken", fresh(t, "--port", port, model)...)
	refused(t, "give --metrics-port another", fresh(t, "--metrics-port", port, model)...)
	refused(t, "another manta uses "+shared.dir, "--data-dir", shared.dir, "--port", "0", "--metrics-port", "0")
}

// A data directory that can't be written, or is full.
func TestDataDirRefused(t *testing.T) {
	model := tiny(t)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	in := func(dir string) []string {
		return []string{"--data-dir", filepath.Join(dir, "data"), "--port", "0", "--metrics-port", "0", model}
	}
	t.Run("a file", func(t *testing.T) { refused(t, "--data-dir", in(file)...) })
	t.Run("read only", func(t *testing.T) {
		dir := t.TempDir()
		if os.Geteuid() == 0 { // whom permissions do not hold
			memoryDisk(t, dir, "ro,size=1m")
		} else if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		refused(t, "--data-dir", in(dir)...)
	})
	t.Run("full", func(t *testing.T) {
		dir := t.TempDir()
		memoryDisk(t, dir, "size=256k")
		refused(t, "no space left on device", in(dir)...)
	})
}

// memoryDisk mounts a small file system. Only root can: others are told.
func memoryDisk(t *testing.T, dir, options string) {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("a small file system can be mounted only by root on Linux")
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("this machine mounts no file system: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
}

// A start that failed leaves nothing behind: the same folder works with a model
// that does.
func TestStartsAfterRefusal(t *testing.T) {
	dir, model := t.TempDir(), tiny(t)
	at := []string{"--data-dir", dir, "--port", "0", "--metrics-port", "0"}
	refused(t, "config.json: not found", append(at, t.TempDir())...)
	refused(t, "does not fit", append(at, "--max-num-batched-tokens", "1000000000", "--served-model-name", "a", model)...)
	s := start(t, dir, model, "--served-model-name", "b")
	_, body, err := get(t.Context(), s.url+"/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	var models struct{ Data []struct{ ID string } }
	if err := json.Unmarshal([]byte(body), &models); err != nil || len(models.Data) != 1 || models.Data[0].ID != "b" {
		t.Errorf("/v1/models: %s, %v", body, err)
	}
}
