// Package client is the Go client of the head's HTTP API. Its streams go on by
// themselves when a head dies: they repeat the request with the last event's id,
// at the next address, and give each piece once.
//
// Whoever makes a Client may share it; it keeps nothing but connections. It
// works with any OpenAI-compatible server, whose streams then end when cut.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"manta/head/api"
)

// Client talks to the heads of one cluster.
type Client struct {
	bases []string
	first atomic.Int64 // index in bases of the head that answered last
	key   string
	http  *http.Client
}

// Error is an answer that is not a success.
type Error struct {
	Status     int
	Message    string
	RetryAfter time.Duration // 0: the server said nothing
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the server answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("%s (%d)", e.Message, e.Status)
}

// dialTimeout bounds how long a machine may not answer at all; where there is another
// head, that is asked after dialTimeoutOfMany.
const (
	dialTimeout       = 5 * time.Second
	dialTimeoutOfMany = 1500 * time.Millisecond
)

// New makes a client of the heads at some addresses (http://host:port, or host:port). The
// first is asked first, then whichever answered last; the others when it fails. The
// key may be empty.
func New(key string, bases ...string) *Client {
	c := &Client{key: key}
	for _, base := range bases {
		if !strings.Contains(base, "://") {
			base = "http://" + base
		}
		c.bases = append(c.bases, strings.TrimSuffix(strings.TrimRight(base, "/"), "/v1"))
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 1024
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	if len(bases) > 1 {
		dialer.Timeout = dialTimeoutOfMany
	}
	transport.DialContext = dialer.DialContext
	c.http = &http.Client{Transport: transport}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get reads JSON from a path.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

// Post sends JSON to a path and reads the answer.
func (c *Client) Post(ctx context.Context, path string, body, into any) error {
	return c.call(ctx, http.MethodPost, path, body, into)
}

// Patch changes a part of what is at a path.
func (c *Client) Patch(ctx context.Context, path string, body, into any) error {
	return c.call(ctx, http.MethodPatch, path, body, into)
}

// DeploymentPath is where a deployment is; its name may have slashes.
func DeploymentPath(name string) string {
	return "/api/cluster/deployments/" + url.PathEscape(name)
}

// Delete removes what is at a path.
func (c *Client) Delete(ctx context.Context, path string) error {
	return c.call(ctx, http.MethodDelete, path, nil, nil)
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	var failure error
	for at := range c.all() {
		response, err := c.send(ctx, at, method, path, data, nil)
		if err != nil {
			if ctx.Err() != nil || answered(err) && !unavailable(err) {
				return err
			}
			if !answered(failure) { // what a head says tells more than that another is not there
				failure = err
			}
			continue // no one is there, or it stops; ask the next head
		}
		defer response.Body.Close()
		switch into := into.(type) {
		case nil:
			return nil
		case *string:
			text, err := io.ReadAll(io.LimitReader(response.Body, maxText))
			*into = string(text)
			return err
		}
		if err := json.NewDecoder(response.Body).Decode(into); err != nil {
			return fmt.Errorf("%s: the answer is not JSON: %w", path, err)
		}
		return nil
	}
	return failure
}

// maxText bounds an answer that is plain text.
const maxText = 64 << 20

// Text reads plain text from a path.
func (c *Client) Text(ctx context.Context, path string) (text string, err error) {
	err = c.call(ctx, http.MethodGet, path, nil, &text)
	return text, err
}

// answered reports whether a server gave the error, rather than no one.
func answered(err error) bool {
	var refused *Error
	return errors.As(err, &refused)
}

// unavailable reports whether a server said that it can't answer at the moment.
func unavailable(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Status == http.StatusServiceUnavailable
}

// all gives the indices of all heads, the one that answered last first.
func (c *Client) all() iter.Seq[int] {
	first := int(c.first.Load())
	return func(yield func(int) bool) {
		for i := range c.bases {
			if !yield((first + i) % len(c.bases)) {
				return
			}
		}
	}
}

// send gives a successful response of a head, whose body the caller closes.
func (c *Client) send(ctx context.Context, at int, method, path string, body []byte, header http.Header) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.bases[at]+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, header)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		request.Header.Set("Authorization", "Bearer "+c.key)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 == 2 {
		c.first.Store(int64(at))
		return response, nil
	}
	defer response.Body.Close()
	return nil, readError(response)
}

// maxErrorBody bounds what is read of an answer that is no success.
const maxErrorBody = 64 << 10

func readError(response *http.Response) error {
	failure := &Error{Status: response.StatusCode}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxErrorBody))
	if err != nil {
		return failure
	}
	var body struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
	}
	if json.Unmarshal(data, &body) == nil {
		failure.Message = body.Message
		var inner struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(body.Error, &inner) == nil && inner.Message != "" {
			failure.Message = inner.Message
		}
	}
	if after, err := time.ParseDuration(response.Header.Get("Retry-After") + "s"); err == nil {
		failure.RetryAfter = after
	}
	return failure
}

// Models gives the names that the cluster serves.
func (c *Client) Models(ctx context.Context) ([]string, error) {
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := c.Get(ctx, "/v1/models", &list); err != nil {
		return nil, err
	}
	var names []string
	for _, model := range list.Data {
		names = append(names, model.ID)
	}
	return names, nil
}

// Cluster gives the state of heads, nodes and deployments.
func (c *Client) Cluster(ctx context.Context) (*api.ClusterState, error) {
	var state api.ClusterState
	if err := c.Get(ctx, "/api/cluster", &state); err != nil {
		return nil, err
	}
	return &state, nil
}
