//go:build helm

package chart

import (
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// kubernetes is what is rendered for; helm alone would take the one it was built with.
const kubernetes = "1.34.0"

// helm runs helm and gives its output and what it said beside it.
func helm(t *testing.T, args ...string) (out, said string, err error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), cmp.Or(os.Getenv("HELM"), "helm"), append(args, "--kube-version", kubernetes)...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	command.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	err = command.Run()
	return stdout.String(), stderr.String(), err
}

// everything turns on what is off by default.
var everything = []string{
	"--set", "serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboards.enabled=true,autoscaling.enabled=true",
	"--set", "node.gpu.enabled=true,node.gpu.runtimeClassName=nvidia,node.preStopSeconds=3", "--set-string", "node.gpu.visibleDevices=0",
	"--set", "node.modelCache.type=shared,node.modelCache.subPath=a/b,node.tolerations[0].operator=Exists",
	"--set", "api.service.type=LoadBalancer,api.service.nodePort=30080,head.persistence.enabled=false,head.antiAffinity=preferred",
	"--set", "head.tolerations[0].operator=Exists,head.nodeSelector.a=b,commonAnnotations.a=b,serviceAccount.annotations.a=b,imagePullSecrets[0].name=x",
	"--set-json", `networkPolicy.apiFrom=[{"namespaceSelector":{}}]`, "--set-json", `networkPolicy.dnsTo=[{"namespaceSelector":{}}]`,
	"--set-json", `networkPolicy.metricsFrom=[{"namespaceSelector":{}}]`,
	"--set", "metricsAPI.enabled=true,scaleToZero.enabled=true,autoscaling.targetRequests=4",
	"--set", "tracing.endpoint=http://collector.observability:4318/v1/traces", "--set-json", `networkPolicy.tracesTo=[{"namespaceSelector":{}}]`,
}

func sets() map[string][]string {
	all := map[string][]string{
		"defaults": nil, "everything": everything,
		"pod monitor":      {"--set", "podMonitor.enabled=true"},
		"ephemeral":        {"--set", "node.modelCache.type=ephemeral,node.sharedMemory="},
		"existing claim":   {"--set", "node.modelCache.type=existing,node.modelCache.existingClaim=models"},
		"no model":         {"--set", "model.name="},
		"own secrets":      {"--set", "clusterSecret.existingSecret=a,apiKeys.existingSecret=b"},
		"no network rules": {"--set", "networkPolicy.enabled=false"},
	}
	for name, files := range exampleSets {
		var args []string
		for _, file := range files {
			args = append(args, "-f", filepath.Join("../examples", file))
		}
		if name == "plain" { // it stands beside an example's values
			args = append(args, "--set", "apiKeys.enabled=false")
		}
		all[name] = args
	}
	return all
}

type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		Template struct{ Spec pod }
		// of a StatefulSet
		PodManagementPolicy string `yaml:"podManagementPolicy"`
	}
}

type pod struct {
	Automount    *bool `yaml:"automountServiceAccountToken"`
	ServiceLinks *bool `yaml:"enableServiceLinks"`
	Security     struct {
		NonRoot bool                  `yaml:"runAsNonRoot"`
		Seccomp struct{ Type string } `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Containers []struct {
		Name     string
		Security struct {
			Escalation *bool                   `yaml:"allowPrivilegeEscalation"`
			ReadOnly   bool                    `yaml:"readOnlyRootFilesystem"`
			Caps       struct{ Drop []string } `yaml:"capabilities"`
		} `yaml:"securityContext"`
		Mounts []struct{ Name string } `yaml:"volumeMounts"`
	}
	Volumes []struct{ Name string }
}

// Each set of values lints and renders; what it renders is YAML of one namespace
// with unique names, and every pod runs without root, rights or a token.
func TestRendered(t *testing.T) {
	for name, args := range sets() {
		t.Run(name, func(t *testing.T) {
			if out, said, err := helm(t, append([]string{"lint", "--strict", "."}, args...)...); err != nil {
				t.Fatalf("lint: %v\n%s%s", err, out, said)
			}
			out, said, err := helm(t, append([]string{"template", "manta", ".", "--namespace", "llm"}, args...)...)
			if err != nil {
				t.Fatalf("template: %v\n%s", err, said)
			}
			seen := map[string]bool{}
			for decoder := yaml.NewDecoder(strings.NewReader(out)); ; {
				var o object
				if err := decoder.Decode(&o); err != nil {
					if err.Error() != "EOF" {
						t.Fatal(err)
					}
					break
				}
				if o.Kind == "" {
					continue
				}
				key := o.Kind + "/" + o.Metadata.Name
				if seen[key] || len(o.Metadata.Name) > 63 || !slices.Contains(wholeCluster, o.Kind) && o.Metadata.Namespace != namespaceOf(key) {
					t.Errorf("%s: twice, too long, or of namespace %q", key, o.Metadata.Namespace)
				}
				seen[key] = true
				if o.Kind == "StatefulSet" && o.Spec.PodManagementPolicy != "Parallel" {
					t.Errorf("%s waits for one pod after another", key)
				}
				if len(o.Spec.Template.Spec.Containers) > 0 {
					checkPod(t, key, o.Spec.Template.Spec, name == "everything" && strings.HasSuffix(key, "-head"))
				}
			}
			for _, kind := range []string{"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} {
				if name != "everything" && strings.Contains(out, "kind: "+kind+"\n") {
					t.Errorf("a %s: nothing that is on by default calls the Kubernetes API", kind)
				}
			}
			if !seen["StatefulSet/"+first(seen, "StatefulSet/", "-head")] || !seen["StatefulSet/"+first(seen, "StatefulSet/", "-node")] {
				t.Error("no heads or no nodes")
			}
		})
	}
}

// wholeCluster are the kinds without a namespace.
var wholeCluster = []string{"Namespace", "APIService", "ClusterRole", "ClusterRoleBinding"}

// namespaceOf is that of the release, but for what lets heads know the API server.
func namespaceOf(key string) string {
	if key == "RoleBinding/manta-metrics-api-llm" {
		return "kube-system"
	}
	return "llm"
}

func first(seen map[string]bool, prefix, suffix string) string {
	for key := range seen {
		if strings.HasPrefix(key, prefix) && strings.HasSuffix(key, suffix) {
			return strings.TrimPrefix(key, prefix)
		}
	}
	return ""
}

func checkPod(t *testing.T, key string, p pod, token bool) {
	t.Helper()
	no := func(b *bool) bool { return b != nil && !*b }
	if no(p.Automount) == token || !p.Security.NonRoot || p.Security.Seccomp.Type != "RuntimeDefault" {
		t.Errorf("%s has a token, may be root, or has no seccomp profile", key)
	}
	// A Service named manta would set MANTA_PORT, a flag's twin, to tcp://….
	if !no(p.ServiceLinks) {
		t.Errorf("%s has service links", key)
	}
	for _, c := range p.Containers {
		if !no(c.Security.Escalation) || !c.Security.ReadOnly || !slices.Contains(c.Security.Caps.Drop, "ALL") {
			t.Errorf("%s: container %s may gain rights or write to its root", key, c.Name)
		}
	}
}

// Values that contradict each other are refused with a sentence that says what to do.
func TestRefusedWithASentence(t *testing.T) {
	for values, want := range map[string]string{
		"node.modelCache.type=existing":                                            "give node.modelCache.existingClaim the name of your claim",
		"node.modelCache.existingClaim=x":                                          "set it to existing",
		"node.gpu.enabled=true,node.devices=cpu":                                   "set node.devices to auto",
		"node.gpu.enabled=true,model.tensorParallelSize=4":                         "raise it, or use model.pipelineParallelSize",
		"autoscaling.enabled=true,autoscaling.minReplicas=9":                       "autoscaling.minReplicas=9 is more than",
		"autoscaling.enabled=true,autoscaling.targetCPUUtilizationPercentage=null": "needs a metric",
		"autoscaling.enabled=true,node.resources.requests.cpu=null":                "node.resources.requests.cpu",
		"serviceMonitor.enabled=true,podMonitor.enabled=true":                      "choose one",
		"autoscaling.enabled=true,autoscaling.targetRequests=4":                    "set metricsAPI.enabled=true",
		"metricsAPI.enabled=true,metricsAPI.port=9090":                             "choose another",
		"head.maxUnavailable=2":                                                    "give at most 1",
		"metrics.port=8000":                                                        "must be another",
		"api.port=7946":                                                            "choose another",
		"apiKeys.existingSecret=a,apiKeys.keys[0]=a-key-of-mine":                   "put the keys into your Secret",
		"clusterSecret.existingSecret=a,clusterSecret.lines[0]=0123456789abcdef":   "put the lines into your Secret",
		"namespace.create=true":                                                    "clusterSecret.existingSecret",
		"namespace.create=true,clusterSecret.existingSecret=a":                     "apiKeys.existingSecret",
		"head.replicas=2":                                                          "head.replicas': value must be one of 1, 3, 5, 7",
		"model.gpuMemoryUtilization=7":                                             "A part: above 0, up to 1",
		"model.name=smollm2":                                                       "Short names and wheel: references need pip",
		"tracing.endpoint=http://collector:4318":                                   "A URL in full that takes OTLP over HTTP",
		"node.replica=2":                                                           "replica",
	} {
		t.Run(values, func(t *testing.T) {
			_, said, err := helm(t, "template", "manta", ".", "--set", values)
			plain := strings.ReplaceAll(said, "/", ".")
			if err == nil || !strings.Contains(plain, want) {
				t.Errorf("got %v, want %q in %s", err, want, said)
			}
		})
	}
}

// The plain manifests in examples are what the chart gives now (make manifests).
func TestManifestsAreCurrent(t *testing.T) {
	out := t.TempDir()
	if said, err := exec.CommandContext(t.Context(), "../examples/manifests.sh", out).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for _, name := range []string{"llama2-7b", "llama2-70b-tp4", "hpa"} {
		now, err := os.ReadFile(filepath.Join(out, name, "manifests.yaml"))
		if err != nil || len(now) == 0 {
			t.Fatal(name, err)
		}
		committed, err := os.ReadFile(filepath.Join("../examples", name, "manifests.yaml"))
		if err != nil || !bytes.Equal(now, committed) {
			t.Errorf("%s is not what the chart gives: make manifests (%v)", name, err)
		}
	}
}

// Drawn secrets are drawn once in a rendering: what pods are annotated with belongs
// to what the Secret holds, else each upgrade would restart all pods.
func TestNamesFollowTheRelease(t *testing.T) {
	out, said, err := helm(t, "template", "prod", ".", "--namespace", "llm")
	if err != nil {
		t.Fatal(said)
	}
	for _, name := range []string{"name: prod-manta-head\n", "name: prod-manta-node\n", "prod-manta-head.llm.svc:7946"} {
		if !strings.Contains(out, name) {
			t.Errorf("no %s", name)
		}
	}
	annotations := map[string]bool{}
	for line := range strings.Lines(out) {
		if sum, ok := strings.CutPrefix(strings.TrimSpace(line), "checksum/cluster-secret: "); ok {
			annotations[sum] = true
		}
	}
	if len(annotations) != 1 {
		t.Errorf("%d different secrets in one rendering", len(annotations))
	}
}
