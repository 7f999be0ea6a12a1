// Package tail keeps the newest lines that a process logged, in memory, so that an
// operator can read them through a head. It belongs to the process's logger; it
// writes nothing anywhere.
package tail

import (
	"bytes"
	"slices"
	"strings"
	"sync"
)

// maxBytes bounds what is kept, and maxLine one line of it.
const (
	maxBytes = 1 << 20
	maxLine  = 4 << 10
)

// Lines are the newest lines of a log; nil has none. It is safe for concurrent use.
type Lines struct {
	mu    sync.Mutex // guards what follows
	lines []string
	bytes int
}

// Write takes one line, or several.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(p) {
		text := string(bytes.TrimRight(line[:min(len(line), maxLine)], "\n"))
		l.lines, l.bytes = append(l.lines, text), l.bytes+len(text)
	}
	drop := 0
	for l.bytes > maxBytes {
		l.bytes -= len(l.lines[drop])
		drop++
	}
	l.lines = slices.Delete(l.lines, 0, drop)
	return len(p), nil
}

// Last gives the newest lines that contain a text, oldest first, at most so many.
func (l *Lines) Last(most int, containing string) []string {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for _, line := range slices.Backward(l.lines) {
		if len(found) == most {
			break
		}
		if strings.Contains(line, containing) {
			found = append(found, line)
		}
	}
	slices.Reverse(found)
	return found
}
