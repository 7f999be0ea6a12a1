// Command gen writes the kernels of package cpu for AVX-512, or with -avx2 for
// AVX2: assembly and the declarations beside it. With -products these are the matrix
// products; without, all other operations, and the table that lists every kernel. It
// is a module of its own, so that the program does not depend on avo. Run by go
// generate in kernels/cpu.
package main

import (
	"flag"
	"fmt"

	. "github.com/mmcloughlin/avo/build"
)

func main() {
	flag.BoolVar(&narrow, "avx2", false, "write for AVX2 instead of AVX-512")
	products := flag.Bool("products", false, "write the matrix products instead of the other operations")
	flag.Parse()
	switch {
	case *products && narrow:
		products256()
	case *products:
		products512()
	default:
		operations()
		table()
	}
	Generate()
}

func products512() {
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
	}
	transpose()
}

func products256() {
	for _, f := range formats {
		for rows := 1; rows <= maxRows256; rows++ {
			product256(f, rows)
		}
	}
	for _, vnni := range []bool{false, true} {
		for terms := 1; terms <= 2; terms++ {
			for _, f := range integerFormats {
				productInteger256(f, terms, vnni)
			}
		}
	}
	transpose256()
}

func operations() {
	if !narrow {
		spin()
		claim()
	}
	for terms := 1; terms <= 2; terms++ {
		quantize(terms)
	}
	for _, s := range stores {
		for rows := 1; rows <= maxQueries; rows++ {
			scores(s, rows)
			values(s, rows, 1)
			if !narrow {
				values(s, rows, 4)
			}
		}
	}
	elementwise()
	stream()
}

func name(format string, a ...any) string { return fmt.Sprintf(format, a...) }
