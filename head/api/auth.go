package api

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"manta/head/limit"
	"manta/head/state"
)

// Keys are the API keys that a head was started with, kept as their SHA-256. Those
// that the cluster knows are in the View.
type Keys struct {
	digests [][32]byte
}

// ErrNoKey says that a server open to other machines must have a key.
var ErrNoKey = errors.New("an API key is needed to listen beyond loopback: give --api-key KEY, MANTA_API_KEY or a file of keys, or --api-key none to go without")

// NewKeys takes keys as the user gave them: each a key, or @FILE with a key a
// line. The one word none turns keys off. No keys at all give nil.
func NewKeys(given []string) (keys *Keys, off bool, err error) {
	var all []string
	for _, one := range given {
		name, isFile := strings.CutPrefix(one, "@")
		if !isFile {
			all = append(all, one)
			continue
		}
		lines, err := readKeys(name)
		if err != nil {
			return nil, false, err
		}
		all = append(all, lines...)
	}
	if len(all) == 1 && all[0] == "none" {
		return nil, true, nil
	}
	keys = &Keys{}
	for _, key := range all {
		if key = strings.TrimSpace(key); key == "" || key == "none" {
			return nil, false, fmt.Errorf("api key %q: give a key, or none alone", key)
		}
		keys.digests = append(keys.digests, sha256.Sum256([]byte(key)))
	}
	if len(keys.digests) == 0 {
		return nil, false, nil
	}
	return keys, false, nil
}

func readKeys(name string) ([]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("api keys: %w", err)
	}
	defer file.Close()
	var lines []string
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		if line := strings.TrimSpace(scanner.Text()); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("api keys: %s: %w", name, err)
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("api keys: %s has none", name)
	}
	return lines, nil
}

// Demanded checks that a server that listens at address has keys if it must.
func (k *Keys) Demanded(address string, off bool) error {
	if k != nil || off {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("listen address %q: %w", address, err)
	}
	if host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s: %w", address, ErrNoKey)
}

// match compares in constant time, whichever key it is.
func (k *Keys) match(digest [32]byte) bool {
	found := 0
	for i := range k.digests {
		found |= subtle.ConstantTimeCompare(k.digests[i][:], digest[:])
	}
	return found == 1
}

// open are the paths that need no key: what probes and scrapers read.
var open = map[string]bool{"/health": true, "/livez": true, "/readyz": true, "/metrics": true}

// caller is who a request is from: the holder of a key, or anybody where none is
// demanded.
type caller struct {
	name   string // of the key; "": anybody
	hash   [32]byte
	admin  bool
	limits state.KeyLimits
	rates  limit.Rates
	line   *uint64 // a batch's line asks: the seed of one that gives none; nil: a client asks
}

type callerKey struct{}

// by gives who a request is from.
func by(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{admin: true}
}

// sees reports whether the caller may know of what the holder of a key made.
func (c *caller) sees(owner state.Digest) bool { return c.admin || c.hash == owner }

// identify finds the key that a request brings: one that this head was started
// with, whose holders may do everything, or one that the cluster knows.
func (s *Server) identify(r *http.Request) (*caller, bool) {
	hash := owner(r)
	if s.keys != nil && s.keys.match(hash) {
		return &caller{name: fmt.Sprintf("key-%x", hash[:4]), hash: hash, admin: true}, true
	}
	view := s.views.View()
	if k, ok := view.Keys[hash]; ok {
		return ofKey(k), true
	}
	if s.keysOff || s.keys == nil && len(view.Keys) == 0 && (s.restored == nil || s.restored()) {
		return &caller{hash: hash, admin: true}, true
	}
	return nil, false
}

func ofKey(k state.Key) *caller {
	return &caller{name: k.Name, hash: k.Hash, admin: k.Admin, limits: k.Limits, rates: limit.Rates{
		Requests: k.Limits.RequestsPerSecond, Tokens: float64(k.Limits.TokensPerMinute) / 60,
	}}
}

// recognize is identify for a head that may be behind: a key that it does not know
// may have been made a moment ago, at another head.
func (s *Server) recognize(r *http.Request) (*caller, bool) {
	c, ok := s.identify(r)
	if ok || s.cluster == nil || r.Header.Get("Authorization") == "" && s.keys != nil {
		return c, ok
	}
	if err := s.catchUp(r.Context()); err != nil {
		return nil, false
	}
	return s.identify(r)
}

// forAdmins reports whether a request is about keys, or changes what all users of the
// cluster have: deployments and nodes.
func forAdmins(r *http.Request) bool {
	under := func(path string) bool { return r.URL.Path == path || strings.HasPrefix(r.URL.Path, path+"/") }
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	return under("/api/keys") || under("/api/cluster") && !reads
}

func notAdmin(c *caller) *Error {
	return &Error{
		Status: http.StatusForbidden, Type: "PermissionDeniedError",
		Message: "key " + c.name + " is no administrator's: ask who runs this cluster",
	}
}

// authorized demands a key on every path that is not open, and an administrator's for
// what concerns everybody.
func (s *Server) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if open[r.URL.Path] {
			next.ServeHTTP(w, r)
			return
		}
		c, ok := s.recognize(r)
		switch {
		case !ok:
			s.fail(w, r, &Error{
				Status: http.StatusUnauthorized, Type: "AuthenticationError",
				Message: "a valid API key is needed: send the header Authorization: Bearer KEY",
			})
		case !c.admin && forAdmins(r):
			s.fail(w, r, notAdmin(c))
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
		}
	})
}

// admit takes a request off its key's rate.
func (s *Server) admit(c *caller) error {
	if s.rates == nil {
		return nil
	}
	retry, ok := s.rates.Admit(c.name, c.rates, time.Now())
	if ok {
		return nil
	}
	return &Error{
		Status: http.StatusTooManyRequests, Type: "RateLimitError", RetryAfter: max(1, int(math.Ceil(retry.Seconds()))),
		Message: fmt.Sprintf("key %s has used up its rate: %s", c.name, describeLimits(c.limits)),
	}
}

// spend takes tokens off the rate of a request's key.
func (s *Server) spend(c *caller, tokens int) {
	if s.rates != nil && c.rates.Tokens > 0 {
		s.rates.Spend(c.name, c.rates, tokens, time.Now())
	}
}

func describeLimits(l state.KeyLimits) string {
	var all []string
	if l.RequestsPerSecond > 0 {
		all = append(all, fmt.Sprintf("%v requests a second", l.RequestsPerSecond))
	}
	if l.TokensPerMinute > 0 {
		all = append(all, fmt.Sprintf("%d tokens a minute", l.TokensPerMinute))
	}
	return strings.Join(all, ", ")
}

// owner is the SHA-256 of the key that a request brings, zero when it brings none.
func owner(r *http.Request) [32]byte {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return [32]byte{}
	}
	return sha256.Sum256([]byte(token))
}
