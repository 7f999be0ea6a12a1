package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"manta/runtime/weights/disk"
)

const (
	attempts       = 6 // in a row without a megabyte gained
	firstPause     = 500 * time.Millisecond
	longestPause   = 30 * time.Second
	longestRequest = 5 * time.Minute // a longer Retry-After is an error, not a wait
	headerTimeout  = 30 * time.Second
	maxAnswer      = 64 << 20 // of the API
	maxRedirects   = 10
)

// A Hub is one endpoint with one cache. It may be used by many goroutines.
type Hub struct {
	options  Options
	endpoint *url.URL
	follow   *http.Client // follows redirects
	stay     *http.Client // follows them on the endpoint's host alone
	idle     time.Duration
	// pause waits between attempts; tests replace it.
	pause func(context.Context, time.Duration) error
}

// New gives a Hub for options. Close it when done.
func New(o Options) (*Hub, error) {
	endpoint, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("hub: endpoint: %w", err)
	}
	if o.Cache == "" {
		return nil, errors.New("hub: no cache folder: set HF_HOME or name one with --download-dir")
	}
	plain := http.DefaultTransport.(*http.Transport).Clone() // with the environment's proxy
	plain.ResponseHeaderTimeout = headerTimeout
	// HTTP/2 would put all files of a pull into one TCP connection.
	plain.Protocols = new(http.Protocols)
	plain.Protocols.SetHTTP1(true)
	transport := &bearer{endpoint: endpoint, token: o.Token, next: plain}
	h := &Hub{options: o, endpoint: endpoint, idle: headerTimeout, pause: pause}
	h.follow = &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("%d redirects", len(via))
		}
		if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
			return fmt.Errorf("redirect from https to %s", r.URL.Scheme)
		}
		return nil
	}}
	h.stay = &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		// A repository that moved is followed; content elsewhere is described here.
		if !transport.home(r.URL) || r.Response.Header.Get("X-Linked-Etag") != "" {
			return http.ErrUseLastResponse
		}
		return h.follow.CheckRedirect(r, via)
	}}
	return h, nil
}

// Close gives back idle connections.
func (h *Hub) Close() {
	h.follow.Transport.(*bearer).next.CloseIdleConnections()
}

// bearer adds the token to requests for the endpoint's own host. It sits below
// redirects, so that no redirect can carry the token away: not to a content
// network, not to a subdomain, not to another port.
type bearer struct {
	endpoint *url.URL
	token    string
	next     *http.Transport
}

func (b *bearer) home(u *url.URL) bool {
	return u.Scheme == b.endpoint.Scheme && strings.EqualFold(u.Host, b.endpoint.Host)
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context()) // a RoundTripper may not change the request
	r.Header.Del("Authorization")
	r.Header.Set("User-Agent", "manta")
	if b.token != "" && b.home(r.URL) {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// info is what the hub's API says of a revision.
type info struct {
	SHA      string `json:"sha"`
	Siblings []struct {
		Name string `json:"rfilename"`
		Size *int64 `json:"size"`
		LFS  *struct {
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"lfs"`
	} `json:"siblings"`
}

// revision asks what a revision stands for and which files it has. tries bounds
// the attempts.
func (h *Hub) revision(ctx context.Context, req Request, tries int) (info, error) {
	u := h.endpoint.JoinPath("api", "models", req.Repository, "revision", url.PathEscape(req.revision()))
	u.RawQuery = "blobs=true"
	var answer info
	err := h.retry(ctx, tries, func() error {
		response, err := h.send(ctx, h.follow, http.MethodGet, u, nil)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return status(response)
		}
		data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &answer); err != nil {
			return permanent{fmt.Errorf("%s: %v: %w", u, err, ErrCorrupt)}
		}
		return nil
	})
	if err != nil {
		return info{}, h.explain(req, "", err)
	}
	if !commitName.MatchString(answer.SHA) {
		return info{}, fmt.Errorf("%s: sha %q is no commit: %w", u, answer.SHA, ErrCorrupt)
	}
	for _, s := range answer.Siblings {
		if !safeName(s.Name) {
			return info{}, fmt.Errorf("%s: file name %q is not safe: %w", u, s.Name, ErrCorrupt)
		}
	}
	return answer, nil
}

// remote is a file as the hub announces it.
type remote struct {
	name, commit string
	etag         string
	size         int64
	url          *url.URL
}

// head asks for a file's hash and size.
func (h *Hub) head(ctx context.Context, req Request, commit, name string) (remote, error) {
	u := h.endpoint.JoinPath(req.Repository, "resolve", commit, (&url.URL{Path: name}).EscapedPath())
	r := remote{name: name, commit: commit, url: u}
	err := h.retry(ctx, attempts, func() error {
		response, err := h.send(ctx, h.stay, http.MethodHead, u, nil)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode >= 400 {
			return status(response)
		}
		header := response.Header
		r.etag = strings.Trim(strings.TrimPrefix(first(header.Get("X-Linked-Etag"), header.Get("ETag")), "W/"), `"`)
		r.size = response.ContentLength
		if linked := header.Get("X-Linked-Size"); linked != "" {
			if r.size, err = strconv.ParseInt(linked, 10, 64); err != nil {
				return permanent{fmt.Errorf("%s: X-Linked-Size %q: %w", u, linked, ErrCorrupt)}
			}
		} else if response.StatusCode >= 300 {
			r.size = -1 // the length of the redirect's own text
		}
		if c := header.Get("X-Repo-Commit"); c != "" && c != commit {
			return permanent{fmt.Errorf("%s: X-Repo-Commit is %s: %w", u, c, ErrCorrupt)}
		}
		return nil
	})
	if err != nil {
		return remote{}, h.explain(req, name, err)
	}
	if !etagName.MatchString(r.etag) {
		return remote{}, fmt.Errorf("%s: ETag %q names no content: %w: is %s a Hugging Face hub?", u, r.etag, ErrCorrupt, h.endpoint)
	}
	return r, nil
}

func (h *Hub) send(ctx context.Context, client *http.Client, method string, u *url.URL, header http.Header) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, permanent{err}
	}
	for k, v := range header {
		r.Header[k] = v
	}
	r.Header.Set("Accept-Encoding", "identity") // sizes and ranges are of the content
	response, err := client.Do(r)
	var failed *url.Error
	if errors.As(err, &failed) {
		failed.URL = bare(failed.URL)
	}
	return response, err
}

// bare is an address without its query: a content network's carries a signature.
func bare(address string) string {
	address, _, _ = strings.Cut(address, "?")
	return address
}

// status makes an error of an answer that is no success.
func status(response *http.Response) error {
	e := &errStatus{code: response.StatusCode, reason: response.Header.Get("X-Error-Code"),
		message: clean(response.Header.Get("X-Error-Message"))}
	e.url = bare(response.Request.URL.String())
	if !passing(e.code) {
		return permanent{e}
	}
	return retryAfter{e, wait(response.Header.Get("Retry-After"))}
}

// clean keeps a server's words to one short printable line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return s[:min(len(s), 200)]
}

func passing(code int) bool {
	return code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500
}

// wait reads Retry-After: seconds or a date. 0: not said.
func wait(value string) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// permanent marks an error that trying again won't cure; retryAfter one whose
// server says when.
type (
	permanent  struct{ error }
	retryAfter struct {
		error
		after time.Duration
	}
)

func (p permanent) Unwrap() error  { return p.error }
func (r retryAfter) Unwrap() error { return r.error }

// errProgress wraps a failure that came after a good stretch: it starts the count anew.
type errProgress struct{ error }

func (e errProgress) Unwrap() error { return e.error }

// retry calls f until it succeeds, fails for good, or has failed so many times in
// a row.
func (h *Hub) retry(ctx context.Context, tries int, f func() error) error {
	next := firstPause
	for failed := 1; ; failed++ {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var final permanent
		if errors.As(err, &final) {
			return final.error
		}
		var gained errProgress
		if errors.As(err, &gained) {
			failed, next = 1, firstPause
		}
		if failed >= tries {
			return fmt.Errorf("%w (tried %d times)", err, failed)
		}
		delay := next/2 + rand.N(next/2+1)
		next = min(2*next, longestPause)
		var told retryAfter
		if errors.As(err, &told) && told.after > 0 {
			if told.after > longestRequest {
				return fmt.Errorf("%w (it asks to wait %v)", err, told.after.Round(time.Second))
			}
			delay = told.after
		}
		if err := h.pause(ctx, delay); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// explain adds to an error what it means and what to do. file "" is the repository.
func (h *Hub) explain(req Request, file string, err error) error {
	page := h.endpoint.JoinPath(req.Repository)
	what := req.String()
	if file != "" {
		what += ", " + path.Base(file)
	}
	var s *errStatus
	if !errors.As(err, &s) {
		var local *fs.PathError
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
			errors.Is(err, ErrCorrupt) || errors.Is(err, disk.ErrFull) || errors.As(err, &local) {
			return err
		}
		return fmt.Errorf("%w: %w: check the network (HTTPS_PROXY, HF_ENDPOINT), or set HF_HUB_OFFLINE=1 to use the cache alone; what was fetched is kept", ErrUnavailable, err)
	}
	switch {
	case s.code == http.StatusUnauthorized && h.options.Token == "":
		return fmt.Errorf("%s: %w (%w): the repository does not exist, or needs a token: check the name, or set HF_TOKEN", what, ErrDenied, err)
	case s.code == http.StatusUnauthorized:
		return fmt.Errorf("%s: %w (%w): the hub does not accept the token in HF_TOKEN for it: make a new one at %s", what, ErrDenied, err, h.endpoint.JoinPath("settings", "tokens"))
	case s.code == http.StatusForbidden && h.options.Token == "":
		return fmt.Errorf("%s: %w (%w): ask for access at %s and set HF_TOKEN", what, ErrDenied, err, page)
	case s.code == http.StatusForbidden:
		return fmt.Errorf("%s: %w (%w): ask for access at %s with the account of HF_TOKEN, and let the token read gated repositories", what, ErrDenied, err, page)
	case s.code == http.StatusNotFound && s.reason == "RevisionNotFound":
		return fmt.Errorf("%s: %w (%w): the repository has no such branch, tag or commit", what, ErrNotFound, err)
	case s.code == http.StatusNotFound && file != "":
		return fmt.Errorf("%s: %w (%w): the repository has no such file", what, ErrNotFound, err)
	case s.code == http.StatusNotFound:
		return fmt.Errorf("%s: %w (%w): check the name and the revision; a private repository needs HF_TOKEN", what, ErrNotFound, err)
	case s.code == http.StatusTooManyRequests:
		return fmt.Errorf("%s: %w (%w): the hub limits requests: wait some minutes, or set HF_TOKEN for a higher limit; what was fetched is kept", what, ErrUnavailable, err)
	case s.code >= 500:
		return fmt.Errorf("%s: %w (%w): the fault is the hub's: try again later, or set HF_ENDPOINT to a mirror; what was fetched is kept", what, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w: is %s a Hugging Face hub?", what, err, h.endpoint)
}
