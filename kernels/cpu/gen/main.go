// Command gen writes the AVX-512 kernels of package cpu: kernels_amd64.s and the
// declarations beside it. It is a module of its own, so that the program does not
// depend on avo. Run by go generate in kernels/cpu.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
)

func main() {
	for _, f := range formats {
		for rows := 1; rows <= maxRows; rows++ {
			product(f, rows)
		}
	}
	for rows := 1; rows <= maxRows; rows++ {
		productDot(rows)
	}
	for terms := 1; terms <= 2; terms++ {
		for _, f := range integerFormats {
			productInteger(f, terms)
		}
		quantize(terms)
	}
	for _, s := range stores {
		for rows := 1; rows <= maxQueries; rows++ {
			scores(s, rows)
			for _, panels := range []int{1, 4} {
				values(s, rows, panels)
			}
		}
	}
	elementwise()
	transpose()
	stream()
	spin()
	table()
	Generate()
}

func name(format string, a ...any) string { return fmt.Sprintf(format, a...) }
