//go:build linux

package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one lab.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// newAuthority makes NAME.crt and NAME.key in a folder.
func newAuthority(dir, name string) (*authority, error) {
	a := &authority{dir: dir}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if a.cert, a.key, err = a.sign(name, template); err != nil {
		return nil, err
	}
	return a, nil
}

// leaf makes a certificate that serves and asks, for names and addresses.
func (a *authority) leaf(file, user string, groups []string, hosts ...string) error {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: user, Organization: groups}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	_, _, err := a.sign(file, template)
	return err
}

// sign makes a key and a certificate; without a certificate of its own, the
// authority signs with the new key.
func (a *authority) sign(file string, template *x509.Certificate) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)); err != nil {
		return nil, nil, err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	if err := writePEM(filepath.Join(a.dir, file+".crt"), "CERTIFICATE", der); err != nil {
		return nil, nil, err
	}
	return cert, key, writeKey(filepath.Join(a.dir, file+".key"), key)
}

func writeKey(path string, key crypto.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// users of the cluster have a certificate and a kubeconfig each.
var users = map[string]struct {
	name   string
	groups []string
}{
	"admin":              {"admin", []string{"system:masters"}},
	"controller-manager": {"system:kube-controller-manager", nil},
	"scheduler":          {"system:kube-scheduler", nil},
	"proxy":              {"system:kube-proxy", nil},
}

// issue makes all keys of a lab: the cluster's authority, the aggregation layer's,
// and what each process shows.
func (l *Lab) issue() error {
	dir := l.at("keys")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cluster, err := newAuthority(dir, "ca")
	if err != nil {
		return err
	}
	front, err := newAuthority(dir, "front-proxy-ca")
	if err != nil {
		return err
	}
	if err := front.leaf("front-proxy", "front-proxy", nil); err != nil {
		return err
	}
	err = cluster.leaf("apiserver", "kube-apiserver", nil, "127.0.0.1", controlIP, firstService, "localhost", "kubernetes",
		"kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return err
	}
	if err := cluster.leaf("apiserver-kubelet", "apiserver-kubelet", []string{"system:masters"}); err != nil {
		return err
	}
	for file, user := range users {
		if err := cluster.leaf(file, user.name, user.groups); err != nil {
			return err
		}
		if err := l.kubeconfig(file); err != nil {
			return err
		}
	}
	for _, n := range l.nodes {
		if err := cluster.leaf(n.name, "system:node:"+n.name, []string{"system:nodes"}, n.ip, n.name); err != nil {
			return err
		}
		if err := l.kubeconfig(n.name); err != nil {
			return err
		}
	}
	tokens, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(tokens.Public())
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "tokens.pub"), "PUBLIC KEY", der); err != nil {
		return err
	}
	return writeKey(filepath.Join(dir, "tokens.key"), tokens)
}

// Kubeconfig is the path of a user's: admin is everyone's who tests.
func (l *Lab) Kubeconfig(user string) string { return l.at("keys", user+".conf") }

func (l *Lab) kubeconfig(user string) error {
	return os.WriteFile(l.Kubeconfig(user), fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://%s:6443", certificate-authority: %[2]s/ca.crt}}]
users: [{name: %[3]s, user: {client-certificate: %[2]s/%[3]s.crt, client-key: %[2]s/%[3]s.key}}]
contexts: [{name: lab, context: {cluster: lab, user: %[3]s}}]
current-context: lab
`, controlIP, l.at("keys"), user), 0o600)
}
