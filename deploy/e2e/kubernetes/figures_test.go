//go:build kubernetes && linux

package kubernetes

import (
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"
)

// figures are what a run has measured, in the order of the tests: shown at once, and
// again at the end.
type figures struct {
	mu     sync.Mutex
	under  []disturbance // guarded by mu
	others []string      // guarded by mu
}

// disturbance is what a load of streams saw of one.
type disturbance struct {
	name                    string
	took, longest           time.Duration
	ended, failed, restarts int
}

var measured figures

func (f *figures) disturbed(d disturbance) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.under = append(f.under, d)
	fmt.Printf("    %s: %d streams, %d failed, longest pause %.2f s\n", d.name, d.ended, d.failed, d.longest.Seconds())
}

func (f *figures) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.others = append(f.others, fmt.Sprintf(format, args...))
	fmt.Printf("    "+format+"\n", args...)
}

// print shows all of it.
func (f *figures) print(w io.Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "\nlongest pause\tstreams\tfailed\tstarts again\ttook\t  under a steady load\n")
	for _, d := range f.under {
		fmt.Fprintf(table, "%.2f s\t%d\t%d\t%d\t%.1f s\t  %s\n", d.longest.Seconds(), d.ended, d.failed, d.restarts, d.took.Seconds(), d.name)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, line := range f.others {
		fmt.Fprintln(w, line)
	}
	return nil
}
