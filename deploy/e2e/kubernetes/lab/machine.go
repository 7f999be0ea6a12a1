//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// plugins is where Debian keeps the network plugins.
const plugins = "/usr/lib/cni"

// needs are the commands of the machine that a lab uses, and the Debian packages
// that bring them.
var needs = []struct{ command, pkg string }{
	{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"}, {"ip", "iproute2"}, {"iptables", "iptables"},
	{"nsenter", "util-linux"}, {"mount", "mount"}, {"nice", "coreutils"}, {plugins + "/bridge", "containernetworking-plugins"},
}

// Missing says why this machine can't run a lab; empty: it can.
func Missing() string {
	if os.Geteuid() != 0 {
		return "it needs root, for namespaces and containers"
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		return "it was made for control groups of version 1, which this machine has not"
	}
	var missing []string
	for _, need := range needs {
		if _, err := exec.LookPath(need.command); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%s)", need.command, need.pkg))
		}
	}
	if missing != nil {
		return "these commands are not there: " + strings.Join(missing, ", ")
	}
	return ""
}

// sysctls are set by kubelets for the whole machine.
var sysctls = []string{"kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
	"vm/overcommit_memory", "vm/panic_on_oom"}

// remember reads the machine's settings.
func remember() (settings string, err error) {
	var all strings.Builder
	for _, name := range sysctls {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "%s %s\n", name, strings.TrimSpace(string(value)))
	}
	return all.String(), nil
}

// restore writes them back, where they differ.
func restore(settings string) error {
	for line := range strings.Lines(settings) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		path := "/proc/sys/" + name
		if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("restoring %s: %w", name, err)
		}
	}
	return nil
}
