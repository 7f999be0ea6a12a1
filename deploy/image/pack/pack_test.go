package main

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// roots writes a file with one certificate.
func roots(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(4e9, 0), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// program writes the smallest static ELF file: a header and no segment.
func program(t *testing.T, name string) string {
	t.Helper()
	header := make([]byte, 64)
	copy(header, "\x7fELF\x02\x01\x01")
	header[16], header[18], header[20] = 2, 62, 1
	header[52], header[54], header[58] = 64, 56, 64
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, header, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func entries(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// Both readers of the archive find the same blobs, each under its own digest, and
// the layer holds the program and what it needs to run without root.
func TestArchive(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	if err := run([]string{"-name", "manta:v1", "-arch", "amd64", "-ca", roots(t), "-out", out, program(t, "manta"), program(t, "manta-declare")}, io.Discard); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	all := entries(t, data)
	for name, blob := range all {
		if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if sum := sha256.Sum256(blob); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("%s has another digest", name)
			}
		}
	}
	var docker []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if json.Unmarshal(all["manifest.json"], &docker) != nil || json.Unmarshal(all["index.json"], &index) != nil ||
		json.Unmarshal(all[index.Manifests[0].path()], &manifest) != nil {
		t.Fatalf("manifests: %s %s", all["manifest.json"], all["index.json"])
	}
	if docker[0].RepoTags[0] != "manta:v1" || index.Manifests[0].Annotations["io.containerd.image.name"] != "docker.io/library/manta:v1" {
		t.Errorf("names: %v %v", docker[0].RepoTags, index.Manifests[0].Annotations)
	}
	if docker[0].Config != manifest.Config.path() || docker[0].Layers[0] != manifest.Layers[0].path() {
		t.Error("the two manifests name different blobs")
	}
	var config struct {
		Config struct {
			User       string
			Entrypoint []string
		} `json:"config"`
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(all[docker[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" || config.Config.Entrypoint[0] != "/manta" || config.Rootfs.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Errorf("config: %+v", config)
	}
	layer := entries(t, all[docker[0].Layers[0]])
	for _, name := range []string{"manta", "manta-declare", "etc/passwd", "etc/ssl/certs/ca-certificates.crt", "tmp/", "data/", "models/"} {
		if _, ok := layer[name]; !ok {
			t.Errorf("the layer lacks %s", name)
		}
	}
}

// The same input gives the same image: a digest says what runs.
func TestArchiveIsReproducible(t *testing.T) {
	ca, binary := roots(t), program(t, "manta")
	var images [][]byte
	for range 2 {
		out := filepath.Join(t.TempDir(), "image.tar")
		if err := run([]string{"-ca", ca, "-out", out, binary}, io.Discard); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, data)
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two images of one input differ")
	}
}

// What can't make a working image is refused before anything is written.
func TestRefused(t *testing.T) {
	ca, binary := roots(t), program(t, "manta")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no binary":       {[]string{"-ca", ca, "-out", "x"}, "usage"},
		"no output":       {[]string{"-ca", ca, binary}, "usage"},
		"no certificate":  {[]string{"-ca", empty, "-out", "x", binary}, "has no certificate"},
		"not a program":   {[]string{"-ca", ca, "-out", "x", empty}, "not a program for Linux"},
		"too large":       {[]string{"-ca", ca, "-out", "x", "-max-mb", "0.0001", binary}, "more than"},
		"the same binary": {[]string{"-ca", ca, "-out", "x", binary, binary}, "two files of one name: /manta"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := run(test.args, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// The folder for the Dockerfile holds the same files as the layer.
func TestRootfs(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	if err := run([]string{"-ca", roots(t), "-rootfs", root, program(t, "manta")}, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"tmp", "data", "models"} {
		info, err := os.Stat(filepath.Join(root, dir))
		if err != nil || info.Mode()&os.ModeSticky == 0 || info.Mode().Perm() != 0o777 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
	if info, err := os.Stat(filepath.Join(root, "manta")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("manta: %v, %v", info, err)
	}
}
