// Package scale measures what heads cost as a cluster grows. The heads are real
// processes; the nodes run in the test's own, on simulated devices: a step takes
// the time of a cost model and computes nothing, all else is real. `make
// bench-scale` prints the table.
package scale
