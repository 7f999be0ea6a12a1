package cli

import (
	"bytes"
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

// interrupts remembers that Ctrl-C came by: the terminal reports it as the end.
type interrupts struct {
	in   io.Reader
	seen bool
}

const ctrlC = 3

func (i *interrupts) Read(p []byte) (int, error) {
	n, err := i.in.Read(p)
	if bytes.IndexByte(p[:n], ctrlC) >= 0 {
		i.seen = true
	}
	return n, err
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

func (r *lineReader) read() (string, error) {
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
	line, err := r.terminal.ReadLine()
	if restored := term.Restore(fd, before); restored != nil {
		return "", fmt.Errorf("the terminal: %w", restored)
	}
	if errors.Is(err, term.ErrPasteIndicator) {
		err = nil
	}
	if errors.Is(err, io.EOF) && r.keys.seen {
		r.terminal.SetPrompt(">>> ")
		fmt.Fprintln(os.Stdout)
		return "", errInterrupted
	}
	return line, err
}
