//go:build e2e && linux

package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"manta/internal/processtest"
)

// terminal is the side of a pseudo-terminal where the person sits.
type terminal struct {
	*os.File
	screen processtest.Text
	read   int // bytes of the screen that until has passed
}

// newTerminal gives both sides; a goroutine reads the screen until it closes.
func newTerminal(t *testing.T) (*terminal, *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 200}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	person := &terminal{File: master}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It ends with an error when the last of the other side closes.
		_, _ = io.Copy(&person.screen, master)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the screen:\n%s", &person.screen)
		}
		slave.Close()
		<-done
		master.Close()
	})
	return person, slave
}

// until waits for a text that was not there at the last until, and gives what
// came before it.
func (p *terminal) until(t *testing.T, want string) string {
	t.Helper()
	var before string
	processtest.Eventually(t, func() error {
		fresh := p.screen.String()[p.read:]
		at := strings.Index(fresh, want)
		if at < 0 {
			return fmt.Errorf("no %q in %q", want, fresh)
		}
		before = fresh[:at]
		p.read += at + len(want)
		return nil
	})
	return before
}

func (p *terminal) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(p, keys); err != nil {
		t.Fatal(err)
	}
}

const (
	enter = "\r"
	ctrlC = "\x03"
	ctrlD = "\x04"
)

// A chat at a terminal streams. Ctrl-C stops one answer, on the server too, and
// not the program; at the prompt it says how to end; Ctrl-D ends.
func TestChatAtTerminal(t *testing.T) {
	s := start(t, "", *realModel, paced...) // whatever the machine, no answer is over before it is stopped
	goroutines := s.metric(t, "go_goroutines")
	person, slave := newTerminal(t)
	cmd := manta("chat", "--url", s.url, "--temperature", "0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	person.until(t, ">>> ")
	person.types(t, "Write a very long story about the sea."+enter)
	person.until(t, "sea.")
	processtest.Eventually(t, func() error {
		if fresh := strings.TrimSpace(person.screen.String()[person.read:]); len(fresh) < 16 {
			return fmt.Errorf("no text yet: %q", fresh)
		}
		return nil
	})
	if running := s.metric(t, "vllm:num_requests_running"); running != 1 {
		t.Errorf("%v requests run while the answer streams", running)
	}
	person.types(t, ctrlC)
	person.until(t, "[stopped]")
	person.until(t, ">>> ")
	s.idle(t, goroutines+8) // the chat keeps its connection

	person.types(t, "/set max_tokens 6"+enter)
	person.until(t, ">>> ")
	person.types(t, "Say hello."+enter)
	person.until(t, "hello.")
	if answer := strings.TrimSpace(person.until(t, ">>> ")); answer == "" || strings.Contains(answer, "error") {
		t.Errorf("after the stopped answer the next is %q", answer)
	}
	person.types(t, ctrlC)
	person.until(t, "Ctrl-D or /bye ends the chat.")
	person.until(t, ">>> ")
	person.types(t, ctrlD)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the chat ends with %v", err)
		}
	case <-time.After(processtest.Patience):
		t.Fatal("Ctrl-D does not end the chat")
	}
}
