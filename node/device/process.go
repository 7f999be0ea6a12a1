package device

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
)

const (
	// parting is how long a process may take to end once its life line is cut.
	parting = 10 * time.Second
	// maxLine bounds one line of a process's log; what is longer is cut.
	maxLine = 8 << 10
	// maxWords bounds what is said of a process's death.
	maxWords = 400
)

// live runs one process from its start to its end, and says why it ended. When ctx
// ends the process is told to, and killed if it does not.
func (h *host) live(ctx context.Context) error {
	cfg := h.launcher.cfg
	spec := life{
		Boot: rand.Text(), Node: cfg.Node, Replica: h.replica, Address: reachable(cfg.Link.Address()), Secrets: cfg.Secrets,
		Devices: cfg.Devices, Downloads: cfg.Downloads, Traces: cfg.Traces,
	}
	p := &process{log: cfg.Logger.With("replica", spec.Replica)}
	if err := p.start(cfg.Argv, spec); err != nil {
		return err
	}
	h.mu.Lock()
	h.boot, h.heard, h.spoke = spec.Boot, time.Now(), false
	h.process.Starts++
	h.mu.Unlock()
	ticker := time.NewTicker(silence / 10)
	defer ticker.Stop()
	for {
		select {
		case <-p.ended:
			return p.reason()
		case <-ctx.Done():
			p.end()
			return ctx.Err()
		case now := <-ticker.C:
			if err := h.overdue(now); err != nil {
				p.kill()
				return err
			}
		}
	}
}

// reachable makes an address to dial of one that is listened on.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}

// process is one running device process.
type process struct {
	log     *slog.Logger
	command *exec.Cmd
	line    io.WriteCloser // its life line
	ended   chan struct{}  // closed when it is gone and its last word is read
	err     error          // of Wait; valid when ended

	mu    sync.Mutex // guards words
	words string     // the last error that it logged
}

// start starts the program and gives it its life.
func (p *process) start(argv []string, spec life) error {
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("device: %w", err)
	}
	p.command = exec.Command(argv[0], argv[1:]...)
	p.command.SysProcAttr = attributes()
	p.command.Env = os.Environ()
	if p.line, err = p.command.StdinPipe(); err != nil {
		return fmt.Errorf("device: %w", err)
	}
	output, input, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("device: %w", err)
	}
	p.command.Stdout, p.command.Stderr = input, input
	p.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		// The kernel ends the process when the thread that started it ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.command.Start()
		input.Close()
		if err == nil {
			p.log = p.log.With("pid", p.command.Process.Pid)
		}
		started <- err
		if err != nil {
			output.Close()
			return
		}
		p.listen(output)
		output.Close()
		p.err = p.command.Wait()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("device: start %s: %w", argv[0], err)
	}
	if _, err := p.line.Write(append(text, '\n')); err != nil {
		p.kill()
		return errors.Join(fmt.Errorf("device: %w", err), p.reason())
	}
	return nil
}

// end cuts the life line, and kills what does not end by that.
func (p *process) end() {
	p.line.Close()
	select {
	case <-p.ended:
	case <-time.After(parting):
		p.log.Warn("device process killed", "why", "it does not end")
		p.kill()
	}
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() {
	_ = p.command.Process.Kill() // it may be gone already
	<-p.ended
	p.line.Close()
}

// reason says why the process is gone. It waits for that.
func (p *process) reason() error {
	<-p.ended
	p.line.Close()
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.words == "" {
		return fmt.Errorf("device process ended: %s", how)
	}
	return fmt.Errorf("device process ended: %s: %s", how, p.words)
}

// listen passes the process's log on, line by line, until it ends.
func (p *process) listen(output io.Reader) {
	reader := bufio.NewReaderSize(output, maxLine)
	for {
		line, more, err := reader.ReadLine()
		if len(line) > 0 {
			p.hear(string(line))
		}
		for more && err == nil { // the rest of a line that is too long
			_, more, err = reader.ReadLine()
		}
		if err != nil {
			return
		}
	}
}

// hear takes one line: a record of its log, or what the Go runtime or a driver
// says at the end.
func (p *process) hear(line string) {
	var record map[string]any
	var level slog.Level
	var text string
	if json.Unmarshal([]byte(line), &record) == nil {
		text, _ = record["msg"].(string)
		name, _ := record["level"].(string)
		if level.UnmarshalText([]byte(name)) != nil {
			level = slog.LevelInfo
		}
	}
	if text == "" {
		p.log.Warn("device process says", "line", line)
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			p.keep(line)
		}
		return
	}
	attrs := make([]any, 0, 2*len(record))
	for key, value := range record {
		if key != "msg" && key != "level" && key != "time" {
			attrs = append(attrs, key, value)
		}
	}
	p.log.Log(context.Background(), level, text, attrs...)
	if level >= slog.LevelError {
		p.keep(strings.TrimSpace(fmt.Sprint(text, ": ", record["error"])))
	}
}

func (p *process) keep(words string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.words = words[:min(len(words), maxWords)]
}
