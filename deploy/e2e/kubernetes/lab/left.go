//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// left says what of a lab is still there after clear: nothing may be.
func (l *Lab) left() error {
	var found []string
	for _, n := range append(l.nodes, machine{space: control}) {
		if _, err := os.Stat("/run/netns/" + n.space); err == nil {
			found = append(found, "network namespace "+n.space)
		}
		if roots, err := groups(n.name); n.name != "" && (err != nil || len(roots) > 0) {
			found = append(found, fmt.Sprintf("control groups %v (%v)", roots, err))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, l.dir) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	if _, gone := os.Stat(l.dir); gone == nil {
		found = append(found, "folder "+l.dir)
	}
	lines, globErr := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		if line, err := os.ReadFile(file); err == nil && (bytes.Contains(line, []byte(l.tools.bin)) || bytes.Contains(line, []byte(l.dir))) &&
			filepath.Base(filepath.Dir(file)) != strconv.Itoa(os.Getpid()) {
			found = append(found, fmt.Sprintf("process %s: %q", filepath.Base(filepath.Dir(file)), bytes.ReplaceAll(line[:min(len(line), 200)], []byte{0}, []byte{' '})))
		}
	}
	slices.Sort(found)
	if len(found) > 0 {
		return errors.Join(err, globErr, fmt.Errorf("the lab has left behind: %s", strings.Join(found, "; ")))
	}
	return errors.Join(err, globErr)
}
