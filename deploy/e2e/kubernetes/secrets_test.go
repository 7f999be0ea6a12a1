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
	"strings"
	"testing"
	"time"

	"manta/head/api"
	"manta/head/client"
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
	for _, port := range []string{"7947", "7948"} {
		if err := knock(t.Context(), net.JoinHostPort(all[0].Status.PodIP, port)); err == nil {
			t.Errorf("port %s talks to who shows no certificate", port)
		}
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
}

// knock tries a TLS session without a certificate.
func knock(ctx context.Context, address string) error {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // whoever it is, may it talk?
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello\r\n")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1)) // the refusal comes after the handshake
	return err
}

// stranger is a node like any other, with another secret.
const stranger = `apiVersion: v1
kind: Secret
metadata: {name: stranger, namespace: llm}
stringData: {secrets: "quite another secret than that"}
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
	read := func() string {
		encoded := kubectl(t, "-n", namespace, "get", "secret", "manta-cluster", "-o", "jsonpath={.data.secrets}")
		lines, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(lines))
	}
	old, next := read(), "the next secret of this cluster, drawn by hand"
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
	if now := read(); now != next {
		t.Errorf("the secret is %q", now)
	}
}
