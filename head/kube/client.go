package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// account is where Kubernetes mounts a pod's token.
const account = "/var/run/secrets/kubernetes.io/serviceaccount"

// ErrOutside says that this process runs in no pod with a token.
var ErrOutside = errors.New("kube: this is no pod with a service account's token: set automountServiceAccountToken, or turn the option off")

// API is the Kubernetes API as seen from a pod.
type API struct {
	base      string
	dir       string // of the token, which Kubernetes renews
	namespace string
	http      *http.Client
}

// Inside finds the API of the cluster that this pod runs in.
func Inside() (*API, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, ErrOutside
	}
	return newAPI("https://"+net.JoinHostPort(host, port), account)
}

func newAPI(base, dir string) (*API, error) {
	namespace, err := os.ReadFile(filepath.Join(dir, "namespace"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOutside, err)
	}
	roots, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOutside, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%w: ca.crt has no certificate", ErrOutside)
	}
	return &API{
		base: base, dir: dir, namespace: strings.TrimSpace(string(namespace)),
		http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
		}},
	}, nil
}

// Close drops idle connections.
func (a *API) Close() { a.http.CloseIdleConnections() }

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

// call sends a merge patch, or reads where there is none.
func (a *API) call(ctx context.Context, path string, patch, into any) error {
	token, err := os.ReadFile(filepath.Join(a.dir, "token"))
	if err != nil {
		return fmt.Errorf("kube: %w", err)
	}
	method, body := http.MethodGet, []byte(nil)
	if patch != nil {
		method = http.MethodPatch
		if body, err = json.Marshal(patch); err != nil {
			return fmt.Errorf("kube: %w", err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("kube: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Content-Type", "application/merge-patch+json")
	response, err := a.http.Do(request)
	if err != nil {
		return fmt.Errorf("kube: %w", err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("kube: %s: %w", path, err)
	}
	if response.StatusCode/100 != 2 {
		var status struct{ Message string }
		_ = json.Unmarshal(data, &status) // what is not JSON has no message
		return fmt.Errorf("kube: %s %s: %s: %s", method, path, response.Status, status.Message)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("kube: %s: %w", path, err)
	}
	return nil
}

// FrontProxy gives the authority whose certificates the API server shows when it
// passes questions on, and the names that it may have; none: any.
func (a *API) FrontProxy(ctx context.Context) (*x509.CertPool, []string, error) {
	const path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
	var config struct{ Data map[string]string }
	if err := a.call(ctx, path, nil, &config); err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(config.Data["requestheader-client-ca-file"])) {
		return nil, nil, errors.New("kube: this cluster's API server is not set up for aggregated APIs (requestheader-client-ca-file)")
	}
	var names []string
	if text := config.Data["requestheader-allowed-names"]; text != "" {
		if err := json.Unmarshal([]byte(text), &names); err != nil {
			return nil, nil, fmt.Errorf("kube: requestheader-allowed-names: %w", err)
		}
	}
	return pool, names, nil
}

type scale struct {
	Spec struct {
		Replicas int `json:"replicas"`
	} `json:"spec"`
}

func (a *API) scalePath(statefulSet string) string {
	return "/apis/apps/v1/namespaces/" + a.namespace + "/statefulsets/" + statefulSet + "/scale"
}

// Replicas reads how many pods a StatefulSet is to have.
func (a *API) Replicas(ctx context.Context, statefulSet string) (int, error) {
	var s scale
	err := a.call(ctx, a.scalePath(statefulSet), nil, &s)
	return s.Spec.Replicas, err
}

// SetReplicas changes it.
func (a *API) SetReplicas(ctx context.Context, statefulSet string, replicas int) error {
	var want, got scale
	want.Spec.Replicas = replicas
	return a.call(ctx, a.scalePath(statefulSet), want, &got)
}
