// Command check holds the house rules that no linter knows: which package may
// import which, how long a file may be, and that ARCHITECTURE.md's package table
// is the tree. `make check` runs it from the repository's root.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const (
	module   = "manta"
	maxLines = 600
)

func main() {
	files, err := tracked()
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(2)
	}
	var faults []string
	faults = append(faults, lengths(files)...)
	faults = append(faults, imports(files)...)
	faults = append(faults, sleeps(files)...)
	faults = append(faults, table(files)...)
	for _, f := range faults {
		fmt.Fprintln(os.Stderr, f)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
}

// tracked lists the source files of the tree: what git tracks, or where there is
// no git, every file that is not hidden.
func tracked() ([]string, error) {
	if out, err := exec.Command("git", "ls-files", "-co", "--exclude-standard").Output(); err == nil {
		files := strings.Split(strings.TrimSpace(string(out)), "\n")
		return slices.DeleteFunc(files, func(f string) bool {
			_, err := os.Stat(f)
			return err != nil
		}), nil
	}
	var files []string
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p != "." && strings.HasPrefix(d.Name(), ".") && d.IsDir():
			return filepath.SkipDir
		case !d.IsDir():
			files = append(files, filepath.ToSlash(p))
		}
		return nil
	})
	return files, err
}

func lengths(files []string) (faults []string) {
	for _, f := range files {
		switch path.Ext(f) {
		case ".go", ".cu", ".cuh", ".c", ".h", ".sh":
		default:
			continue
		}
		content, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if n := bytes.Count(content, []byte("\n")); n > maxLines {
			faults = append(faults, fmt.Sprintf("%s: %d lines, at most %d: split it by what it does", f, n, maxLines))
		}
	}
	return faults
}

func sleeps(files []string) (faults []string) {
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			continue
		}
		content, err := os.ReadFile(f)
		if err == nil && bytes.Contains(content, []byte("time."+"Sleep(")) {
			faults = append(faults, f+": a test sleeps: wait for a signal, or use testing/synctest")
		}
	}
	return faults
}

// imports checks every import within the module against the rules.
func imports(files []string) (faults []string) {
	fset := token.NewFileSet()
	for _, f := range files {
		if path.Ext(f) != ".go" || strings.Contains(f, "/testdata/") || strings.HasPrefix(f, "kernels/cpu/gen/") {
			continue
		}
		parsed, err := parser.ParseFile(fset, f, nil, parser.ImportsOnly)
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		from := path.Dir(f)
		test := strings.HasSuffix(f, "_test.go")
		for _, spec := range parsed.Imports {
			to := strings.Trim(spec.Path.Value, `"`)
			if why := forbidden(from, to, test); why != "" {
				faults = append(faults, fmt.Sprintf("%s: imports %s: %s", f, to, why))
			}
		}
	}
	return faults
}

// packages lists the folders that hold Go files, tests and generators apart.
func packages(files []string) []string {
	var found []string
	for _, f := range files {
		dir := path.Dir(f)
		if path.Ext(f) != ".go" || strings.HasSuffix(f, "_test.go") || strings.Contains(f, "testdata/") ||
			strings.HasPrefix(dir, "kernels/cpu/gen") || strings.HasPrefix(dir, "deploy/e2e") {
			continue
		}
		if !slices.Contains(found, dir) {
			found = append(found, dir)
		}
	}
	slices.Sort(found)
	return found
}

// table compares the rows of ARCHITECTURE.md's package table («| `path` | …»)
// with the packages there are.
func table(files []string) (faults []string) {
	content, err := os.Open("ARCHITECTURE.md")
	if err != nil {
		return []string{"ARCHITECTURE.md: " + err.Error()}
	}
	defer content.Close()
	var rows []string
	inTable := false
	for lines := bufio.NewScanner(content); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			inTable = strings.Contains(line, "Packages")
		}
		if name, ok := strings.CutPrefix(line, "| `"); ok && inTable {
			rows = append(rows, name[:strings.IndexByte(name, '`')])
		}
	}
	there := packages(files)
	for _, p := range there {
		if !slices.Contains(rows, p) {
			faults = append(faults, "ARCHITECTURE.md: the package table lacks "+p)
		}
	}
	for _, row := range rows {
		if !slices.Contains(there, row) {
			faults = append(faults, "ARCHITECTURE.md: the package table has "+row+", the tree has not")
		}
	}
	return faults
}
