package chart

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"manta/internal/telemetry"
)

// exported are the names that a head's /metrics has, of series that took part in
// anything at all.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	m := telemetry.New()
	m.Known("m")
	m.Output("m", 1, true, time.Millisecond)
	m.Output("m", 1, false, time.Millisecond)
	m.Fault("m", "frame")
	m.Ended("m", telemetry.Request{Status: "success", Finishes: []string{"stop"}, Prompt: 1, Outputs: []int{2}})
	m.SetEngine("m", "r", 1, telemetry.Engine{})
	recorder := httptest.NewRecorder()
	m.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	names := map[string]bool{"up": true} // Prometheus' own
	for line := range strings.Lines(recorder.Body.String()) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); name != "" && !strings.HasPrefix(name, "#") {
			name, _, _ = strings.Cut(name, "{")
			names[name] = true
		}
	}
	return names
}

// foreign begin the names that others export: dcgm-exporter, cAdvisor and
// kube-state-metrics.
var foreign = []string{"DCGM_FI_", "container_", "kube_pod_"}

var (
	quoted  = regexp.MustCompile(`"[^"]*"`)
	labels  = regexp.MustCompile(`\{[^}]*\}`)
	byLabel = regexp.MustCompile(`\b(by|on|without|ignoring)\s*\([^)]*\)`)
	ranges  = regexp.MustCompile(`\[[^\]]*\]`)
	word    = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*(\s*\()?`)
)

var operators = map[string]bool{"and": true, "or": true, "unless": true, "bool": true}

// named gives the metrics that an expression reads.
func named(expression string) []string {
	for _, cut := range []*regexp.Regexp{quoted, labels, byLabel, ranges} {
		expression = cut.ReplaceAllString(expression, " ")
	}
	var names []string
	for _, found := range word.FindAllString(expression, -1) {
		if !strings.HasSuffix(found, "(") && !operators[strings.TrimSpace(found)] {
			names = append(names, found)
		}
	}
	return names
}

func TestNamed(t *testing.T) {
	got := strings.Join(named(`sum by (a, le) (rate(x:y_total{b="c"}[5m])) / on (d) z > 0 unless bool w`), " ")
	if got != "x:y_total z w" {
		t.Errorf("got %s", got)
	}
}

func checkNames(t *testing.T, where, expression string, known map[string]bool) {
	t.Helper()
	names := named(expression)
	if len(names) == 0 {
		t.Errorf("%s reads no metric: %s", where, expression)
	}
	for _, name := range names {
		ok := known[name]
		for _, prefix := range foreign {
			ok = ok || strings.HasPrefix(name, prefix)
		}
		if !ok {
			t.Errorf("%s reads %s, which nothing exports", where, name)
		}
	}
}

type rules struct {
	Groups []struct {
		Rules []struct {
			Record, Alert, Expr string
			Annotations         map[string]string
		}
	}
}

func readRules(t *testing.T) rules {
	t.Helper()
	encoded, err := json.Marshal(readYAML(t, "../monitoring/rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var r rules
	if err := json.Unmarshal(encoded, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Rules read what the program exports or an earlier rule records, and each alert
// is tested (by promtool: make rules-check) and says what to do.
func TestRulesNameOurMetrics(t *testing.T) {
	known := exported(t)
	tests, err := os.ReadFile("../monitoring/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range readRules(t).Groups {
		for _, rule := range group.Rules {
			checkNames(t, rule.Record+rule.Alert, rule.Expr, known)
			if rule.Record != "" {
				known[rule.Record] = true
				continue
			}
			if !strings.Contains(string(tests), "alertname: "+rule.Alert+"\n") {
				t.Errorf("%s has no test", rule.Alert)
			}
			if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
				t.Errorf("%s does not say what is wrong and what to do", rule.Alert)
			}
		}
	}
}

// Dashboards parse, have unique panels, and read what somebody exports.
func TestDashboardsNameOurMetrics(t *testing.T) {
	known := exported(t)
	files, err := filepath.Glob("../monitoring/dashboards/*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("dashboards: %v, %v", files, err)
	}
	seen := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			UID    string
			Title  string
			Panels []struct {
				ID      int
				Title   string
				Type    string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(data, &board); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if other, taken := seen[board.UID]; taken || board.UID == "" {
			t.Errorf("%s has the uid %q of %s", file, board.UID, other)
		}
		seen[board.UID] = file
		ids := map[int]bool{}
		for _, panel := range board.Panels {
			if ids[panel.ID] {
				t.Errorf("%s: two panels of id %d", file, panel.ID)
			}
			ids[panel.ID] = true
			if panel.Type != "row" && len(panel.Targets) == 0 {
				t.Errorf("%s: %s reads nothing", file, panel.Title)
			}
			for _, target := range panel.Targets {
				checkNames(t, filepath.Base(file)+": "+panel.Title, target.Expr, known)
			}
		}
	}
}
