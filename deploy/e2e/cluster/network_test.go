//go:build e2e && unix

package cluster

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A network has links between members that can be cut.
type network interface {
	add(member string)
	address(member string) string // that others reach a member at
	host(member string) string    // that it listens on
	// command runs a member's program.
	command(member, binary string, args ...string) *exec.Cmd
	// isolate cuts a member off from everyone, cut breaks the link between two, both
	// ways; both prove it.
	isolate(member string) (heal func())
	cut(a, b string) (heal func())
}

// Ports of every member on its own address: none that a program of this machine is
// likely to have on all addresses.
const gossipPort, raftPort, linkPort, apiPort = 17946, 17947, 17948, 18000

var relayed = flag.Bool("relays", false, "cut links by relays also where namespaces can be made")

// newNetwork gives one of namespaces where this process may make them, else one of
// relays; nil: neither can be had here.
func newNetwork(t *testing.T) network {
	t.Helper()
	switch {
	case !*relayed && haveNamespaces():
		return newNamespaces(t)
	case runtime.GOOS == "linux":
		return newRelays(t)
	}
	t.Log("this system has neither network namespaces nor enough loopback addresses: links are not cut")
	return nil
}

// namespaces gives each member a network namespace of its own on one bridge. It needs
// root and iproute2.
type namespaces struct {
	t      *testing.T
	prefix string // of the names of interfaces and namespaces
	subnet string // first three octets
	index  map[string]int
}

// haveNamespaces reports whether this process may make all that namespaces take:
// containers and kernels allow some of it without the rest.
func haveNamespaces() bool {
	if os.Geteuid() != 0 {
		return false
	}
	name := fmt.Sprintf("mt%d", os.Getpid())
	ip := func(args ...string) bool { return exec.Command("ip", args...).Run() == nil }
	defer ip("netns", "del", name)
	defer ip("link", "del", name+"b")
	return ip("netns", "add", name) && ip("link", "add", name+"b", "type", "bridge") &&
		ip("link", "add", name+"v", "type", "veth", "peer", "name", "eth0", "netns", name)
}

// newNamespaces makes the bridge; the tests themselves are at its first address.
func newNamespaces(t *testing.T) *namespaces {
	t.Helper()
	pid := os.Getpid()
	n := &namespaces{
		t: t, prefix: fmt.Sprintf("m%x-", pid%0x1000000), index: map[string]int{},
		subnet: fmt.Sprintf("10.%d.%d", 64+pid/256%128, pid%256),
	}
	n.ip("link", "add", n.prefix+"br", "type", "bridge")
	t.Cleanup(func() { n.ip("link", "del", n.prefix+"br") })
	n.ip("addr", "add", n.subnet+".1/24", "dev", n.prefix+"br")
	n.ip("link", "set", n.prefix+"br", "up")
	return n
}

func (n *namespaces) try(args ...string) (string, error) {
	out, err := exec.Command("ip", args...).CombinedOutput()
	return string(out), err
}

func (n *namespaces) ip(args ...string) {
	n.t.Helper()
	if out, err := n.try(args...); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// add makes a member's namespace and gives its address.
func (n *namespaces) add(member string) {
	n.t.Helper()
	i := len(n.index)
	n.index[member] = i
	space, outer := n.space(member), n.outer(member)
	n.ip("netns", "add", space)
	n.t.Cleanup(func() { n.ip("netns", "del", space) })
	n.ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
	// The namespace takes it along too, but only some time after its name is gone.
	n.t.Cleanup(func() { n.ip("link", "del", outer) })
	n.ip("link", "set", outer, "master", n.prefix+"br", "up")
	n.ip("-n", space, "addr", "add", n.address(member)+"/24", "dev", "eth0")
	n.ip("-n", space, "link", "set", "lo", "up")
	n.ip("-n", space, "link", "set", "eth0", "up")
}

func (n *namespaces) space(member string) string { return fmt.Sprint(n.prefix, n.index[member]) }
func (n *namespaces) outer(member string) string { return fmt.Sprint(n.prefix, "v", n.index[member]) }

func (n *namespaces) address(member string) string {
	return fmt.Sprintf("%s.%d", n.subnet, 10+n.index[member])
}

func (n *namespaces) host(member string) string { return n.address(member) }

func (n *namespaces) isolate(member string) (heal func()) {
	n.t.Helper()
	n.ip("link", "set", n.outer(member), "down")
	if out, err := n.try("-o", "link", "show", "dev", n.outer(member)); err != nil || !strings.Contains(out, "state DOWN") {
		n.t.Fatalf("%s is not cut off: %v: %s", member, err, out)
	}
	return func() { n.ip("link", "set", n.outer(member), "up") }
}

func (n *namespaces) cut(a, b string) (heal func()) {
	n.t.Helper()
	pairs := [][2]string{{a, b}, {b, a}}
	for _, p := range pairs {
		n.ip("-n", n.space(p[0]), "route", "add", "blackhole", n.address(p[1])+"/32")
	}
	for _, p := range pairs {
		if out, err := n.try("-n", n.space(p[0]), "route", "get", n.address(p[1])); err == nil {
			n.t.Fatalf("%s still reaches %s: %s", p[0], p[1], out)
		}
	}
	return func() {
		for _, p := range pairs {
			n.ip("-n", n.space(p[0]), "route", "del", "blackhole", n.address(p[1])+"/32")
		}
	}
}

func (n *namespaces) command(member, binary string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", n.space(member), binary}, args...)...)
}

// stopped waits until the kernel says that a process is stopped.
func stopped(pid int) error {
	limit := time.After(patience)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		if strings.HasPrefix(after, "T") {
			return nil
		}
		select {
		case <-ticker.C:
		case <-limit:
			return fmt.Errorf("process %d runs: %s", pid, stat)
		}
	}
}
