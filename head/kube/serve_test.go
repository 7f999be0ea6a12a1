package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// identity is a certificate, of itself or of another.
type identity struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issue(t *testing.T, name string, by *identity) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: by == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{cert, key}
}

func (i *identity) tls() []tls.Certificate {
	return []tls.Certificate{{Certificate: [][]byte{i.cert.Raw}, PrivateKey: i.key}}
}

func (i *identity) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

// files writes what a kubernetes.io/tls Secret has.
func (i *identity) files(t *testing.T) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, data := range map[string][]byte{cert: i.pem(), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// Only the API server may ask: its front proxy's certificate, under its name. The
// authority is read through the API with the pod's token.
func TestOnlyTheAPIServerAsks(t *testing.T) {
	front, other, self := issue(t, "front-proxy-ca", nil), issue(t, "other-ca", nil), issue(t, "manta", nil)
	kubernetes := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token-of-the-pod" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(object{"data": object{
			"requestheader-client-ca-file": string(front.pem()), "requestheader-allowed-names": `["front-proxy"]`,
		}})
	}))
	defer kubernetes.Close()
	dir := t.TempDir()
	for name, data := range map[string]string{
		"token": "token-of-the-pod\n", "namespace": "llm",
		"ca.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: kubernetes.Certificate().Raw})),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	api, err := newAPI(kubernetes.URL, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := self.files(t)
	port := &Port{Listener: listener, CertFile: certFile, KeyFile: keyFile, FrontProxy: api.FrontProxy, Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- port.Serve(ctx, NewMetrics(&heads{})) }()
	roots := x509.NewCertPool()
	roots.AddCert(self.cert)
	for name, test := range map[string]struct {
		shows []tls.Certificate
		ok    bool
	}{
		"the API server":                 {issue(t, "front-proxy", front).tls(), true},
		"another name":                   {issue(t, "somebody", front).tls(), false},
		"another authority":              {issue(t, "front-proxy", other).tls(), false},
		"no certificate":                 {nil, false},
		"one that signs for itself":      {issue(t, "front-proxy", nil).tls(), false},
		"the cluster's own, as a client": {self.tls(), false},
	} {
		t.Run(name, func(t *testing.T) {
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: test.shows}}
			defer transport.CloseIdleConnections()
			client := http.Client{Transport: transport, Timeout: time.Minute}
			answer, err := client.Get("https://" + listener.Addr().String() + "/apis/" + external)
			if test.ok != (err == nil) {
				t.Fatalf("got %v", err)
			}
			if err == nil {
				defer answer.Body.Close()
				if body, err := io.ReadAll(answer.Body); err != nil || !strings.Contains(string(body), "APIResourceList") {
					t.Errorf("%v: %s", err, body)
				}
			}
		})
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
