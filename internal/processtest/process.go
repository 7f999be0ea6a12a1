// Package processtest starts Manta's processes for tests, hears what they say, ends
// them, and shows their last words when a test fails. A test owns what it starts; the
// program itself never uses this.
package processtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Patience bounds every wait of a test: the machine may be busy with other things.
const Patience = 4 * time.Minute

// Root is the tree's folder: that of go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return "", errors.Join(errors.New("no go.mod above the working directory"), err)
}

// Binary is the program under test: MANTA_BINARY, or what `make build` has built.
func Binary() (string, error) {
	if name := os.Getenv("MANTA_BINARY"); name != "" {
		return filepath.Abs(name)
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	built := filepath.Join(root, "bin", "manta")
	if _, err := os.Stat(built); err != nil {
		return "", fmt.Errorf("%w: make build first", err)
	}
	return built, nil
}

// Command is a command of a program that nothing in the environment changes.
func Command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		switch {
		case strings.HasPrefix(name, "MANTA_"), name == "MODEL_NAME", name == "TENSOR_PARALLEL_SIZE", name == "GPU_MEMORY_UTILIZATION":
		default:
			cmd.Env = append(cmd.Env, pair)
		}
	}
	return cmd
}

// Process is one that was started.
type Process struct {
	Out, Err *Text           // what it has written; one and the same where Start was told so
	Ended    <-chan struct{} // closed when it has ended
	cmd      *exec.Cmd
}

// Start starts a command that writes to out and errs.
func Start(cmd *exec.Cmd, out, errs *Text) (*Process, error) {
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // Code tells
	}()
	return &Process{out, errs, ended, cmd}, nil
}

var address = regexp.MustCompile(`http://[0-9.]+:\d+`)

// Up starts `manta up` and gives the URL that it prints once it is ready.
func Up(cmd *exec.Cmd) (p *Process, url string, err error) {
	if p, err = Start(cmd, &Text{}, &Text{}); err != nil {
		return nil, "", err
	}
	late := time.After(Patience)
	for {
		written := p.Out.Written()
		// A line is whole when it has its end.
		text := p.Out.String()
		if url = address.FindString(text[:strings.LastIndexByte(text, '\n')+1]); url != "" {
			return p, url, nil
		}
		select {
		case <-written:
		case <-p.Ended:
			return nil, "", fmt.Errorf("manta up ended with %d:\n%s", p.Code(), p.Err)
		case <-late:
			p.Kill()
			return nil, "", fmt.Errorf("manta up is not ready after %s:\n%s", Patience, p.Err)
		}
	}
}

// Kill ends the process without a word, as a crash does; what it held is free then.
func (p *Process) Kill() {
	_ = p.Send(os.Kill) // it may have ended by itself
	<-p.Ended
}

// Send sends a signal; it fails where the process has ended.
func (p *Process) Send(what os.Signal) error { return p.cmd.Process.Signal(what) }

// Signal sends a signal to a process that must be there.
func (p *Process) Signal(t testing.TB, what os.Signal) {
	t.Helper()
	if err := p.Send(what); err != nil {
		t.Fatalf("%v: %v", what, err)
	}
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Code is the exit code, -1 for a signal; only after Ended.
func (p *Process) Code() int { return p.cmd.ProcessState.ExitCode() }

// Wait waits for the end and gives the exit code.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.Ended:
		return p.Code()
	case <-time.After(Patience):
		t.Fatalf("the process does not end:\n%s", p.Err)
		return -1
	}
}

// Run runs a command to its end, which comes within Patience, and gives its exit code.
func Run(t testing.TB, cmd *exec.Cmd) (out, errs string, code int) {
	t.Helper()
	p, err := Start(cmd, &Text{}, &Text{})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Ended:
	case <-time.After(Patience):
		p.Kill()
		t.Fatalf("%q still ran after %s:\n%s%s", cmd.Args, Patience, p.Out, p.Err)
	}
	return p.Out.String(), p.Err.String(), p.Code()
}

// Eventually asks again and again until it holds, and tells why it never did.
func Eventually(t testing.TB, holds func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(Patience)
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %s: %v", Patience, err)
		}
	}
}
