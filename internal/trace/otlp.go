package trace

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"manta/internal/version"
)

// client sends spans by OTLP over HTTP. OpenTelemetry's own (otlptracehttp) imports
// gRPC with the collector's service, which makes the program 7.0 MB larger; with this
// one the rest of the SDK is 0.6 MB. It reads the same variables.
type client struct {
	endpoint string
	headers  map[string]string
	zipped   bool
	timeout  time.Duration // of one batch, attempts and the pauses between them together
	http     *http.Client
}

var _ otlptrace.Client = (*client)(nil)

const (
	defaultTimeout = 10 * time.Second
	firstPause     = 500 * time.Millisecond
	// maxAnswer bounds what is read of an answer, to use its connection again.
	maxAnswer = 64 << 10
)

// variable reads OTEL_EXPORTER_OTLP_TRACES_NAME, or else OTEL_EXPORTER_OTLP_NAME.
func variable(name string) (value, from string) {
	for _, from := range []string{"OTEL_EXPORTER_OTLP_TRACES_" + name, "OTEL_EXPORTER_OTLP_" + name} {
		if value := strings.TrimSpace(os.Getenv(from)); value != "" {
			return value, from
		}
	}
	return "", ""
}

// newClient makes a client of an endpoint and the environment, or none.
func newClient(endpoint string) (*client, error) {
	from := "--otlp-traces-endpoint"
	if endpoint == "" {
		if endpoint, from = variable("ENDPOINT"); endpoint == "" {
			return nil, nil
		}
		if from == "OTEL_EXPORTER_OTLP_ENDPOINT" { // of all signals: each has its path below it
			endpoint = strings.TrimSuffix(endpoint, "/") + "/v1/traces"
		}
	}
	if where, err := url.Parse(endpoint); err != nil || where.Host == "" || where.Scheme != "http" && where.Scheme != "https" {
		return nil, fmt.Errorf("%s %s: give a URL that takes OTLP over HTTP, such as http://localhost:4318/v1/traces", from, endpoint)
	}
	if protocol, from := variable("PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		return nil, fmt.Errorf("%s=%s: traces are sent by http/protobuf alone: give that, and the endpoint's port for it (4318)", from, protocol)
	}
	c := &client{endpoint: endpoint, headers: map[string]string{}, timeout: defaultTimeout}
	list, from := variable("HEADERS")
	for pair := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if name = strings.TrimSpace(name); !ok || name == "" || err != nil {
			return nil, fmt.Errorf("%s: give NAME=VALUE pairs with commas between them", from) // values may be secret
		}
		c.headers[name] = value
	}
	if value, from := variable("TIMEOUT"); value != "" {
		ms, err := strconv.Atoi(value)
		if err != nil || ms < 1 {
			return nil, fmt.Errorf("%s=%s: give milliseconds, at least 1", from, value)
		}
		c.timeout = time.Duration(ms) * time.Millisecond
	}
	switch value, from := variable("COMPRESSION"); value {
	case "", "none":
	case "gzip":
		c.zipped = true
	default:
		return nil, fmt.Errorf("%s=%s: give gzip or none", from, value)
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConns: 2, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true}
	if file, from := variable("CERTIFICATE"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: %s holds no certificate in PEM", from, file)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// Start implements otlptrace.Client.
func (c *client) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (c *client) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces implements otlptrace.Client. It asks again, after pauses that double,
// where the receiver or the way to it may come back.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// On the wire TracesData is the collector's ExportTraceServiceRequest.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	if c.zipped {
		var small bytes.Buffer
		w := gzip.NewWriter(&small)
		if _, err := w.Write(body); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		body = small.Bytes()
	}
	ctx, stop := context.WithTimeout(ctx, c.timeout)
	defer stop()
	for pause := firstPause; ; pause *= 2 {
		wait, err := c.post(ctx, body)
		if err == nil || wait < 0 {
			return err
		}
		select {
		case <-time.After(cmp.Or(wait, pause)):
		case <-ctx.Done():
			return fmt.Errorf("%w, after %w", ctx.Err(), err)
		}
	}
}

// post sends a batch once. After an error, wait is how long the receiver asks to be
// left alone, 0 if it does not say, and less if asking again is of no use.
func (c *client) post(ctx context.Context, body []byte) (wait time.Duration, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint, bytes.NewReader(body))
	if err != nil {
		return -1, err
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	request.Header.Set("User-Agent", "manta/"+version.String())
	if c.zipped {
		request.Header.Set("Content-Encoding", "gzip")
	}
	for name, value := range c.headers {
		request.Header.Set(name, value)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode/100 == 2 {
		return 0, nil
	}
	err = errors.Join(fmt.Errorf("%s answers %s: %.200q", c.endpoint, answer.Status, said), err)
	switch answer.StatusCode { // those that OTLP/HTTP lists as worth trying again
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After")) // 0 where it is absent
		return time.Duration(max(0, seconds)) * time.Second, err
	}
	return -1, err
}
