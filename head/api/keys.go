package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"math"
	"net/http"
	"regexp"
	"slices"
	"time"

	"manta/head/state"
)

// Keyring changes the cluster's keys. A write returns when it is committed.
type Keyring interface {
	PutKey(ctx context.Context, key state.Key) error
	DeleteKey(ctx context.Context, name string) error
}

// Key is a key's state; the key itself is given once, when it is made.
type Key struct {
	Name              string    `json:"name"`
	Key               string    `json:"key,omitempty"`
	Admin             bool      `json:"admin,omitempty"`
	RequestsPerSecond float64   `json:"requests_per_second,omitempty"` // 0: no limit
	TokensPerMinute   int       `json:"tokens_per_minute,omitempty"`   // 0: no limit
	Weight            float64   `json:"weight,omitempty"`
	Priority          int       `json:"priority,omitempty"`
	Created           time.Time `json:"created"`
}

// keyRequest is what POST /api/keys takes.
type keyRequest struct {
	Name              string  `json:"name"`
	Admin             bool    `json:"admin"`
	RequestsPerSecond float64 `json:"requests_per_second"`
	TokensPerMinute   int     `json:"tokens_per_minute"`
	Weight            float64 `json:"weight"`
	Priority          int     `json:"priority"`
}

var keyName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func (k *keyRequest) check() error {
	switch {
	case !keyName.MatchString(k.Name):
		return badField("name", "name must be 1 to 63 letters, digits, '.', '_' or '-', got %q", k.Name)
	case !(k.RequestsPerSecond >= 0) || math.IsInf(k.RequestsPerSecond, 0):
		return badField("requests_per_second", "requests_per_second must not be negative, got %v", k.RequestsPerSecond)
	case k.TokensPerMinute < 0:
		return badField("tokens_per_minute", "tokens_per_minute must not be negative, got %d", k.TokensPerMinute)
	case !(k.Weight >= 0 && k.Weight <= 1000):
		return badField("weight", "weight must be between 0 and 1000, got %v", k.Weight)
	}
	return nil
}

// keyPrefix marks what it begins as a secret, for people and for scanners of code.
const keyPrefix = "mk-"

// maxKeys bounds what the View holds.
const maxKeys = 10_000

func (s *Server) createKey(w http.ResponseWriter, r *http.Request) (any, error) {
	var request keyRequest
	data, err := s.body(w, r)
	if err == nil {
		err = parseStrict(data, &request) // a limit that is misspelt must not be none
	}
	if err == nil {
		err = request.check()
	}
	if err != nil {
		return nil, err
	}
	view, _ := s.newest(w, r)
	if _, exists := view.KeyNamed(request.Name); exists {
		return nil, &Error{Status: http.StatusConflict, Type: "ConflictError", Param: "name",
			Message: "there is a key " + request.Name + " already: revoke it, or give another name"}
	}
	if len(view.Keys) >= maxKeys {
		return nil, badField("name", "there are %d keys already, the most there may be: revoke some", len(view.Keys))
	}
	if s.keys == nil && !s.keysOff && !request.Admin && !hasAdmin(view, "") {
		return nil, badField("admin", "the first key must be an administrator's (admin: true, --admin): from then on keys are demanded, and it makes the others")
	}
	secret := keyPrefix + rand.Text() + rand.Text()
	key := state.Key{
		Name: request.Name, Hash: sha256.Sum256([]byte(secret)), Admin: request.Admin, Created: time.Now(),
		Limits: state.KeyLimits{
			RequestsPerSecond: request.RequestsPerSecond, TokensPerMinute: request.TokensPerMinute,
			Weight: request.Weight, Priority: request.Priority,
		},
	}
	if err := s.keyring.PutKey(r.Context(), key); err != nil {
		return nil, err
	}
	answer := describeKey(key)
	answer.Key = secret
	return created{answer}, nil
}

func (s *Server) listKeys(w http.ResponseWriter, r *http.Request) (any, error) {
	view, _ := s.newest(w, r)
	list := []Key{}
	for _, k := range view.Keys {
		list = append(list, describeKey(k))
	}
	slices.SortFunc(list, func(a, b Key) int { return cmp.Compare(a.Name, b.Name) })
	return struct {
		Keys []Key `json:"keys"`
	}{list}, nil
}

func (s *Server) revokeKey(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	view, _ := s.newest(w, r)
	if _, exists := view.KeyNamed(name); !exists {
		return nil, &Error{Status: http.StatusNotFound, Type: "NotFoundError", Param: "name", Message: "there is no key " + name}
	}
	if s.keys == nil && !s.keysOff && len(view.Keys) > 1 && !hasAdmin(view, name) {
		return nil, badField("name", "%s is the last administrator's key: make another first, or revoke the other keys", name)
	}
	if err := s.keyring.DeleteKey(r.Context(), name); err != nil && !errors.Is(err, state.ErrUnknown) {
		return nil, err
	}
	return struct {
		Revoked string `json:"revoked"`
	}{name}, nil
}

// hasAdmin reports whether an administrator's key other than one exists.
func hasAdmin(view *state.View, but string) bool {
	for _, k := range view.Keys {
		if k.Admin && k.Name != but {
			return true
		}
	}
	return false
}

func describeKey(k state.Key) Key {
	return Key{
		Name: k.Name, Admin: k.Admin, RequestsPerSecond: k.Limits.RequestsPerSecond, TokensPerMinute: k.Limits.TokensPerMinute,
		Weight: cmp.Or(k.Limits.Weight, 1), Priority: k.Limits.Priority, Created: k.Created,
	}
}
