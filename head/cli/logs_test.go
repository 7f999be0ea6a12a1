package cli

import (
	"slices"
	"testing"
)

// Each line of each process is printed once, however far an answer reaches back, and
// a process that does not answer for a while is not printed anew afterwards.
func TestFollowedLinesComeOnce(t *testing.T) {
	f := followed{}
	for _, step := range []struct {
		answer string
		want   []string
	}{
		{"a: 2\na: 3\nb: 1\n", []string{"a: 2", "a: 3", "b: 1"}},
		{"a: 1\na: 2\na: 3\na: 4\nb: 1\n", []string{"a: 4"}},
		{"a: 3\na: 4\nb: 1\nb: 2\n", []string{"b: 2"}},
		{"a: no answer: busy\nb: 2\n", []string{"a: no answer: busy"}},
		{"a: no answer: busy\nb: 2\nb: 3\n", []string{"b: 3"}},
		{"a: 4\na: 5\nb: 3\n", []string{"a: 5"}},
		{"a: 9\nb: 3\n", []string{"a: 9"}},
	} {
		if got := f.fresh(step.answer); !slices.Equal(got, step.want) {
			t.Fatalf("after %q: %q, want %q", step.answer, got, step.want)
		}
	}
}
