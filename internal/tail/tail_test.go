package tail

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The newest lines are given in order, as many as asked for, of those that contain
// the text; what is kept is bounded in bytes, and so is a line.
func TestLast(t *testing.T) {
	var l Lines
	fmt.Fprintf(&l, "a 1\nb 2\n")
	fmt.Fprintf(&l, "a 3\n")
	if got := l.Last(2, ""); !slices.Equal(got, []string{"b 2", "a 3"}) {
		t.Errorf("%q", got)
	}
	if got := l.Last(9, "a"); !slices.Equal(got, []string{"a 1", "a 3"}) {
		t.Errorf("%q", got)
	}
	for range 3 * maxBytes / maxLine {
		fmt.Fprintln(&l, strings.Repeat("x", 2*maxLine))
	}
	if l.bytes > maxBytes || len(l.Last(1<<20, "")) > maxBytes/maxLine+1 || len(l.Last(1, "")[0]) > maxLine {
		t.Errorf("%d bytes are kept in %d lines", l.bytes, len(l.lines))
	}
}
