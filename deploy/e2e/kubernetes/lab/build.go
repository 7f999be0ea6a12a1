//go:build linux

package lab

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Version is the Kubernetes that tools/go.mod pins.
const Version = "v1.34.4"

const helmVersion = "v3.22.0"

// programs are what a lab runs, in the order in which they are built: each next one
// finds more of its packages compiled.
var programs = []struct{ name, pkg string }{
	{"pause", "./pause"},
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
	{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
	{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"},
	{"dns", "./dns"},
	{"policy", "./policy"},
	{"metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server"},
	{"helm", "helm.sh/helm/v3/cmd/helm@" + helmVersion}, // a module that needs none of ours
}

// Tools are the programs in a folder of the user's cache, whose name follows
// tools' go.mod and go.sum: other versions are other folders.
type Tools struct {
	source string // the module that pins them
	root   string // of all labs
	bin    string
}

// Find says where the programs are, or will be. Source is the folder of tools.
// MANTA_K8S_CACHE replaces the user's cache.
func Find(source string) (*Tools, error) {
	source, err := filepath.Abs(source)
	if err != nil {
		return nil, err
	}
	home, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("no cache folder: give MANTA_K8S_CACHE: %w", err)
	}
	digest := sha256.New()
	for _, name := range []string{"go.mod", "go.sum", "dns/main.go", "pause/main.go", "policy/main.go"} {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return nil, err
		}
		digest.Write(data)
	}
	fmt.Fprint(digest, helmVersion, runtime.GOARCH)
	root := cmp.Or(os.Getenv("MANTA_K8S_CACHE"), filepath.Join(home, "manta-k8s"))
	return &Tools{source: source, root: root, bin: filepath.Join(root, "bin-"+hex.EncodeToString(digest.Sum(nil))[:12])}, nil
}

// Path gives the path of a program.
func (t *Tools) Path(name string) string { return filepath.Join(t.bin, name) }

// Unbuilt lists the programs that are not there yet.
func (t *Tools) Unbuilt() (names []string) {
	for _, p := range programs {
		if _, err := os.Stat(t.Path(p.name)); err != nil {
			names = append(names, p.name)
		}
	}
	return names
}

// Build makes what is not there: 12 minutes of two cores when Go's own cache is
// empty. A program appears when it is whole, so it may be ended at any time and
// goes on where it was.
func (t *Tools) Build(ctx context.Context, out io.Writer) error {
	if err := os.MkdirAll(t.bin, 0o755); err != nil {
		return err
	}
	unbuilt := t.Unbuilt()
	for _, p := range programs {
		if !slices.Contains(unbuilt, p.name) {
			continue
		}
		start := time.Now()
		if err := t.build(ctx, p.name, p.pkg); err != nil {
			return err
		}
		fmt.Fprintf(out, "%6.1f s  built %s\n", time.Since(start).Seconds(), p.name)
	}
	return nil
}

func (t *Tools) build(ctx context.Context, name, pkg string) error {
	partial := filepath.Join(t.bin, "partial")
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return err
	}
	args := []string{"build", "-ldflags", linkerFlags(), "-o", filepath.Join(partial, name), pkg}
	if strings.Contains(pkg, "@") {
		args = []string{"install", "-ldflags", "-s -w", pkg}
	}
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = t.source
	command.Env = append(os.Environ(), "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux", "GOBIN="+partial)
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", name, errors.Join(err, ctx.Err()), said)
	}
	return os.Rename(filepath.Join(partial, name), t.Path(name))
}

// linkerFlags tell Kubernetes its version, as its own build does.
func linkerFlags() string {
	var flags strings.Builder
	flags.WriteString("-s -w")
	minor, _, _ := strings.Cut(strings.TrimPrefix(Version, "v1."), ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		fmt.Fprintf(&flags, " -X %s.gitVersion=%s -X %[1]s.gitMajor=1 -X %[1]s.gitMinor=%[3]s -X %[1]s.gitTreeState=clean", pkg, Version, minor)
	}
	return flags.String()
}
