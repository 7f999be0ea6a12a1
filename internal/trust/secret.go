// Package trust makes and checks what the processes of one cluster know each
// other by. A cluster secret is a line of text; from each line HKDF (RFC 5869)
// derives a gossip key and a certificate authority, so that whoever holds the
// secret can join, and nobody else. Certificates are bound to one identity
// (manta-head/<id>, manta-node/<id>, manta-device/<node's id>-<digits>), and a caller
// says whom it expects.
//
// A secret file may have several lines: the first signs, all verify. To change
// the secret without a pause, add the new line below on every machine and
// restart one after another, then move it to the top likewise, then remove the
// old one.
//
// The package holds no network connection and no goroutine.
package trust

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

const (
	minSecretBytes = 16 // shorter lines can be guessed
	maxSecretBytes = 1024
	maxSecrets     = 8
)

// ErrSecret says that a secret file is not usable; the text says why.
var ErrSecret = errors.New("cluster secret")

// Secrets are the lines of a secret file: the first signs, all verify.
type Secrets [][]byte

// ParseSecrets reads the contents of a secret file. Empty lines and lines that
// begin with # are skipped.
func ParseSecrets(text []byte) (Secrets, error) {
	var secrets Secrets
	for number, line := range bytes.Split(text, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if len(line) < minSecretBytes || len(line) > maxSecretBytes {
			return nil, fmt.Errorf("%w: line %d has %d bytes, want %d to %d", ErrSecret, number+1, len(line), minSecretBytes, maxSecretBytes)
		}
		secrets = append(secrets, bytes.Clone(line))
	}
	switch {
	case len(secrets) == 0:
		return nil, fmt.Errorf("%w: the file has no line with a secret", ErrSecret)
	case len(secrets) > maxSecrets:
		return nil, fmt.Errorf("%w: %d lines, at most %d", ErrSecret, len(secrets), maxSecrets)
	}
	return secrets, nil
}

// LoadSecrets reads a secret file.
func LoadSecrets(path string) (Secrets, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	secrets, err := ParseSecrets(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return secrets, nil
}

// LoadOrCreateSecrets reads a secret file, or writes one with a random secret
// that only its owner may read. Of two processes that start at once, both end
// with the same secret.
func LoadOrCreateSecrets(path string) (Secrets, error) {
	secrets, err := LoadSecrets(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secrets, err
	}
	random := make([]byte, 32)
	rand.Read(random)
	err = writeOnce(path, []byte(base64.RawURLEncoding.EncodeToString(random)+"\n"))
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	return LoadSecrets(path)
}

// GossipKeys gives the AES-256 keys of the gossip, the first of which encrypts.
func (s Secrets) GossipKeys() ([][]byte, error) {
	keys := make([][]byte, len(s))
	for i := range s {
		key, err := s.derive(i, "gossip")
		if err != nil {
			return nil, err
		}
		keys[i] = key
	}
	return keys, nil
}

// derive gives 32 bytes for one purpose from secret i.
func (s Secrets) derive(i int, purpose string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, s[i], []byte("manta cluster secret"), "manta/v1/"+purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	return key, nil
}
