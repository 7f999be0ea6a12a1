//go:build kubernetes && linux

package kubernetes

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
	"manta/internal/trust"
)

// Who lacks the secret reaches nothing: a node with another secret joins no cluster,
// raft and NATS close on it, gossip answers nothing; and the API wants a key.
func TestStrangers(t *testing.T) {
	t.Cleanup(func() { report(t, namespace) })
	c := installed(t)
	for name, bad := range map[string]string{"no key": "", "another key": "not-one-of-the-keys"} {
		stranger := client.New(bad, bases(0)...)
		_, err := stranger.Cluster(t.Context())
		stranger.Close()
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
			t.Errorf("%s: %v", name, err)
		}
	}
	all, err := pods(t.Context(), namespace, headPods)
	if err != nil || len(all) == 0 {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(all[0].Status.PodIP, "7946"), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\x06who is there, in plain text?")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(12 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 64)); n > 0 {
		t.Errorf("gossip answers %d bytes to who has no key (%v)", n, err)
	}

	if err := cluster.Apply(t.Context(), stranger); err != nil {
		t.Fatal(err)
	}
	defer kubectl(t, "-n", namespace, "delete", "pod/stranger", "secret/stranger", "--grace-period=1")
	until(t, "the stranger's complaint", patience, func(ctx context.Context) error {
		logs, err := cluster.Kubectl(ctx, "-n", namespace, "logs", "stranger")
		if err == nil && !strings.Contains(logs, "no member reached") {
			err = fmt.Errorf("%s", logs)
		}
		return err
	})
	err = has(t.Context(), c, func(s *api.ClusterState) bool {
		for _, n := range s.Nodes {
			if strings.HasPrefix(n.ID, "stranger") {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Error("the stranger is in: ", err)
	}
	inside := processOf(t, "stranger")
	for _, secret := range []struct {
		name, lines string
		opens       bool
	}{{"no secret", "", false}, {"another secret", strangersSecret, false}, {"the secret", clusterSecret(t), true}} {
		for _, service := range []struct{ name, port string }{{"raft", "7947"}, {"NATS", "7948"}} {
			err := knockFrom(t.Context(), inside, net.JoinHostPort(all[0].Status.PodIP, service.port), secret.lines)
			if (err == nil) != secret.opens {
				t.Errorf("%s from a pod that has %s: %v", service.name, secret.name, err)
			}
		}
	}
}

// clusterSecret reads what the members know each other by.
func clusterSecret(t *testing.T) string {
	t.Helper()
	encoded := kubectl(t, "-n", namespace, "get", "secret", "manta-cluster", "-o", "jsonpath={.data.secrets}")
	lines, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(lines))
}

// knockVariable tells a copy of this program that it stands in a pod's network, at
// which address it shall knock, and with which secret.
const knockVariable = "MANTA_LAB_KNOCK"

// plain as a secret only connects.
const plain = "-"

// knocks makes this process one that knocks, if it was started as such.
func knocks() {
	address, secret, ok := strings.Cut(os.Getenv(knockVariable), " ")
	if !ok {
		return
	}
	if err := knock(context.Background(), address, secret); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// knockFrom knocks from the network of a process.
func knockFrom(ctx context.Context, pid int, address, secret string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, "nsenter", "--target", fmt.Sprint(pid), "--net", "--", self)
	command.Env = append(os.Environ(), knockVariable+"="+address+" "+secret)
	said, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	return nil
}

// knock tries a TLS session as a head with a secret, or without a certificate. Who
// is let in hears something, or is waited for.
func knock(ctx context.Context, address, secret string) error {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	if secret == plain {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	config := &tls.Config{InsecureSkipVerify: true} // whoever it is, may we talk?
	if secret != "" {
		secrets, err := trust.ParseSecrets([]byte(secret))
		if err != nil {
			return err
		}
		authority, err := trust.NewAuthority(secrets, trust.Identity{Role: trust.Head, ID: "stranger-0"})
		if err != nil {
			return err
		}
		config.GetClientCertificate = authority.Client(trust.Identity{}).GetClientCertificate
	}
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1)) // the refusal comes after the handshake
	var waited net.Error
	if errors.As(err, &waited) && waited.Timeout() {
		return nil
	}
	return err
}

const strangersSecret = "quite another secret than that"

// stranger is a node like any other, with another secret.
const stranger = `apiVersion: v1
kind: Secret
metadata: {name: stranger, namespace: llm}
stringData: {secrets: "` + strangersSecret + `"}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: llm}
spec:
  enableServiceLinks: false
  containers:
  - name: node
    image: manta.test/manta:1
    imagePullPolicy: Never
    args: [node, --name=stranger, --data-dir=/tmp/data, --secret-file=/secret/secrets, --join=manta-head.llm.svc:7946]
    volumeMounts:
    - {name: secret, mountPath: /secret}
  volumes:
  - {name: secret, secret: {secretName: stranger}}
`

// A secret is rotated in three rounds under load; no stream fails, and in the end
// the old one opens nothing.
func TestRotation(t *testing.T) {
	c := installed(t)
	l := startLoad(t, 2)
	defer l.end()
	old, next := clusterSecret(t), "the next secret of this cluster, drawn by hand"
	for _, round := range []struct{ name, lines string }{
		{"add the new secret below", old + "\n" + next}, {"move it to the top", next + "\n" + old}, {"remove the old one", next},
	} {
		l.through(round.name, func(t *testing.T) {
			kubectl(t, "-n", namespace, "patch", "secret", "manta-cluster", "-p",
				fmt.Sprintf(`{"stringData": {"secrets": %q}}`, round.lines+"\n"))
			upgrade(t, "--set", "node.minReadySeconds=2")
			podsReady(t, namespace, headPods, headsOf)
			replicasReady(t, c, 1)
		})
	}
	if now := clusterSecret(t); now != next {
		t.Errorf("the secret is %q", now)
	}
	all, err := pods(t.Context(), namespace, headPods)
	if err != nil || len(all) == 0 {
		t.Fatal(err)
	}
	for _, port := range []string{"7947", "7948"} {
		address := net.JoinHostPort(all[0].Status.PodIP, port)
		if err := knock(t.Context(), address, next); err != nil {
			t.Errorf("port %s with the new secret: %v", port, err)
		}
		if err := knock(t.Context(), address, old); err == nil {
			t.Errorf("port %s with the old secret opens", port)
		}
	}
}
