package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Port is where the metrics APIs are served.
type Port struct {
	Listener net.Listener
	CertFile string // of the certificate that the APIService's caBundle is for
	KeyFile  string
	// FrontProxy gives who may ask: the API server alone.
	FrontProxy func(context.Context) (*x509.CertPool, []string, error)
	Log        *slog.Logger
}

// trustFor is how long what the API server shows is taken for what it showed.
const trustFor = time.Minute

// Serve answers until ctx ends. Whoever is not the API server is refused before
// anything of a request is read.
func (p *Port) Serve(ctx context.Context, handler http.Handler) error {
	guard := &guard{port: p}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert, VerifyPeerCertificate: guard.verify,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { // read again: it may be renewed
				cert, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
				return &cert, err
			},
		},
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(p.Listener, "", "") }()
	select {
	case err := <-served:
		return fmt.Errorf("kube: metrics API: %w", err)
	case <-ctx.Done():
	}
	err := server.Close()
	<-served
	return err
}

// guard knows the API server by its certificate.
type guard struct {
	port *Port

	mu    sync.Mutex     // guards what follows
	pool  *x509.CertPool // nil: not asked yet
	names []string
	asked time.Time
}

var errStranger = errors.New("kube: only the Kubernetes API server may ask here")

func (g *guard) verify(raw [][]byte, _ [][]*x509.Certificate) error {
	cert, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return fmt.Errorf("%w: %w", errStranger, err)
	}
	pool, names, err := g.trusted()
	if err != nil {
		g.port.Log.Warn("metrics API", "error", err)
		return err
	}
	chain := x509.NewCertPool()
	for _, more := range raw[1:] {
		if c, err := x509.ParseCertificate(more); err == nil {
			chain.AddCert(c)
		}
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: pool, Intermediates: chain, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fmt.Errorf("%w: %w", errStranger, err)
	}
	if len(names) > 0 && !slices.Contains(names, cert.Subject.CommonName) {
		return fmt.Errorf("%w, not %q", errStranger, cert.Subject.CommonName)
	}
	return nil
}

func (g *guard) trusted() (*x509.CertPool, []string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pool == nil || time.Since(g.asked) > trustFor {
		ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		pool, names, err := g.port.FrontProxy(ctx)
		if err != nil && g.pool == nil {
			return nil, nil, err
		}
		if err == nil {
			g.pool, g.names = pool, names
		}
		g.asked = time.Now()
	}
	return g.pool, g.names, nil
}
