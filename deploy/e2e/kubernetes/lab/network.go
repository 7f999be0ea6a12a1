//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// connect makes a bridge in the control plane's namespace, on which each node has a
// leg and a route to the others' pods.
func (l *Lab) connect(ctx context.Context) error {
	// The first `ip netns add` mounts /run/netns, for disconnect to undo.
	if _, err := os.Stat("/run/netns"); err != nil {
		if err := os.WriteFile(l.at("netns-made"), nil, 0o600); err != nil {
			return err
		}
	}
	commands := []string{
		"ip netns add " + control,
		in(control, "link set lo up"),
		in(control, "link add br0 type bridge"),
		in(control, "addr add "+controlIP+"/24 dev br0"),
		in(control, "link set br0 up"),
		in(control, "route add default dev br0"),
		inside(control, "sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=0"),
	}
	for _, n := range l.nodes {
		commands = append(commands,
			"ip netns add "+n.space,
			in(control, fmt.Sprintf("link add %s type veth peer name e0 netns %s", n.name, n.space)),
			in(control, "link set "+n.name+" master br0 up"),
			in(n.space, "link set lo up"),
			in(n.space, "addr add "+n.ip+"/24 dev e0"),
			in(n.space, "link set e0 up"),
			in(n.space, "route add default via "+controlIP),
			inside(n.space, "sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1"),
			in(control, "route add "+n.pods+" via "+n.ip),
		)
	}
	for _, n := range l.nodes {
		for _, other := range l.nodes {
			if n != other {
				commands = append(commands, in(n.space, "route add "+other.pods+" via "+other.ip))
			}
		}
	}
	for _, line := range commands {
		words := strings.Fields(line)
		if said, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, said)
		}
	}
	return nil
}

func in(space, command string) string { return "ip -n " + space + " " + command }

// inside runs a command in a network namespace. `ip netns exec` would mount /sys
// again, without the control groups.
func inside(space, command string) string { return "nsenter --net=/run/netns/" + space + " " + command }

// disconnect removes the namespaces, and with them all that is in them.
func (l *Lab) disconnect(ctx context.Context) error {
	var errs []error
	spaces := []string{control}
	for _, n := range l.nodes {
		spaces = append(spaces, n.space)
	}
	for _, space := range spaces {
		if _, err := os.Stat("/run/netns/" + space); err != nil {
			continue
		}
		if said, err := exec.CommandContext(ctx, "ip", "netns", "del", space).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("ip netns del %s: %w: %s", space, err, said))
		}
	}
	if _, err := os.Stat(l.at("netns-made")); err == nil {
		if left, err := os.ReadDir("/run/netns"); err == nil && len(left) == 0 {
			errs = append(errs, syscall.Unmount("/run/netns", 0), os.Remove("/run/netns"))
		}
	}
	return errors.Join(errs...)
}

// Partition cuts a node off from all others, or heals that.
func (l *Lab) Partition(ctx context.Context, node string, cut bool) error {
	state := "up"
	if cut {
		state = "down"
	}
	said, err := exec.CommandContext(ctx, "ip", "-n", control, "link", "set", node, state).CombinedOutput()
	if err != nil {
		return fmt.Errorf("link of %s %s: %w: %s", node, state, err, said)
	}
	return nil
}

// groups is where each node's control groups are, in every hierarchy.
func groups(node string) ([]string, error) { return filepath.Glob("/sys/fs/cgroup/*/manta-" + node) }

// removeGroups removes the control groups of the nodes' pods.
func (l *Lab) removeGroups() error {
	for _, n := range l.nodes {
		roots, err := groups(n.name)
		if err != nil {
			return err
		}
		for _, root := range roots {
			var dirs []string
			err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil {
				return err
			}
			for i := len(dirs) - 1; i >= 0; i-- { // the inner ones first
				if err := syscall.Rmdir(dirs[i]); err != nil {
					return fmt.Errorf("%s: %w", dirs[i], err)
				}
			}
		}
	}
	return nil
}
