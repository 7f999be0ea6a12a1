package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// user runs the program. The number is that of distroless images; the chart's
// runAsUser is the same.
const user = 65532

var (
	errRoots = errors.New("no roots of trust")
	errTaken = errors.New("two files of one name")
)

// file is a file or a folder of the layer, owned by root.
type file struct {
	path string // without a leading slash
	mode int64
	data []byte
	dir  bool
}

// tree is all that an image holds, in the order of its paths.
type tree struct {
	files   []file
	dynamic bool // a binary loads libraries
}

// contents reads what the image is made of.
func contents(roots string, binaries []string) (*tree, error) {
	pem, err := os.ReadFile(roots)
	if err != nil {
		return nil, fmt.Errorf("-ca: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("-ca: %w: %s has no certificate", errRoots, roots)
	}
	t := &tree{files: []file{
		{path: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: pem},
		{path: "etc/passwd", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:0:root:/:/none\nmanta:x:%d:%d:manta:/tmp:/none\n", user, user)},
		{path: "etc/group", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:\nmanta:x:%d:\n", user)},
		{path: "etc/nsswitch.conf", mode: 0o644, data: []byte("hosts: files dns\n")},
		// Open to any user: some clusters choose the number themselves.
		{path: "tmp", mode: 0o1777, dir: true},
		{path: "data", mode: 0o1777, dir: true},
		{path: "models", mode: 0o1777, dir: true},
	}}
	needed := map[string][]byte{} // by path in the image
	for _, binary := range binaries {
		data, err := os.ReadFile(binary)
		if err != nil {
			return nil, err
		}
		t.files = append(t.files, file{path: filepath.Base(binary), mode: 0o755, data: data})
		if err := libraries(data, needed); err != nil {
			return nil, fmt.Errorf("%s: %w", binary, err)
		}
	}
	t.dynamic = len(needed) > 0
	for name, data := range needed {
		t.files = append(t.files, file{path: name, mode: 0o755, data: data})
	}
	return t, t.complete()
}

// complete adds the folders of all files and sorts.
func (t *tree) complete() error {
	known := map[string]bool{}
	for _, f := range t.files {
		if known[f.path] {
			return fmt.Errorf("%w: /%s", errTaken, f.path)
		}
		known[f.path] = true
	}
	for _, f := range slices.Clone(t.files) {
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			if !known[dir] {
				known[dir] = true
				t.files = append(t.files, file{path: dir, mode: 0o755, dir: true})
			}
		}
	}
	slices.SortFunc(t.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return nil
}

func (t *tree) size() (bytes int64) {
	for _, f := range t.files {
		bytes += int64(len(f.data))
	}
	return bytes
}

// layer is the tree as a tar. Times are zero: the same files give the same digest.
func (t *tree) layer() ([]byte, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, f := range t.files {
		header := &tar.Header{
			Name: f.path, Mode: f.mode, Size: int64(len(f.data)),
			Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		}
		if f.dir {
			header.Name, header.Typeflag = f.path+"/", tar.TypeDir
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buffer.Bytes(), err
}

// write puts the tree into a folder.
func (t *tree) write(root string) error {
	if left, err := os.ReadDir(root); err == nil && len(left) > 0 {
		return fmt.Errorf("-rootfs: %s is not empty", root)
	}
	for _, f := range t.files {
		at := filepath.Join(root, filepath.FromSlash(f.path))
		if f.dir {
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
		} else if err := writeFile(at, f.data); err != nil {
			return err
		}
		mode := os.FileMode(f.mode & 0o777)
		if f.mode&0o1000 != 0 {
			mode |= os.ModeSticky
		}
		if err := os.Chmod(at, mode); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(name string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, bytes.NewReader(data))
	return err
}
