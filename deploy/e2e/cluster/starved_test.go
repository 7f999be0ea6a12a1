//go:build e2e && unix

package cluster

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// hogs are so many busy loops for each processor.
const hogs = 6

// Where there are far too few processors for all, everything is slow, and nobody
// is taken for dead: the group goes on in its epoch, and no node is lost.
func TestStarved(t *testing.T) {
	b := newBench(t)
	b.deploy()
	undisturbed := b.all(func() {})
	epoch := b.epoch()
	var loops []*exec.Cmd
	defer func() {
		for _, loop := range loops {
			_ = loop.Process.Kill()
			_ = loop.Wait() // it was killed
		}
	}()
	for range hogs * runtime.GOMAXPROCS(0) { // processors that a container may use, not all there are
		loop := exec.Command("sh", "-c", "while :; do :; done")
		if err := loop.Start(); err != nil {
			t.Fatal(err)
		}
		loops = append(loops, loop)
	}
	for range *rounds {
		for i, s := range b.all(func() {}) {
			if s.err != nil || s.text != undisturbed[i].text {
				t.Errorf("stream %d: %v: %q, undisturbed %q", i, s.err, s.text, undisturbed[i].text)
			}
			t.Logf("stream %d: longest pause %v", i, s.pause)
		}
	}
	if after := b.epoch(); after != epoch {
		t.Errorf("epoch %d became %d", epoch, after)
	}
	for _, name := range b.Names() {
		for line := range strings.Lines(b.Log(name).String()) {
			if strings.Contains(line, `msg="node lost"`) || strings.Contains(line, `msg="node frozen"`) {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}
