//go:build helm

package chart

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cluster answers what helm's lookup asks of a Kubernetes API: which kinds there
// are, and Secrets by name.
func cluster(t *testing.T, secrets map[string]map[string]string) (kubeconfig string) {
	t.Helper()
	reply := func(w http.ResponseWriter, value any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(value); err != nil {
			t.Error(err)
		}
	}
	type object = map[string]any
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, object{"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
	})
	mux.HandleFunc("GET /api", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, object{"kind": "APIVersions", "versions": []string{"v1"}})
	})
	mux.HandleFunc("GET /apis", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []object{}})
	})
	mux.HandleFunc("GET /api/v1", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, object{"kind": "APIResourceList", "groupVersion": "v1", "resources": []object{
			{"name": "secrets", "singularName": "secret", "kind": "Secret", "namespaced": true, "verbs": []string{"get"}},
		}})
	})
	mux.HandleFunc("GET /api/v1/namespaces/llm/secrets/{name}", func(w http.ResponseWriter, r *http.Request) {
		data, ok := secrets[r.PathValue("name")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			reply(w, object{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})
			return
		}
		reply(w, object{"apiVersion": "v1", "kind": "Secret", "metadata": object{"name": r.PathValue("name"), "namespace": "llm"}, "data": data})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\n"+
		"contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\ncurrent-context: c\n", server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// What the cluster has stays at an upgrade; only what it lacks is drawn. Lines that
// were added by hand to rotate the secret stay too.
func TestSecretsOutliveUpgrades(t *testing.T) {
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	lines := encode("the-first-line-of-the-cluster\nthe-line-that-was-added-below\n")
	has := map[string]map[string]string{"manta-cluster": {"secrets": lines}, "manta-api-keys": {"keys": encode("a-key\n")}}
	for name, test := range map[string]struct {
		has       map[string]map[string]string
		kept, not []string
		args      []string
	}{
		"an upgrade":      {has: has, kept: []string{"secrets: " + lines, "keys: " + encode("a-key\n")}},
		"an installation": {not: []string{"secrets: " + lines, "keys: " + encode("a-key\n")}},
		"keys are lost":   {has: map[string]map[string]string{"manta-cluster": {"secrets": lines}}, kept: []string{"secrets: " + lines}, not: []string{"keys: " + encode("a-key\n")}},
		"lines are given": {has: has, args: []string{"--set", "clusterSecret.lines[0]=0123456789abcdef"}, kept: []string{"secrets: " + encode("0123456789abcdef\n")}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"template", "manta", ".", "--namespace", "llm", "--dry-run=server", "--kubeconfig", cluster(t, test.has)}, test.args...)
			out, said, err := helm(t, args...)
			if err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			for _, line := range test.kept {
				if !strings.Contains(out, line+"\n") {
					t.Errorf("not kept: %s", line)
				}
			}
			for _, line := range test.not {
				if strings.Contains(out, line+"\n") {
					t.Errorf("where from? %s", line)
				}
			}
			if !strings.Contains(out, "secrets: ") || !strings.Contains(out, "keys: ") {
				t.Error("a Secret is missing")
			}
		})
	}
}
