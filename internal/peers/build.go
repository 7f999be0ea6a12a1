package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const llamaVersion = "0.3.36"

// tools is the folder of llama.cpp's programs.
type tools string

func (t tools) path(name string) string { return filepath.Join(string(t), name) }

var programs = []string{"llama-bench", "llama-server", "llama-quantize"}

// build fetches and builds llama.cpp, unless the cache has it.
func build(ctx context.Context, cache string) (tools, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return "", err
	}
	at := filepath.Join(cache, "llama.cpp-"+llamaVersion)
	built := tools(filepath.Join(at, "build", "bin"))
	if built.complete() {
		return built, nil
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return "", err
	}
	fmt.Fprintln(os.Stderr, "building llama.cpp, once: this takes some minutes")
	sdist := filepath.Join(at, "llama_cpp_python-"+llamaVersion+".tar.gz")
	if _, err := os.Stat(sdist); err != nil {
		err := step(ctx, "python3", "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
			"--dest", at, "llama-cpp-python=="+llamaVersion)
		// pip also prepares the package's metadata, which needs build tools; the file is here all the same.
		if _, missing := os.Stat(sdist); missing != nil {
			return "", errors.Join(err, missing)
		}
	}
	if err := unpack(sdist, at); err != nil {
		return "", err
	}
	source := filepath.Join(at, "llama_cpp_python-"+llamaVersion, "vendor", "llama.cpp")
	if err := step(ctx, "cmake", "-S", source, "-B", filepath.Join(at, "build"), "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
		"-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"); err != nil {
		return "", err
	}
	args := []string{"--build", filepath.Join(at, "build"), "--parallel", "2", "--target"}
	if err := step(ctx, "cmake", append(args, programs...)...); err != nil {
		return "", err
	}
	if !built.complete() {
		return "", fmt.Errorf("llama.cpp was built, but %s lacks %s", built, strings.Join(programs, " or "))
	}
	return built, nil
}

func (t tools) complete() bool {
	for _, name := range programs {
		if _, err := os.Stat(t.path(name)); err != nil {
			return false
		}
	}
	return true
}

// step runs a part of the build; what it says goes to standard error.
func step(ctx context.Context, program string, args ...string) error {
	command := exec.CommandContext(ctx, program, args...)
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

// unpack writes the regular files of a .tar.gz below a folder.
func unpack(archive, folder string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", archive, err)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := root.MkdirAll(filepath.Dir(h.Name), 0o755); err != nil {
			return err
		}
		out, err := root.OpenFile(h.Name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fs.FileMode(h.Mode)&0o755|0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		if err := errors.Join(err, out.Close()); err != nil {
			return fmt.Errorf("%s: %s: %w", archive, h.Name, err)
		}
	}
}

// requantize makes the Q4_0 of a file, once.
func (t tools) requantize(ctx context.Context, cache, model string) (string, error) {
	info, err := os.Stat(model)
	if err != nil {
		return "", err
	}
	name := strings.TrimSuffix(filepath.Base(model), ".gguf")
	to := filepath.Join(cache, name+"-"+strconv.FormatInt(info.Size(), 10)+"-as-Q4_0.gguf")
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	part := to + ".part"
	if _, err := output(ctx, t.path("llama-quantize"), "--allow-requantize", model, part, "Q4_0"); err != nil {
		return "", err
	}
	return to, os.Rename(part, to)
}
