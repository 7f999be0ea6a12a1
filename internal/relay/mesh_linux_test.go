package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// TestMember is no test: it is the process of a member, which sends lines to an address.
func TestMember(t *testing.T) {
	address := os.Getenv("RELAY_TEST_DIALS")
	if address == "" {
		return // TestMesh runs it
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.Copy(conn, os.Stdin)
}

// free gives a port of every address that none uses just now.
func free(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// What a member sends arrives, by TCP and by UDP; nothing of it passes a cut, of the link
// or of either end, what others send does, and TCP loses nothing by it.
func TestMesh(t *testing.T) {
	port := free(t)
	m := NewMesh(port)
	defer m.Close()
	for _, member := range []string{"a", "b", "c"} {
		if err := m.Add(member); err != nil {
			t.Fatal(err)
		}
	}
	at := func(host string) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
	listener, err := net.Listen("tcp", at(m.Behind("a")))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket := func(member string) *net.UDPConn {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(m.Behind(member)))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	packets := map[string]*net.UDPConn{"a": socket("a"), "b": socket("b"), "c": socket("c")}

	lines := make(chan string, 16)
	type sender struct{ in io.WriteCloser }
	start := func(member string) sender {
		command := m.Command(member, exec.Command(os.Args[0], "-test.run", "^TestMember$"))
		command.Env = append(command.Env, "RELAY_TEST_DIALS="+at(m.Before("a")))
		in, err := command.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); _ = command.Wait() })
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for s := bufio.NewScanner(conn); s.Scan(); {
				lines <- s.Text()
			}
		}()
		t.Cleanup(func() { conn.Close() })
		return sender{in}
	}
	senders := map[string]sender{"b": start("b"), "c": start("c")}
	say := func(from, what string) {
		if _, err := fmt.Fprintln(senders[from].in, what); err != nil {
			t.Fatal(err)
		}
		if _, err := packets[from].WriteToUDPAddrPort([]byte(what), netip.MustParseAddrPort(at(m.Before("a")))); err != nil {
			t.Fatal(err)
		}
	}
	patient, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	line := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Fatalf("line %q, want %q", got, want)
			}
		case <-patient.Done():
			t.Fatalf("line %q did not come", want)
		}
	}
	packet := func(want string) {
		t.Helper()
		buffer := make([]byte, 64)
		_ = packets["a"].SetReadDeadline(time.Now().Add(time.Minute))
		n, _, err := packets["a"].ReadFromUDP(buffer)
		if err != nil || string(buffer[:n]) != want {
			t.Fatalf("packet %q, want %q: %v", buffer[:n], want, err)
		}
	}
	say("b", "at first")
	line("at first")
	packet("at first")
	for _, cut := range [][2]string{{"a", "b"}, {"b", ""}} {
		type made struct {
			mend func()
			err  error
		}
		done := make(chan made, 1)
		changed := m.changes()
		go func() {
			mend, err := m.Cut(patient, cut[0], cut[1])
			done <- made{mend, err}
		}()
		<-changed // the cut stands
		say("b", "through a cut")
		c := <-done
		if c.err != nil {
			t.Fatal(c.err)
		}
		say("c", "another's")
		line("another's")
		packet("another's")
		c.mend()
		line("through a cut")
		say("b", "mended")
		line("mended")
		packet("mended")
	}
}
