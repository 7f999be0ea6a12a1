package node

import "fmt"

// Bounds of labels: Kubernetes', and few enough for a report twice a second.
const (
	maxLabels     = 32
	maxLabelKey   = 253 + 1 + 63
	maxLabelValue = 63
)

// CheckLabels refuses labels that heads would not keep.
func CheckLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("--node-labels: %d labels, at most %d", len(labels), maxLabels)
	}
	for key, value := range labels {
		if key == "" || len(key) > maxLabelKey || len(value) > maxLabelValue {
			return fmt.Errorf("--node-labels: %q=%q: a key has 1 to %d characters, a value at most %d", key, value, maxLabelKey, maxLabelValue)
		}
	}
	return nil
}
