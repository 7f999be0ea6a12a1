//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// process is one that the lab started: it dies with the lab's owner.
type process struct {
	command *exec.Cmd
	ended   chan struct{}
}

// start runs a command in the background, its output in logs/NAME.log. Flags are
// those of clone(2): the namespaces that it gets.
func (l *Lab) start(name, space string, flags uintptr, env []string, program string, args ...string) error {
	log, err := os.OpenFile(l.at("logs", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command("nsenter", append([]string{"--net=/run/netns/" + space, "--", program}, args...)...)
	command.Stdout, command.Stderr = log, log
	command.Env = append(os.Environ(), env...)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL, Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{command: command, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = command.Wait() // it is killed in the end
	}()
	l.processes[name] = p
	return nil
}

// stop kills a process and waits until it is gone.
func (l *Lab) stop(name string) {
	if p, ok := l.processes[name]; ok {
		_ = p.command.Process.Kill()
		<-p.ended
		delete(l.processes, name)
	}
}

// ask has a process end by itself.
func (l *Lab) ask(name string) error {
	p, ok := l.processes[name]
	if !ok {
		return fmt.Errorf("%s does not run", name)
	}
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.ended:
		delete(l.processes, name)
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s does not end", name)
	}
}

// running reports whether a process has not ended by itself.
func (l *Lab) running(name string) error {
	select {
	case <-l.processes[name].ended:
		return fmt.Errorf("%s has ended: see %s", name, l.at("logs", name+".log"))
	default:
		return nil
	}
}
