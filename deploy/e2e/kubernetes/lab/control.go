//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// startControl starts the control plane and waits until it is ready.
func (l *Lab) startControl(ctx context.Context) error {
	key := func(name string) string { return l.at("keys", name) }
	if err := l.run("etcd", "--data-dir="+l.at("etcd"), "--unsafe-no-fsync", "--log-level=warn"); err != nil {
		return err
	}
	err := l.run("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--advertise-address="+controlIP,
		"--service-cluster-ip-range="+services, "--allow-privileged=true", "--authorization-mode=Node,RBAC",
		"--feature-gates=HPAScaleToZero=true",
		"--tls-cert-file="+key("apiserver.crt"), "--tls-private-key-file="+key("apiserver.key"), "--client-ca-file="+key("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+key("tokens.pub"), "--service-account-signing-key-file="+key("tokens.key"),
		// By name, logs and exec would wait for a DNS that the apiserver has not.
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority="+key("ca.crt"),
		"--kubelet-client-certificate="+key("apiserver-kubelet.crt"), "--kubelet-client-key="+key("apiserver-kubelet.key"),
		// It calls the pods of aggregated APIs themselves: nothing serves Services here.
		"--enable-aggregator-routing=true",
		"--proxy-client-cert-file="+key("front-proxy.crt"), "--proxy-client-key-file="+key("front-proxy.key"),
		"--requestheader-client-ca-file="+key("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-")
	if err != nil {
		return err
	}
	err = within(ctx, "kube-apiserver", patience, func() error {
		_, err := l.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
	if err != nil {
		return err
	}
	err = l.run("kube-controller-manager", "--kubeconfig="+l.Kubeconfig("controller-manager"), "--leader-elect=false",
		"--feature-gates=HPAScaleToZero=true",
		"--service-account-private-key-file="+key("tokens.key"), "--root-ca-file="+key("ca.crt"), "--use-service-account-credentials",
		"--flex-volume-plugin-dir="+l.at("flex"), "--node-monitor-period=2s", "--node-monitor-grace-period=16s",
		"--horizontal-pod-autoscaler-sync-period=3s", "--horizontal-pod-autoscaler-downscale-stabilization=10s")
	if err != nil {
		return err
	}
	if err := l.run("kube-scheduler", "--kubeconfig="+l.Kubeconfig("scheduler"), "--leader-elect=false"); err != nil {
		return err
	}
	names := l.at("names.conf")
	if err := os.WriteFile(names, fmt.Appendf(nil, `cluster.local in-addr.arpa {
  bind %[1]s
  errors
  cache 1
  kubernetes {
    kubeconfig %[2]s lab
    pods insecure
    ttl 1
  }
}
. {
  bind %[1]s
  template ANY ANY {
    rcode NXDOMAIN
  }
}
`, controlIP, l.Kubeconfig("admin")), 0o600); err != nil {
		return err
	}
	return l.run("dns", "-conf", names)
}

// run starts one of the control plane's programs.
func (l *Lab) run(program string, args ...string) error {
	return l.start(program, control, 0, nil, l.tools.Path(program), args...)
}

// EnforcePolicies makes the nodes obey NetworkPolicies, until IgnorePolicies. Pods'
// connections that are there already stay.
func (l *Lab) EnforcePolicies(ctx context.Context) error {
	args := []string{"-kubeconfig", l.Kubeconfig("admin")}
	for _, n := range l.nodes {
		args = append(args, n.name+"=/run/netns/"+n.space)
	}
	if err := l.run("policy", args...); err != nil {
		return err
	}
	return within(ctx, "policies", patience, func() error {
		if err := l.running("policy"); err != nil {
			return err
		}
		said, err := os.ReadFile(l.at("logs", "policy.log"))
		if err == nil && strings.Count(string(said), "enforced") < len(l.nodes) {
			err = fmt.Errorf("said so far: %s", said)
		}
		return err
	})
}

// IgnorePolicies takes EnforcePolicies back.
func (l *Lab) IgnorePolicies() error { return l.ask("policy") }

// MetricsServer starts the server of metrics.k8s.io: usage of CPU and memory.
func (l *Lab) MetricsServer(ctx context.Context) error {
	admin := l.Kubeconfig("admin")
	err := l.run("metrics-server", "--kubeconfig="+admin, "--authentication-kubeconfig="+admin, "--authorization-kubeconfig="+admin,
		"--secure-port=4443", "--cert-dir="+l.at("metrics-server"), "--kubelet-certificate-authority="+l.at("keys", "ca.crt"),
		"--kubelet-preferred-address-types=InternalIP", "--metric-resolution=10s", "--kubelet-request-timeout=5s")
	if err != nil {
		return err
	}
	return l.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec: {ports: [{name: https, port: 443, targetPort: 4443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: metrics-server-1, namespace: kube-system, labels: {kubernetes.io/service-name: metrics-server}}
addressType: IPv4
ports: [{name: https, port: 4443}]
endpoints: [{addresses: [%s], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: metrics-server, namespace: kube-system}
`, controlIP))
}

// volumes describes the default class, whose volumes all nodes see, and the volumes.
func (l *Lab) volumes(names []string) string {
	var yaml strings.Builder
	yaml.WriteString(`apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
`)
	for _, name := range names {
		fmt.Fprintf(&yaml, `---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s, labels: {volume: %[1]s}}
spec:
  capacity: {storage: 50Gi}
  storageClassName: standard
  accessModes: [ReadWriteOnce, ReadWriteMany]
  hostPath: {path: %[2]s}
`, name, l.Volume(name))
	}
	return yaml.String()
}
