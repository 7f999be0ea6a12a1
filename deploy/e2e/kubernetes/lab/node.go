//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// nodeVariable tells a copy of the owner's program that it is a node's first process.
const nodeVariable = "MANTA_LAB_NODE"

const pauseImage = "manta.test/pause:1"

// startNodes starts the nodes and waits until pods may land on all of them.
func (l *Lab) startNodes(ctx context.Context) error {
	for _, n := range l.nodes {
		if err := l.StartNode(ctx, n.name); err != nil {
			return err
		}
	}
	return l.NodesReady(ctx)
}

// NodesReady waits until pods may land on every node.
func (l *Lab) NodesReady(ctx context.Context) error {
	return within(ctx, "nodes", patience, func() error {
		for _, n := range l.nodes {
			if err := l.running(n.name); err != nil {
				return err
			}
		}
		out, err := l.Kubectl(ctx, "get", "nodes", "-o", // the taint goes some time after the condition comes
			`jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{.spec.taints}{end}`)
		if err == nil && out != strings.Repeat("True", len(l.nodes)) {
			err = fmt.Errorf("conditions and taints: %s", out)
		}
		return err
	})
}

// StartNode boots a node, or boots it again.
func (l *Lab) StartNode(ctx context.Context, name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := l.Partition(ctx, name, false); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if n.name == name {
			env := []string{nodeVariable + "=" + strings.Join([]string{n.name, n.ip, n.pods, l.dir, l.tools.bin}, " ")}
			return l.start(n.name, n.space, syscall.CLONE_NEWNS|syscall.CLONE_NEWPID, env, self)
		}
	}
	return fmt.Errorf("no node %s", name)
}

// CrashNode ends all of a node's processes at once; it can't be reached any more.
func (l *Lab) CrashNode(ctx context.Context, name string) error {
	err := l.Partition(ctx, name, true)
	l.stop(name)
	return err
}

// Node makes this process a node's first, if the lab started it as such: then it
// never returns. Programs that own a lab call it before anything else.
func Node() {
	words := strings.Fields(os.Getenv(nodeVariable))
	if len(words) != 5 {
		return
	}
	n := &node{name: words[0], ip: words[1], pods: words[2], lab: words[3], bin: words[4]}
	fmt.Fprintln(os.Stderr, n.name, "ended:", n.run())
	os.Exit(1)
}

type node struct {
	name, ip, pods string
	lab, bin       string
}

func (n *node) at(parts ...string) string {
	return filepath.Join(append([]string{n.lab, n.name}, parts...)...)
}

// run starts what a node runs and buries the dead, until one of its own ends.
func (n *node) run() error {
	if err := os.Unsetenv(nodeVariable); err != nil {
		return err
	}
	if err := os.MkdirAll(n.at(), 0o755); err != nil {
		return err
	}
	if err := n.mount(); err != nil {
		return err
	}
	if err := n.group(); err != nil {
		return err
	}
	for path, content := range n.files() {
		if err := os.MkdirAll(filepath.Dir(n.at(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(n.at(path), []byte(content), 0o644); err != nil {
			return err
		}
	}
	containerd, err := n.start("containerd", "-c", n.at("containerd.toml"))
	if err != nil {
		return err
	}
	if err := n.load(); err != nil {
		return err
	}
	proxy, err := n.start(filepath.Join(n.bin, "kube-proxy"), "--config="+n.at("kube-proxy.yaml"))
	if err != nil {
		return err
	}
	kubelet, err := n.start(filepath.Join(n.bin, "kubelet"), "--config="+n.at("kubelet.yaml"),
		"--kubeconfig="+filepath.Join(n.lab, "keys", n.name+".conf"), "--hostname-override="+n.name, "--node-ip="+n.ip,
		"--root-dir="+n.at("kubelet"), "--cert-dir="+n.at("kubelet-keys"))
	if err != nil {
		return err
	}
	for {
		pid, err := syscall.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case pid == containerd || pid == proxy || pid == kubelet:
			return fmt.Errorf("process %d of containerd %d, kube-proxy %d, kubelet %d", pid, containerd, proxy, kubelet)
		}
	}
}

// mount gives the node its own /proc, and its own of the fixed places that
// containerd, runc, network plugins, kubelets and iptables write to.
func (n *node) mount() error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	for _, dir := range []string{"/run", "/var/lib", "/var/log"} {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return nil
}

// group makes the node's control groups.
func (n *node) group() error {
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/tasks")
	if err != nil {
		return err
	}
	for _, tasks := range hierarchies {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(tasks), "manta-"+n.name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile("/sys/fs/cgroup/cpuset/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join("/sys/fs/cgroup/cpuset/manta-"+n.name, name), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// start runs a program that shares this process's output, and gives its number. It
// is waited for with all others.
func (n *node) start(program string, args ...string) (int, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return 0, err
	}
	p, err := os.StartProcess(path, append([]string{path}, args...), &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{nil, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 0, err
	}
	defer p.Release()
	return p.Pid, nil
}

// load imports the lab's images once containerd answers.
func (n *node) load() error {
	ctr := func(args ...string) error {
		out, err := exec.Command("ctr", append([]string{"--address=" + n.at("containerd.sock"), "--namespace=k8s.io"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	err := within(context.Background(), "containerd", patience, func() error { return ctr("version") })
	if err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(n.lab, "images", "*.tar"))
	if err != nil {
		return err
	}
	for _, image := range images {
		if err := ctr("images", "import", image); err != nil {
			return err
		}
	}
	return nil
}

// files are the configurations of a node's programs, by their path in its folder.
func (n *node) files() map[string]string {
	keys := filepath.Join(n.lab, "keys")
	return map[string]string{
		"resolv.conf": "nameserver " + controlIP + "\n",
		"containerd.toml": fmt.Sprintf(`version = 2
root = "%[1]s/containerd"
state = "%[1]s/containerd-state"
[grpc]
  address = "%[1]s/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[3]s"
    conf_dir = "%[1]s/network"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`, n.at(), pauseImage, plugins),
		"network/10-lab.conflist": fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "lab", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
  "dataDir": "%s", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
`, n.at("addresses"), n.pods),
		"kube-proxy.yaml": fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: %s
hostnameOverride: %s
clientConnection: {kubeconfig: %s/proxy.conf}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, allPods, n.name, keys),
		"kubelet.yaml": fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[2]s/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /manta-%[3]s
failCgroupV1: false
containerRuntimeEndpoint: unix://%[1]s/containerd.sock
clusterDNS: [%[4]s]
clusterDomain: cluster.local
resolvConf: %[1]s/resolv.conf
tlsCertFile: %[2]s/%[3]s.crt
tlsPrivateKeyFile: %[2]s/%[3]s.key
oomScoreAdj: 0
failSwapOn: false
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 10
volumePluginDir: %[1]s/volume-plugins
podLogsDir: %[1]s/pod-logs
`, n.at(), keys, n.name, controlIP),
	}
}
