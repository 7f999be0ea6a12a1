package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// A table holds what was measured, by row and subject.
type table map[string]map[string][]float64

func (t table) add(row string, p subject, value float64) {
	if t[row] == nil {
		t[row] = map[string][]float64{}
	}
	t[row][p.label()] = append(t[row][p.label()], value)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// print writes medians (lowest to highest), then the first subject's median over
// those of the others.
func (t table) print(out io.Writer, subjects []subject) {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprint(w, "median (lowest to highest)")
	for _, p := range subjects {
		fmt.Fprintf(w, "\t%s", p.label())
	}
	for _, p := range subjects[1:] {
		fmt.Fprintf(w, "\tto %s", p.label())
	}
	fmt.Fprintln(w)
	for _, row := range rows {
		fmt.Fprint(w, row)
		for _, p := range subjects {
			if values := t[row][p.label()]; len(values) > 0 {
				fmt.Fprintf(w, "\t%s (%s to %s)", number(median(values)), number(slices.Min(values)), number(slices.Max(values)))
			} else {
				fmt.Fprint(w, "\t")
			}
		}
		for _, p := range subjects[1:] {
			if values := t[row][p.label()]; len(values) > 0 {
				fmt.Fprintf(w, "\t%.2f", median(t[row][subjects[0].label()])/median(values))
			} else {
				fmt.Fprint(w, "\t")
			}
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // to standard output
}

func number(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
