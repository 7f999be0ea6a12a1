//go:build kubernetes && linux

package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"manta/head/client"
)

// hungBound is how long a hung engine may pass for healthy.
const hungBound = 10 * time.Second

// Long prompts on a slow processor leave the model healthy; an engine that hangs does
// not, within ten seconds, and no head is restarted for it.
func TestHungEngine(t *testing.T) {
	t.Cleanup(func() { report(t, namespace) })
	c := installed(t)
	podsReady(t, namespace, nodePods, 1)
	health := bases(0)[0] + "/health"
	var long sync.WaitGroup
	start := time.Now()
	for i := range 4 {
		long.Go(func() {
			n := 1
			prompt := fmt.Sprint(i, strings.Repeat(" a long way to the sea", 150))
			if _, err := c.Complete(t.Context(), "smollm2", prompt, client.Options{MaxTokens: &n}, func(client.Piece) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		long.Wait()
		close(ended)
	}()
	asked := 0
	for busy := true; busy; asked++ {
		if _, err := get(t.Context(), health); err != nil {
			t.Errorf("%.1f s into long prompts: %v", time.Since(start).Seconds(), err)
		}
		select {
		case <-ended:
			busy = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	measured.note("four prompts of 900 tokens took %.1f s, healthy all %d times that it was asked", time.Since(start).Seconds(), asked)

	pid := processOf(t, "manta-node-0")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	hung := until(t, "503", patience, func(ctx context.Context) error {
		if _, err := get(ctx, health); err == nil {
			return fmt.Errorf("healthy")
		}
		return nil
	})
	if hung > hungBound {
		t.Errorf("unhealthy only after %v", hung)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back := until(t, "health", patience, func(ctx context.Context) error {
		_, err := get(ctx, health)
		return err
	})
	measured.note("a stopped engine: 503 after %.1f s; let go, 200 after %.1f s", hung.Seconds(), back.Seconds())
	all, err := pods(t.Context(), namespace, headPods)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if !p.ready() {
			t.Errorf("%s is not ready: a head depends on no node", p.Metadata.Name)
		}
	}
}

// processOf finds the process of a pod's one container.
func processOf(t *testing.T, pod string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !bytes.HasPrefix(command, []byte("/manta\x00")) {
			continue // it has ended, or is another
		}
		variables, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(append([]byte{0}, variables...), []byte("\x00HOSTNAME="+pod+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("no process of pod %s", pod)
	return 0
}
