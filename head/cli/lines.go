package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// errInterrupted says that Ctrl-C was pressed at the prompt.
var errInterrupted = errors.New("interrupted")

// lineReader reads lines with editing and history. The terminal is raw only
// while a line is read, so that Ctrl-C is a signal while an answer streams.
type lineReader struct {
	in       *os.File
	keys     *interrupts
	terminal *term.Terminal
}

// interrupts turns Ctrl-C, which the terminal would report as the end of the
// input, into an empty line, and remembers that it came by.
type interrupts struct {
	in   io.Reader
	left []byte
	seen bool
}

const (
	ctrlC = 3
	ctrlE = 5  // to the end of the line
	ctrlU = 21 // delete to its beginning
)

func (i *interrupts) Read(p []byte) (int, error) {
	if len(i.left) == 0 {
		buffer := make([]byte, len(p))
		n, err := i.in.Read(buffer)
		if err != nil {
			return 0, err
		}
		i.left = buffer[:n]
		if at := bytes.LastIndexByte(i.left, ctrlC); at >= 0 {
			i.seen = true
			i.left = append([]byte{ctrlE, ctrlU, '\r'}, i.left[at+1:]...)
		}
	}
	n := copy(p, i.left)
	i.left = i.left[n:]
	return n, nil
}

func newLineReader(in, out *os.File) *lineReader {
	keys := &interrupts{in: in}
	r := &lineReader{in: in, keys: keys}
	r.terminal = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{keys, out}, ">>> ")
	return r
}

// read gives a line, io.EOF for Ctrl-D, or errInterrupted for Ctrl-C. When ctx
// ends it gives up; the keys that were being waited for are lost, so the reader
// is of no use then.
func (r *lineReader) read(ctx context.Context) (string, error) {
	fd := int(r.in.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return "", fmt.Errorf("the terminal: %w", err)
	}
	if width, height, err := term.GetSize(fd); err == nil && width > 0 {
		// A size that can't be set leaves the old one, which only wraps worse.
		_ = r.terminal.SetSize(width, height)
	}
	r.keys.seen = false
	typed := make(chan lineRead, 1)
	go func() { // a read of the terminal can't be called off: it may outlive ctx
		line, err := r.terminal.ReadLine()
		typed <- lineRead{line, err}
	}()
	var got lineRead
	select {
	case got = <-typed:
	case <-ctx.Done():
		got.err = ctx.Err()
	}
	if err := term.Restore(fd, before); err != nil {
		return "", fmt.Errorf("the terminal: %w", err)
	}
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(got.err, term.ErrPasteIndicator):
		return got.line, nil
	case r.keys.seen:
		return "", errInterrupted
	}
	return got.line, got.err
}

type lineRead struct {
	line string
	err  error
}
