package processtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Cluster is heads and nodes as processes, all on loopback unless a test says where.
// Each can be started again on what it left on disk.
type Cluster struct {
	Dir    string   // a folder a member, named as it is
	Secret string   // a file
	Gossip []string // of the heads
	API    []string // of the heads

	// What a test may set before it starts a member.
	Command func(name string, args ...string) *exec.Cmd // nil: Binary
	Host    func(name string) string                    // the address of a member; nil: 127.0.0.1
	Join    string                                      // "": Gossip

	t       testing.TB
	flags   map[string][]string
	members map[string]*Process
	logs    map[string]*Text // over all starts of a member
}

// Addresses gives loopback addresses that were free a moment ago and that no system
// hands out by itself: who is started again must find its own free.
func Addresses(n int) (addresses []string, err error) {
	low, high := unassigned()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", low+rand.IntN(high-low)))
		if err != nil {
			continue
		}
		defer l.Close()
		if addresses = append(addresses, l.Addr().String()); len(addresses) == n {
			return addresses, nil
		}
	}
	return nil, errors.New("no free ports")
}

// unassigned gives ports, from low to below high, that this system gives to nobody who
// asks for any: below its range where there is room, else above; a guess where the
// range is not known.
func unassigned() (low, high int) {
	const most, enough, first = 1 << 16, 1000, 10000
	low, high = 20000, 32000
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return low, high
	}
	var from, to int
	if _, err := fmt.Sscan(string(text), &from, &to); err != nil {
		return low, high
	}
	switch {
	case from >= low+enough:
		return low, from
	case from >= first+enough:
		return first, from
	case most-to > enough:
		return to + 1, most
	}
	return low, high
}

// NewCluster prepares a cluster of so many heads, at free addresses, and starts none.
// What was started ends with the test; if that fails, their last lines are shown.
func NewCluster(t testing.TB, heads int) *Cluster {
	t.Helper()
	free, err := Addresses(2 * heads)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{
		Dir: t.TempDir(), Gossip: free[:heads], API: free[heads:], t: t,
		flags: map[string][]string{}, members: map[string]*Process{}, logs: map[string]*Text{},
	}
	c.Secret = filepath.Join(c.Dir, "secret")
	if err := os.WriteFile(c.Secret, []byte("the secret of a cluster of tests\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for name, m := range c.members {
			m.Kill()
			if t.Failed() {
				t.Logf("%s:\n%s", name, c.logs[name].Last(40))
			}
		}
	})
	return c
}

// HeadName is the stable name of a head.
func HeadName(i int) string { return fmt.Sprint("head", i) }

// Head starts a head at its addresses.
func (c *Cluster) Head(i int, flags ...string) {
	c.t.Helper()
	_, gossip, _ := net.SplitHostPort(c.Gossip[i])
	_, port, _ := net.SplitHostPort(c.API[i])
	name := HeadName(i)
	c.add(name, append([]string{
		"head", "--gossip-port", gossip, "--raft-port", "0", "--host", c.host(name), "--port", port, "--metrics-port", "0",
		"--api-key", "none", "--bootstrap-expect", fmt.Sprint(len(c.API)),
	}, flags...))
}

// Node starts a node.
func (c *Cluster) Node(name string, flags ...string) {
	c.t.Helper()
	c.add(name, append([]string{"node", "--gossip-port", "0"}, flags...))
}

func (c *Cluster) host(name string) string {
	if c.Host != nil {
		return c.Host(name)
	}
	return "127.0.0.1"
}

func (c *Cluster) add(name string, flags []string) {
	c.t.Helper()
	join := c.Join
	if join == "" {
		join = strings.Join(c.Gossip, ",")
	}
	c.flags[name] = append(flags, "--name", name, "--data-dir", c.Data(name), "--secret-file", c.Secret,
		"--bind", c.host(name), "--link-port", "0", "--join", join)
	c.Start(name)
}

// Start starts a member again, with the flags that it had.
func (c *Cluster) Start(name string) {
	c.t.Helper()
	command := c.Command
	if command == nil {
		binary, err := Binary()
		if err != nil {
			c.t.Fatal(err)
		}
		command = func(_ string, args ...string) *exec.Cmd { return Command(binary, args...) }
	}
	if c.logs[name] == nil {
		c.logs[name] = &Text{}
	}
	p, err := Start(command(name, c.flags[name]...), c.logs[name], c.logs[name])
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	c.members[name] = p
}

// Kill ends members at once; what they held is free when it returns.
func (c *Cluster) Kill(names ...string) {
	for _, name := range names {
		_ = c.members[name].Send(os.Kill) // it may have ended by itself
	}
	for _, name := range names {
		<-c.members[name].Ended
	}
}

// Member is the newest process of a name, or nil.
func (c *Cluster) Member(name string) *Process { return c.members[name] }

// Names are those of all members that were ever started.
func (c *Cluster) Names() (names []string) {
	for name := range c.members {
		names = append(names, name)
	}
	return names
}

// Log is all that a member has written.
func (c *Cluster) Log(name string) *Text { return c.logs[name] }

// Data is a member's data directory.
func (c *Cluster) Data(name string) string { return filepath.Join(c.Dir, name) }
