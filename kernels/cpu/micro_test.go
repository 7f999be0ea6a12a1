//go:build unix

package cpu

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"manta/kernels"
)

// BenchmarkKernel prints, on one thread and for operands in the caches, the
// product kernels' GFLOP/s and their ratio to the peak of bare FMAs.
func BenchmarkKernel(b *testing.B) {
	o := device(b, 1, fastest())
	for range b.N {
	}
	for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16, kernels.F16, kernels.Q8_0, kernels.Q4_1, kernels.Q4_0, kernels.Q4_K, kernels.Q5_K, kernels.Q6_K} {
		const rows = 64
		cols := max(576, 3*dtype.BlockSize())
		w := weightOf(b, o, matrix(newRand(1), dtype, rows, cols)).(*weight)
		line := fmt.Sprintf("%-5s", dtype)
		for _, m := range []int{1, 2, 3, 4, 6, 8, 10, 12} {
			x := tensor(b, o, m, cols, random(newRand(2), m*cols))
			sums := make([]float32, 16*w.sumBlocks())
			y := o.workers[0].tile
			k := o.kernels.products[w.segments[0].format.kind][m-1]
			d := fastestOf(300, func() {
				for range 20 {
					k(&y[0], &bufferOf(x).data[0], uintptr(4*bufferOf(x).stride), &sums[0], &w.segments[0].group(0)[0], uintptr(w.segments[0].blocks))
				}
			})
			line += fmt.Sprintf("  %d: %5.1f (%4.1f GB/s)", m, 20*2*rows*float64(cols*m)/float64(d.Nanoseconds()), 20*float64(w.segments[0].groupBytes())/float64(d.Nanoseconds()))
		}
		fmt.Println(line)
	}
}

// BenchmarkInteger prints the same of integer products.
func BenchmarkInteger(b *testing.B) {
	for range b.N {
	}
	for _, precision := range []Precision{Int16, Int8} {
		o := deviceOf(b, Options{Threads: 1, Precision: precision}, fastest())
		for _, dtype := range []kernels.DType{kernels.Q4_1, kernels.Q8_0, kernels.Q6_K} {
			const rows = 64
			cols := max(576, 3*dtype.BlockSize())
			w := weightOf(b, o, matrix(newRand(1), dtype, rows, cols)).(*weight)
			line := fmt.Sprintf("precision %d %-5s", precision, dtype)
			for _, m := range []int{1, 2, 3, 4, 8, 12, 16, 24} {
				x := random(newRand(2), m*strideOf(cols))
				codes := make([]float32, m*w.codesStride())
				for r := range m {
					o.kernels.record(w.form, &codes[r*w.codesStride()], &x[r*strideOf(cols)], uintptr(w.sumBlocks()))
				}
				y := o.workers[0].tile
				s := &w.segments[0]
				k := o.kernels.integers[w.form-byteForm][s.format.kind]
				d := fastestOf(300, func() {
					for range 20 {
						k(&y[0], byteOf(&codes[0]), uintptr(4*w.codesStride()), &s.group(0)[0], uintptr(w.sumBlocks()), uintptr(m), 0, groupPanels)
					}
				})
				line += fmt.Sprintf("  %d: %5.1f (%4.1f GB/s)", m, 20*2*rows*float64(cols*m)/float64(d.Nanoseconds()), 20*float64(s.groupBytes())/float64(d.Nanoseconds()))
			}
			fmt.Println(line)
		}
	}
}

// BenchmarkBest prints the shortest of many steps of SmolLM2's shape, and what
// processor time they took: other programs share the machine, so that means say
// little.
func BenchmarkBest(b *testing.B) {
	for range b.N {
	}
	for _, options := range []Options{{1, Float32}, {1, Int16}, {1, Int8}, {2, Float32}, {2, Int16}, {2, Int8}} {
		o := deviceOf(b, options, fastest())
		m := newStack(b, o, smollm2, 1024, 4096)
		for _, c := range []struct{ sequences, start, count, runs int }{{1, 100, 1, 60}, {1, 1024, 1, 40}, {16, 200, 1, 15}, {1, 0, 512, 3}} {
			batch, rows := batchOf(c.sequences, c.start, c.count)
			least := time.Hour
			d := fastestOf(c.runs, func() {
				before := processorTime()
				m.step(b, batch, rows)
				least = min(least, processorTime()-before)
			})
			fmt.Printf("%v threads and precision, %d sequences of %d rows at %d: %v, %.0f tokens/s; processor %v\n", options, c.sequences, c.count, c.start, d, float64(c.sequences*c.count)/d.Seconds(), least)
		}
	}
}

// BenchmarkChunk prints what each operation takes of a prompt of 512 tokens, of all
// layers together: the shortest of many steps.
func BenchmarkChunk(b *testing.B) {
	for range b.N {
	}
	for _, threads := range []int{1, 2} {
		o := deviceOf(b, Options{Threads: threads, Precision: Int8}, fastest())
		m := newStack(b, o, smollm2, 512, 64)
		batch, rows := batchOf(1, 0, 512)
		var order []string
		best, spent := map[string]time.Duration{}, map[string]time.Duration{}
		last := time.Now()
		m.lap = func(operation string) {
			now := time.Now()
			spent[operation] += now.Sub(last)
			last = now
			if !slices.Contains(order, operation) {
				order = append(order, operation)
			}
		}
		whole := fastestOf(20, func() {
			clear(spent)
			last = time.Now()
			m.step(b, batch, rows)
			for operation, d := range spent {
				if best[operation] == 0 || d < best[operation] {
					best[operation] = d
				}
			}
		})
		fmt.Printf("%d threads: %v, %.0f tokens/s\n", threads, whole, 512/whole.Seconds())
		for _, operation := range order {
			fmt.Printf("  %-24s %v\n", operation, best[operation])
		}
	}
}

func processorTime() time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		panic(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// BenchmarkPack prints how fast weights are packed, by their size in the file.
func BenchmarkPack(b *testing.B) {
	for range b.N {
	}
	for _, precision := range []Precision{Float32, Int16} {
		o := deviceOf(b, Options{Threads: 1, Precision: precision}, fastest())
		for _, dtype := range allTypes {
			m := matrix(newRand(1), dtype, 4096, 1024)
			w := weightOf(b, o, m).(*weight)
			d := fastestOf(10, func() {
				o.packing = packTask{o, w}
				o.pool.run(&o.packing, w.groups)
			})
			fmt.Printf("precision %d, %s: %.2f GB/s\n", precision, dtype, float64(len(m.Data))/float64(d.Nanoseconds()))
		}
	}
}
