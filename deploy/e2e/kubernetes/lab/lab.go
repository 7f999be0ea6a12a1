//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Addresses exist only inside the lab's namespaces.
const (
	controlIP    = "10.99.0.1"
	firstService = "10.97.0.1"
	services     = "10.97.0.0/24"
	allPods      = "10.98.0.0/16"
	// control is the network namespace of the control plane. Pods, nodes and their
	// NodePorts are reached from it; Services' own addresses are not.
	control = "manta-control"
)

// patience bounds each wait for something of the lab to come up.
const patience = 150 * time.Second

// machine is a node: its processes live in one PID namespace and die with it.
type machine struct {
	name, ip string
	pods     string // its part of the pods' addresses
	space    string // its network namespace
}

// Lab is a running cluster.
type Lab struct {
	tools     *Tools
	dir       string // all state of the running lab
	nodes     []machine
	processes map[string]*process
}

// Nodes are the names of the Kubernetes nodes.
func (l *Lab) Nodes() (names []string) {
	for _, n := range l.nodes {
		names = append(names, n.name)
	}
	return names
}

// NodeIPs are the addresses at which NodePorts are reached, in Nodes' order.
func (l *Lab) NodeIPs() (ips []string) {
	for _, n := range l.nodes {
		ips = append(ips, n.ip)
	}
	return ips
}

func (l *Lab) at(parts ...string) string { return filepath.Join(append([]string{l.dir}, parts...)...) }

// labVariable tells a copy of the owner's program that it runs inside the lab.
const labVariable = "MANTA_LAB"

func newLab(tools *Tools) *Lab {
	l := &Lab{tools: tools, dir: filepath.Join(tools.root, "run"), processes: map[string]*process{}}
	for i := range 2 {
		name := fmt.Sprint("n", i+1)
		l.nodes = append(l.nodes, machine{
			name: name, ip: fmt.Sprint("10.99.0.1", i+1), pods: fmt.Sprintf("10.98.%d.0/24", i+1), space: "manta-" + name,
		})
	}
	return l
}

// Own takes the machine's one lab and makes its network. Then it runs this program
// again, with the same arguments, inside that network, where Enter gives the lab.
// Whatever becomes of it, the machine is put back as it was.
func Own(tools *Tools) (code int, err error) {
	if err := os.MkdirAll(tools.root, 0o755); err != nil {
		return 1, err
	}
	lock, err := os.OpenFile(filepath.Join(tools.root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 1, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return 1, fmt.Errorf("another lab runs in %s", tools.root)
	}
	l := newLab(tools)
	if err := l.clear(); err != nil { // what a killed owner left
		return 1, err
	}
	defer func() { err = errors.Join(err, l.clear(), l.left()) }()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := l.prepare(); err != nil {
		return 1, err
	}
	if err := l.connect(ctx); err != nil {
		return 1, err
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	command := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + control, "--", self}, os.Args[1:]...)...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.Env = append(os.Environ(), labVariable+"=inside")
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = command.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ctx.Err() == nil {
		return max(ended.ExitCode(), 1), nil
	}
	return command.ProcessState.ExitCode(), err
}

// Enter gives the lab in a program that Own has started; elsewhere there is none.
func Enter(tools *Tools) (l *Lab, inside bool) {
	if os.Getenv(labVariable) == "" {
		return nil, false
	}
	return newLab(tools), true
}

// Program is the path of one of the programs that a lab is built of.
func (l *Lab) Program(name string) string { return l.tools.Path(name) }

// Image is the path of an image that nodes load when they start, as `make image`
// makes it.
func (l *Lab) Image(name string) string { return l.at("images", name) }

// Volume is the folder of a volume that every pod may claim and every node sees.
func (l *Lab) Volume(name string) string { return l.at("volumes", name) }

// prepare makes the folders, and notes what clear must restore.
func (l *Lab) prepare() error {
	for _, dir := range []string{"images", "volumes", "logs"} {
		if err := os.MkdirAll(l.at(dir), 0o755); err != nil {
			return err
		}
	}
	settings, err := remember()
	if err != nil {
		return err
	}
	return os.WriteFile(l.at("sysctls"), []byte(settings), 0o600)
}

// Up starts the cluster and returns when all nodes are ready. Volumes are those
// there will be to claim.
func (l *Lab) Up(ctx context.Context, volumes ...string) error {
	for _, start := range []func(context.Context) error{
		func(context.Context) error { return l.issue() }, l.startControl, l.startNodes,
	} {
		if err := start(ctx); err != nil {
			return fmt.Errorf("%w (logs in %s)", err, l.at("logs"))
		}
	}
	return l.Apply(ctx, l.volumes(volumes))
}

// Down ends all processes, the nodes' first. Own does the rest.
func (l *Lab) Down() {
	for _, n := range l.nodes {
		l.stop(n.name)
	}
	for name := range l.processes {
		l.stop(name)
	}
}

// clear removes what is left of a lab whose processes have ended.
func (l *Lab) clear() error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	if _, err := os.Stat(l.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{within(ctx, "removing control groups", 20*time.Second, func() error { return l.removeGroups() })}
	errs = append(errs, l.disconnect(ctx))
	if settings, err := os.ReadFile(l.at("sysctls")); err == nil {
		errs = append(errs, restore(string(settings)))
	}
	// Mounts of the nodes go with their namespaces, a moment after the processes.
	errs = append(errs, within(ctx, "removing "+l.dir, 20*time.Second, func() error { return os.RemoveAll(l.dir) }))
	return errors.Join(errs...)
}

// Command makes a command that runs as admin of the cluster, with the lab's kubectl
// and helm before any other.
func (l *Lab) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if path := l.tools.Path(name); !strings.Contains(name, "/") {
		if _, err := os.Stat(path); err == nil {
			name = path
		}
	}
	command := exec.CommandContext(ctx, name, args...)
	cache := l.at("cache")
	command.Env = append(os.Environ(), "PATH="+l.tools.bin+":"+os.Getenv("PATH"), "KUBECONFIG="+l.Kubeconfig("admin"), "KUBECACHEDIR="+cache,
		"HELM_CACHE_HOME="+cache, "HELM_CONFIG_HOME="+cache, "HELM_DATA_HOME="+cache)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command
}

// Kubectl runs kubectl as admin and gives its output.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	command := l.Command(ctx, "kubectl", args...)
	var said strings.Builder
	command.Stderr = &said
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}

// Apply gives the cluster some YAML.
func (l *Lab) Apply(ctx context.Context, yaml string) error {
	command := l.Command(ctx, "kubectl", "apply", "-f", "-")
	command.Stdin = strings.NewReader(yaml)
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, said)
	}
	return nil
}

// within tries again until something succeeds, at most for so long.
func within(ctx context.Context, what string, limit time.Duration, try func() error) error {
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		case <-ticker.C:
		}
	}
}
