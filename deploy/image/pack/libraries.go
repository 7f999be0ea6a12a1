package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

var errLibrary = errors.New("a library is missing")

// driver are libraries that belong to the machine's driver: its container runtime
// mounts them, and an image that brought its own would not fit the kernel's part.
var driver = []string{"libcuda.so", "libnvidia-ml.so"}

// places are where this machine keeps libraries.
var places = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// libraries adds what a binary loads at its start, and what that loads. A static
// binary adds nothing.
func libraries(binary []byte, found map[string][]byte) error {
	file, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return fmt.Errorf("not a program for Linux: %w", err)
	}
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, segment.Filesz)
		if _, err := segment.ReadAt(name, 0); err != nil {
			return err
		}
		loader := string(bytes.TrimRight(name, "\x00"))
		data, err := os.ReadFile(loader)
		if err != nil {
			return fmt.Errorf("%w: the loader: %w", errLibrary, err)
		}
		found[strings.TrimPrefix(loader, "/")] = data
	}
	needed, err := file.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range needed {
		if err := library(name, file.Machine, found); err != nil {
			return err
		}
	}
	return nil
}

func library(name string, machine elf.Machine, found map[string][]byte) error {
	for _, prefix := range driver {
		if strings.HasPrefix(name, prefix) {
			return nil
		}
	}
	for at := range found {
		if filepath.Base(at) == name {
			return nil
		}
	}
	for _, place := range places {
		data, err := os.ReadFile(filepath.Join(place, name))
		if err != nil {
			continue
		}
		file, err := elf.NewFile(bytes.NewReader(data))
		if err != nil || file.Machine != machine {
			continue
		}
		// The loader looks there whatever the machine it came from calls the folder.
		found["usr/lib/"+name] = data
		return libraries(data, found)
	}
	return fmt.Errorf("%w: %s is in none of %s", errLibrary, name, strings.Join(places, " "))
}
