//go:build kubernetes && linux

package kubernetes

import (
	"testing"
)

// Whatever Kubernetes does to the pods, no stream fails, and each gives the tokens
// of the undisturbed run.
func TestNoStreamIsDropped(t *testing.T) {
	t.Cleanup(func() { report(t, namespace) })
	c := install(t)
	l := startLoad(t)
	defer l.end()
	_ = c
	l.through("nothing", func(*testing.T) {})
}
