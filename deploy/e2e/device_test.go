//go:build e2e && unix

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"manta/internal/processtest"
)

// deviceProcess gives the id of the server's one device process that lives.
func (s *server) deviceProcess() (int, error) {
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(s.Pid())).Output()
	if err != nil {
		return 0, fmt.Errorf("no device process: %w", err)
	}
	pids := strings.Fields(string(out))
	if len(pids) != 1 {
		return 0, fmt.Errorf("device processes %v", pids)
	}
	return strconv.Atoi(pids[0])
}

// device is deviceProcess, once it is there: one that died may have no successor yet.
func (s *server) device(t *testing.T) (pid int) {
	t.Helper()
	processtest.Eventually(t, func() (err error) {
		if pid, err = s.deviceProcess(); err == nil && gone(pid) == nil {
			err = fmt.Errorf("process %d has ended", pid)
		}
		return err
	})
	return pid
}

// gone tells whether a process is no more; one that nobody has waited for counts.
func gone(pid int) error {
	out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	if state := strings.TrimSpace(string(out)); err == nil && state != "" && !strings.HasPrefix(state, "Z") {
		return fmt.Errorf("process %d is in state %s", pid, state)
	}
	return nil
}

var separately = []string{"--device-processes", "always"}

// A device process that ends, however it does, ends nothing else: its streams
// pause and go on with the tokens they would have had.
func TestStreamsOutliveTheDeviceProcess(t *testing.T) {
	body := object{"prompt": "The sea is", "max_tokens": long, "temperature": 1.1, "seed": 21, "ignore_eos": true}
	want, err := shared.whole(t.Context(), "/v1/completions", body)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "", *realModel, separately...)
	type fault struct {
		name   string
		signal syscall.Signal
	}
	faults := []fault{
		{"killed", syscall.SIGKILL}, {"crashed", syscall.SIGSEGV}, {"ended", syscall.SIGTERM}, {"stopped", syscall.SIGSTOP},
	}
	if *faulty {
		faults = append(faults, fault{"a kernel faults", syscall.SIGUSR2},
			fault{"the device stands still", syscall.SIGUSR1}, fault{"its thread stands still", syscall.SIGALRM})
	}
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			pid := s.device(t)
			got := &answer{}
			events := 0
			var longest time.Duration
			last := time.Now()
			err := s.stream(t.Context(), "/v1/completions", streaming(body), func(e event) error {
				if events++; events == 10 {
					if err := syscall.Kill(pid, c.signal); err != nil {
						return err
					}
				}
				longest, last = max(longest, time.Since(last)), time.Now()
				return got.add([]byte(e.data))
			})
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, want)
			processtest.Eventually(t, func() error { return gone(pid) })
			t.Logf("longest pause %v", longest.Round(time.Millisecond))
		})
	}
}

// A device process that hardly gets to run is slow, and nothing else.
func TestStarvedDeviceProcess(t *testing.T) {
	body := object{"prompt": "The sea is", "max_tokens": 40, "temperature": 1.1, "seed": 22, "ignore_eos": true}
	want, err := shared.whole(t.Context(), "/v1/completions", body)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "", *realModel, separately...)
	pid := s.device(t)
	done, starved := make(chan struct{}), make(chan error, 1)
	go func() { // of each 400 ms it has 50, or more where this test gets to run late
		var err error
		for {
			err = errors.Join(err, syscall.Kill(pid, syscall.SIGSTOP))
			select {
			case <-done:
				starved <- errors.Join(err, syscall.Kill(pid, syscall.SIGCONT))
				return
			case <-time.After(350 * time.Millisecond):
			}
			err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT))
			<-time.After(50 * time.Millisecond)
		}
	}()
	got, err := s.streamed(t.Context(), "/v1/completions", body)
	close(done)
	if err := errors.Join(err, <-starved); err != nil {
		t.Fatal(err)
	}
	same(t, got, want)
	if now := s.device(t); now != pid {
		t.Errorf("process %d took the place of %d", now, pid)
	}
}

// No process is left behind, whether its node ends in order or is killed. In order,
// what is in progress may end first.
func TestDeviceProcessEndsWithItsNode(t *testing.T) {
	for name, what := range map[string]os.Signal{"killed": os.Kill, "told": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			s := start(t, "", *realModel, separately...)
			pid := s.device(t)
			var got answer
			events := 0
			body := object{"prompt": "The sea is", "max_tokens": 40, "temperature": 0, "ignore_eos": true}
			err := s.stream(t.Context(), "/v1/completions", streaming(body), func(e event) error {
				if events++; events == 3 {
					s.Signal(t, what)
				}
				return got.add([]byte(e.data))
			})
			// Several tokens may come in one event: the usage counts them.
			if code := s.Wait(t); what == syscall.SIGTERM && (err != nil || code != 0 || got.Tokens != 40) {
				t.Errorf("exit code %d after %d tokens, %v", code, got.Tokens, err)
			}
			processtest.Eventually(t, func() error { return gone(pid) })
		})
	}
}
