//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"manta/deploy/e2e/kubernetes/lab"
	"manta/runtime/weights"
)

var (
	build = flag.Duration("build", 0, "only build what Kubernetes is made of, within this time")
	need  = flag.Bool("need", false, "fail where the machine can't run Kubernetes")
)

// cluster is the lab that all tests share.
var cluster *lab.Lab

func TestMain(m *testing.M) {
	lab.Node()
	knocks()
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e-k8s:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	tools, err := lab.Find("tools")
	if err != nil {
		return 1, err
	}
	if l, inside := lab.Enter(tools); inside {
		return within(m, l)
	}
	if *build > 0 {
		ctx, stop := context.WithTimeout(context.Background(), *build)
		defer stop()
		return 0, tools.Build(ctx, os.Stdout)
	}
	why := lab.Missing()
	if unbuilt := tools.Unbuilt(); why == "" && len(unbuilt) > 0 {
		why = fmt.Sprintf("these programs are not built yet (make k8s-tools): %v", unbuilt)
	}
	if why != "" {
		return skip(why), nil
	}
	return lab.Own(tools)
}

// skip says why nothing is tested.
func skip(why string) (code int) {
	fmt.Println("SKIPPED, nothing was tested on Kubernetes:", why)
	if *need {
		return 1
	}
	return 0
}

// volumes hold the model, and whatever a pod that claims one puts beside it.
var volumes = []string{"v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12"}

// within starts the cluster, runs the tests, and ends it.
func within(m *testing.M, l *lab.Lab) (int, error) {
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	defer l.Down()
	start := time.Now()
	for image, binaries := range map[string][]string{
		"manta.test/pause:1": {l.Program("pause")},
		"manta.test/manta:1": {"dist/k8s/1/manta", "dist/linux/manta-declare"},
		newImage:             {"dist/k8s/2/manta", "dist/linux/manta-declare"},
		baseImage:            {"dist/k8s/0/manta", "dist/linux/manta-declare"},
		exampleImage:         {"dist/k8s/1/manta", "dist/linux/manta-declare"},
	} {
		if image == baseImage && !fileThere(filepath.Join(root, binaries[0])) {
			fmt.Println("no upgrade from an earlier commit: there is no dist/k8s/0 (make e2e-k8s BASE=COMMIT)")
			continue
		}
		if err := pack(ctx, l.Image(filepath.Base(image)+".tar"), image, binaries); err != nil {
			return 1, err
		}
	}
	if err := stock(ctx, l); err != nil {
		return 1, err
	}
	if err := l.Up(ctx, volumes...); err != nil { // before anything of ours runs
		return skip(fmt.Sprint("Kubernetes does not start here: ", err)), nil
	}
	fmt.Printf("%5.1f s  Kubernetes %s with nodes %v\n", time.Since(start).Seconds(), lab.Version, l.Nodes())
	cluster = l
	if err := listenForTraces(); err != nil {
		return 1, err
	}
	code := m.Run()
	return code, measured.print(os.Stdout)
}

// Images of the chart: the one that is installed and the same again under another
// version; and one of an earlier commit, where it was built.
const (
	newImage  = "manta.test/manta:2"
	baseImage = "manta.test/manta:0"
)

func fileThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// root is the repository's.
const root = "../../.."

func pack(ctx context.Context, file, image string, binaries []string) error {
	args := append([]string{"run", "./deploy/image/pack", "-name", image, "-out", file}, binaries...)
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = root
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("packing %s: %w: %s", image, err, said)
	}
	return nil
}

// stock puts SmolLM2 on every volume.
func stock(ctx context.Context, l *lab.Lab) error {
	reference, err := weights.ParseReference("smollm2")
	if err != nil {
		return err
	}
	model, err := weights.NewLibrary("").Pull(ctx, reference, func(weights.Progress) {})
	if err != nil {
		return err
	}
	for i, name := range volumes {
		dir := l.Volume(name)
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o777); err != nil { // whatever the umask is
			return err
		}
		to := filepath.Join(dir, "smollm2.gguf")
		if i == 0 {
			err = copyFile(model.Path, to)
		} else {
			err = os.Link(filepath.Join(l.Volume(volumes[0]), "smollm2.gguf"), to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
