package hub

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Of several formats one is chosen, safetensors first; what is not plain is an
// error that lists what there is.
func TestChoose(t *testing.T) {
	quants := []string{"m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.Q8_0.gguf", "mmproj-f16.gguf", "imatrix.gguf", "README.md"}
	for _, c := range []struct {
		name    string
		names   []string
		variant string
		gguf    string
		heavy   []string
		is      error
		says    string
	}{
		{name: "safetensors before all", names: []string{"config.json", "model.safetensors", "pytorch_model.bin", "m.gguf"}, heavy: []string{"model.safetensors"}},
		{name: "index", names: []string{"config.json", "model.safetensors.index.json"}},
		{name: "only gguf", names: []string{"m.gguf", "config.json"}, gguf: "m.gguf", heavy: []string{"m.gguf"}},
		{name: "gguf asked for", names: []string{"config.json", "model.safetensors", "m-f16.gguf"}, variant: "F16", gguf: "m-f16.gguf", heavy: []string{"m-f16.gguf"}},
		{name: "several", names: quants, is: ErrUnsupported, says: "m-Q4_K_M.gguf, m-Q4_K_S.gguf, m.Q8_0.gguf"},
		{name: "by variant", names: quants, variant: "q4_k_m", gguf: "m-Q4_K_M.gguf", heavy: []string{"m-Q4_K_M.gguf"}},
		{name: "by dot", names: quants, variant: "Q8_0", gguf: "m.Q8_0.gguf", heavy: []string{"m.Q8_0.gguf"}},
		{name: "by file", names: quants, variant: "m-Q4_K_S.gguf", gguf: "m-Q4_K_S.gguf", heavy: []string{"m-Q4_K_S.gguf"}},
		{name: "half a variant", names: quants, variant: "Q4_K", is: ErrNotFound, says: "there is m-Q4_K_M.gguf"},
		{name: "split", names: []string{"q/m-Q4_0-00001-of-00002.gguf", "q/m-Q4_0-00002-of-00002.gguf"}, variant: "Q4_0",
			gguf: "q/m-Q4_0-00001-of-00002.gguf", heavy: []string{"q/m-Q4_0-00001-of-00002.gguf", "q/m-Q4_0-00002-of-00002.gguf"}},
		{name: "pickles", names: []string{"config.json", "pytorch_model.bin"}, is: ErrUnsupported, says: "convert them to safetensors"},
		{name: "adapter", names: []string{"adapter_config.json", "adapter_model.safetensors"}, is: ErrUnsupported, says: "merge it"},
		{name: "nothing", is: ErrUnsupported, says: "no weights"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := choose(c.names, c.variant)
			if c.is != nil {
				if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || got.gguf != c.gguf || !slices.Equal(got.heavy, c.heavy) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// The environment means what it means to huggingface_hub.
func TestFromEnvironment(t *testing.T) {
	home := t.TempDir()
	for _, c := range []struct {
		name string
		env  map[string]string
		want Options
	}{
		{"nothing set", nil, Options{Endpoint: "https://huggingface.co", Cache: filepath.Join(home, ".cache/huggingface/hub")}},
		{"home", map[string]string{"HF_HOME": "/h"}, Options{Endpoint: "https://huggingface.co", Cache: "/h/hub"}},
		{"home with tilde", map[string]string{"HF_HOME": "~/h"}, Options{Endpoint: "https://huggingface.co", Cache: filepath.Join(home, "h/hub")}},
		{"cache before home", map[string]string{"HF_HOME": "/h", "HF_HUB_CACHE": "/c"}, Options{Endpoint: "https://huggingface.co", Cache: "/c"}},
		{"mirror", map[string]string{"HF_ENDPOINT": "http://mirror:1/"}, Options{Endpoint: "http://mirror:1", Cache: filepath.Join(home, ".cache/huggingface/hub")}},
		{"tokens", map[string]string{"HF_TOKEN": " a\n", "HUGGING_FACE_HUB_TOKEN": "b", "HF_HUB_CACHE": "/c"}, Options{Endpoint: "https://huggingface.co", Cache: "/c", Token: "a"}},
		{"the seed's token", map[string]string{"HUGGING_FACE_HUB_TOKEN": "b", "HF_HUB_CACHE": "/c"}, Options{Endpoint: "https://huggingface.co", Cache: "/c", Token: "b"}},
		{"offline", map[string]string{"HF_HUB_OFFLINE": "true", "HF_HUB_CACHE": "/c"}, Options{Endpoint: "https://huggingface.co", Cache: "/c", Offline: true}},
		{"not offline", map[string]string{"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": "/c"}, Options{Endpoint: "https://huggingface.co", Cache: "/c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := FromEnvironment(func(key string) string {
				if key == "HOME" {
					return home
				}
				return c.env[key]
			})
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	stored := filepath.Join(home, "token")
	if err := os.WriteFile(stored, []byte("hf_stored\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"HF_HOME": home, "HF_TOKEN_PATH": stored} {
		got, err := FromEnvironment(func(k string) string { return map[string]string{key: want}[k] })
		if err != nil || got.Token != "hf_stored" {
			t.Errorf("%s: token %q, %v", key, got.Token, err)
		}
	}
	for _, env := range []map[string]string{{"HF_ENDPOINT": "huggingface.co"}, {"HF_TOKEN": "a b"}} {
		if _, err := FromEnvironment(func(key string) string { return env[key] }); err == nil {
			t.Errorf("%v was taken", env)
		}
	}
}

// No name from the network leaves the snapshot.
func TestSafeName(t *testing.T) {
	for name, want := range map[string]bool{
		"config.json": true, "a/b.jinja": true, "": false, ".": false, "..": false, "../x": false, "/x": false,
		"a/../b": false, "a//b": false, `a\b`: false, "a\x00b": false, "a/..": false, "..x": true,
	} {
		if safeName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

// Index files are data: any bytes give file names or an error.
func FuzzShards(f *testing.F) {
	f.Add([]byte(`{"weight_map":{"a":"model-00001-of-00001.safetensors"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, list, err := ParseIndex(data)
		for _, name := range list {
			if strings.ContainsAny(name, "/\\") || name == ".." {
				t.Errorf("shard %q", name)
			}
		}
		if err == nil && len(list) == 0 {
			t.Error("no shard and no error")
		}
	})
}
