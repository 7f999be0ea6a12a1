package api

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
)

// Keys are the API keys that the server takes, kept as their SHA-256.
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

// authorized demands a key on every path that is not open.
func (s *Server) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.keys != nil && !open[r.URL.Path] && !s.keys.match(owner(r)) {
			s.fail(w, r, &Error{
				Status: http.StatusUnauthorized, Type: "AuthenticationError",
				Message: "a valid API key is needed: send the header Authorization: Bearer KEY",
			})
			return
		}
		next.ServeHTTP(w, r)
	})
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
