// Command golden reads `go test -json` and ends with «N passed, N failed», one a
// reference row: the leaves of the tests that ran. It prints what failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// event is one line of test2json.
type event struct {
	Action, Package, Test, Output string
}

func main() {
	type key struct{ pkg, test string }
	results := make(map[key]string)
	output := make(map[key][]string)
	parents := make(map[key]bool)
	broken := false
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text())
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "output":
			output[k] = append(output[k], e.Output)
		case "build-fail":
			broken = true
		case "pass", "fail", "skip":
			if e.Test == "" {
				if e.Action == "fail" {
					broken = true
					fmt.Print(strings.Join(output[k], ""))
				}
				continue
			}
			results[k] = e.Action
			if parent, _, ok := cutLast(e.Test); ok {
				parents[key{e.Package, parent}] = true
			}
			if e.Action != "pass" {
				fmt.Print(strings.Join(output[k], ""))
			}
		}
	}
	counts := make(map[string]int)
	for k, result := range results {
		if !parents[k] {
			counts[result]++
		}
	}
	if counts["skip"] > 0 {
		fmt.Printf("%d passed, %d failed, %d skipped\n", counts["pass"], counts["fail"], counts["skip"])
	} else {
		fmt.Printf("%d passed, %d failed\n", counts["pass"], counts["fail"])
	}
	if counts["fail"] > 0 || broken || counts["pass"] == 0 {
		os.Exit(1)
	}
}

func cutLast(test string) (parent, leaf string, ok bool) {
	i := strings.LastIndexByte(test, '/')
	if i < 0 {
		return "", test, false
	}
	return test[:i], test[i+1:], true
}
