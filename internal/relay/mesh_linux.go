package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// A Mesh is the network among the members of a cluster under test, whose links can be
// cut without any privilege. A member listens on one loopback address and tells others
// another, where relays stand for it, with the same ports. Who sends is known of a
// packet by its source, of a connection by the process that holds its other end. It
// needs Linux: /proc, and all of 127.0.0.0/8. It is safe for concurrent use.
type Mesh struct {
	subnet string
	ports  []int // TCP; the first is UDP too
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex        // guards what follows
	members map[string]int    // by name: which addresses
	cut     map[[2]string]int // by two members, in order, or one and ""
	stopped map[string]int    // what was stopped that a member sent or was to get
	changed chan struct{}     // closed and renewed when something of it changes
}

// NewMesh makes a network of no members, each of which will listen on these TCP ports
// and on the first for UDP.
func NewMesh(ports ...int) *Mesh {
	m := &Mesh{
		subnet: fmt.Sprintf("127.%d.%d.", 64+os.Getpid()/256%128, os.Getpid()%256), ports: ports,
		members: map[string]int{}, cut: map[[2]string]int{}, stopped: map[string]int{}, changed: make(chan struct{}),
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m
}

// Close ends every relay and waits.
func (m *Mesh) Close() {
	m.stop()
	m.wg.Wait()
}

const (
	behindFirst = 10  // last octets of what members listen on
	beforeFirst = 110 // and of what they tell others
	maxMembers  = 100
)

func (m *Mesh) address(member string, first int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.subnet + strconv.Itoa(first+m.members[member])
}

// Behind is what a member listens on, Before what it tells others.
func (m *Mesh) Behind(member string) string { return m.address(member, behindFirst) }
func (m *Mesh) Before(member string) string { return m.address(member, beforeFirst) }

// Add makes a member's addresses.
func (m *Mesh) Add(member string) error {
	m.mu.Lock()
	if len(m.members) == maxMembers {
		m.mu.Unlock()
		return errors.New("relay: too many members")
	}
	m.members[member] = len(m.members)
	m.mu.Unlock()
	before, behind := m.Before(member), m.Behind(member)
	for _, port := range m.ports {
		at := strconv.Itoa(port)
		listener, err := net.Listen("tcp", net.JoinHostPort(before, at))
		if err != nil {
			return err
		}
		context.AfterFunc(m.ctx, func() { listener.Close() })
		m.wg.Go(func() { m.accept(member, listener, net.JoinHostPort(behind, at)) })
	}
	packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(net.JoinHostPort(before, strconv.Itoa(m.ports[0])))))
	if err != nil {
		return err
	}
	context.AfterFunc(m.ctx, func() { packets.Close() })
	m.wg.Go(func() {
		m.packets(member, packets, netip.MustParseAddrPort(net.JoinHostPort(behind, strconv.Itoa(m.ports[0]))))
	})
	return nil
}

// Cut stops all between two members, or with b "" all of one, and returns when
// something was stopped: what it gives mends it.
func (m *Mesh) Cut(ctx context.Context, a, b string) (mend func(), err error) {
	pair := between(a, b)
	m.mu.Lock()
	before := m.stopped[a]
	m.cut[pair]++
	m.tell()
	m.mu.Unlock()
	mend = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.cut[pair]--
		m.tell()
	}
	for {
		m.mu.Lock()
		now, changed := m.stopped[a], m.changed
		m.mu.Unlock()
		if now > before {
			return mend, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			mend()
			return nil, fmt.Errorf("relay: nothing passed that a cut could stop: %w", ctx.Err())
		}
	}
}

func between(a, b string) [2]string {
	if b != "" && b < a {
		a, b = b, a
	}
	return [2]string{a, b}
}

// tell wakes who waits. The caller holds mu.
func (m *Mesh) tell() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// changes gives a channel that is closed at the next change.
func (m *Mesh) changes() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// free reports whether something may pass, and when to ask again.
func (m *Mesh) free(from, to string) (bool, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if from == to || m.cut[between(from, to)] == 0 && m.cut[between(from, "")] == 0 && m.cut[between(to, "")] == 0 {
		return true, nil
	}
	m.stopped[from]++
	m.stopped[to]++
	m.tell()
	return false, m.changed
}

// pass waits until something may pass; false: the mesh ends.
func (m *Mesh) pass(from, to string) bool {
	for {
		free, changed := m.free(from, to)
		if free {
			return m.ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-m.ctx.Done():
			return false
		}
	}
}

// packets forwards datagrams, or drops them.
func (m *Mesh) packets(to string, conn *net.UDPConn, behind netip.AddrPort) {
	buffer := make([]byte, 64<<10)
	for {
		n, source, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if m.ctx.Err() != nil {
				return
			}
			continue // an earlier one met a member that is not there
		}
		if free, _ := m.free(m.at(source.Addr()), to); free {
			_, _ = conn.WriteToUDPAddrPort(buffer[:n], behind) // it may be dropped, as any
		}
	}
}

// at is the member that listens on an address; "": none.
func (m *Mesh) at(address netip.Addr) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for member, i := range m.members {
		if address.Unmap().String() == m.subnet+strconv.Itoa(behindFirst+i) {
			return member
		}
	}
	return ""
}

func (m *Mesh) accept(to string, listener net.Listener, behind string) {
	for {
		near, err := listener.Accept()
		if err != nil {
			return
		}
		m.wg.Go(func() {
			defer near.Close()
			from, err := m.holder(near)
			if err != nil || !m.pass(from, to) {
				return
			}
			forward(m.ctx, near, behind, func() bool { return m.pass(from, to) }, new(atomic.Int64), new(atomic.Int64))
		})
	}
}

// memberVariable tells whose process one is; those that it starts inherit it.
const memberVariable = "RELAY_MEMBER"

// Command makes a process a member's.
func (m *Mesh) Command(member string, command *exec.Cmd) *exec.Cmd {
	if command.Env == nil {
		command.Env = os.Environ()
	}
	command.Env = append(command.Env, memberVariable+"="+m.subnet+member)
	return command
}

// holder is the member whose process holds the other end of a connection; "": none's.
func (m *Mesh) holder(near net.Conn) (string, error) {
	inode, err := inodeOf(near.RemoteAddr().(*net.TCPAddr).AddrPort(), near.LocalAddr().(*net.TCPAddr).AddrPort())
	if err != nil {
		return "", err
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return "", err
	}
	for _, process := range processes {
		environment, err := os.ReadFile("/proc/" + process.Name() + "/environ")
		if err != nil {
			continue // no process, or another user's
		}
		for variable := range strings.SplitSeq(string(environment), "\x00") {
			if member, ok := strings.CutPrefix(variable, memberVariable+"="+m.subnet); ok && holds(process.Name(), inode) {
				return member, nil
			}
		}
	}
	return "", nil
}

func holds(process, inode string) bool {
	dir := "/proc/" + process + "/fd/"
	files, _ := os.ReadDir(dir) // it may have ended
	for _, file := range files {
		if to, err := os.Readlink(dir + file.Name()); err == nil && to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

// inodeOf finds a connection of this machine in the kernel's table.
func inodeOf(local, remote netip.AddrPort) (string, error) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 9 && f[1] == inTable(local) && f[2] == inTable(remote) {
			return f[9], nil
		}
	}
	return "", fmt.Errorf("relay: %v is gone", local)
}

// inTable is how the kernel writes an address: its bytes as one number of this machine's order.
func inTable(address netip.AddrPort) string {
	b := address.Addr().Unmap().As4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[3], b[2], b[1], b[0], address.Port())
}
