//go:build e2e

package hub

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"manta/kernels/ref"
	"manta/runtime/weights/hub/hubtest"
)

// interpreterOf gives a Python with huggingface_hub, installed once into a cache
// folder.
func interpreterOf(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	folder := cmp.Or(os.Getenv("HUB_VENV"), filepath.Join(cache, "manta", "hub-venv"))
	interpreter := filepath.Join(folder, "bin", "python")
	if exec.Command(interpreter, "-c", "import huggingface_hub").Run() == nil {
		return interpreter
	}
	for _, args := range [][]string{
		{"python3", "-m", "venv", folder},
		{filepath.Join(folder, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "huggingface_hub>=1,<2"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("Python's huggingface_hub is needed here: %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return interpreter
}

// python gives what a program of Python's prints on the machine.
func (m *machine) python(t *testing.T, interpreter, program string) string {
	t.Helper()
	cmd := m.command()
	cmd.Path, cmd.Args = interpreter, []string{interpreter, "-c", program}
	cmd.Env = append(cmd.Env, "HF_HUB_DISABLE_PROGRESS_BARS=1", "HF_HUB_DISABLE_TELEMETRY=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// What manta pulls Python finds, without asking the hub; what Python pulls answers
// here, without asking it either.
func TestPythonsCache(t *testing.T) {
	interpreter := interpreterOf(t)
	hub := hubtest.New(t)
	r := repositories()[0]
	folder := t.TempDir()
	r.write(t, folder, 1)
	commit, err := hub.PutFolder(r.name, folder)
	must(t, err)

	ours := newMachine(t, hub)
	if code, out := exitCode(t, ours.command("pull", r.name)); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	hub.Requests()
	got := ours.python(t, interpreter, `
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
print(snapshot_download("`+r.name+`", local_files_only=True))
print(hf_hub_download("`+r.name+`", "config.json", local_files_only=True))
for repository in scan_cache_dir().repos:
    for revision in repository.revisions:
        print(repository.repo_id, revision.commit_hash, *sorted(revision.refs))
print(len(scan_cache_dir().warnings), "warnings")`)
	snapshot := filepath.Join(ours.cache(r.name), "snapshots", commit)
	want := strings.Join([]string{snapshot, filepath.Join(snapshot, "config.json"), r.name + " " + commit + " main", "0 warnings"}, "\n")
	if got != want {
		t.Errorf("Python finds\n%s\nwant\n%s", got, want)
	}
	if asked := hub.Requests(); len(asked) != 0 {
		t.Errorf("Python asked %v", asked)
	}

	theirs := newMachine(t, hub)
	theirs.python(t, interpreter, `
from huggingface_hub import snapshot_download
snapshot_download("`+r.name+`", allow_patterns=["*.json", "*.safetensors"])`)
	hub.Requests()
	theirs.environment = []string{"HF_HUB_OFFLINE=1"}
	s := theirs.up(t, r.name)
	check(t, ref.New(), folder, s.complete(), prompt)
	s.stop()
	if asked := hub.Requests(); len(asked) != 0 {
		t.Errorf("manta asked %v", asked)
	}
}
