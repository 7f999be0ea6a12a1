package processtest

import (
	"bytes"
	"strings"
	"sync"
)

// Text gathers what a process writes while others read it.
type Text struct {
	mu      sync.Mutex
	buffer  bytes.Buffer  // guarded by mu
	written chan struct{} // guarded by mu; closed by the next write
}

func (t *Text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.written != nil {
		close(t.written)
		t.written = nil
	}
	return t.buffer.Write(p)
}

func (t *Text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buffer.String()
}

// Written gives a channel that is closed when more is written.
func (t *Text) Written() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.written == nil {
		t.written = make(chan struct{})
	}
	return t.written
}

// Last gives the last lines.
func (t *Text) Last(lines int) string {
	all := strings.SplitAfter(t.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines-1):], "")
}
