package state

import (
	"fmt"
	"time"
)

// A Key is an API key. The key itself is known to its holder alone.
type Key struct {
	Name    string
	Hash    Digest // SHA-256 of the key
	Admin   bool   // may make and revoke keys
	Limits  KeyLimits
	Created time.Time
}

// KeyLimits bound what the holder of a key may ask for; zero means no limit.
type KeyLimits struct {
	RequestsPerSecond float64
	TokensPerMinute   int // of prompts and answers together
	// Weight is the key's part of a busy deployment beside the other keys'; 0: 1.
	Weight float64
	// Priority is the most urgent priority that its requests may have (lower runs
	// first); a request that asks for more gets this.
	Priority int
}

// putKey adds a key, or changes the limits of one; a name and a hash stay together.
func (d *draft) putKey(k Key, at time.Time) error {
	for hash, other := range d.Keys {
		if other.Name == k.Name && hash != k.Hash {
			return fmt.Errorf("%w: key %q exists", ErrStale, k.Name)
		}
	}
	old, exists := d.Keys[k.Hash]
	switch {
	case exists && old.Name != k.Name:
		return fmt.Errorf("%w: this key exists under another name", ErrStale)
	case exists:
		k.Created = old.Created
	default:
		k.Created = at
	}
	owned(&d.View.Keys, &d.own.keys)[k.Hash] = k
	return nil
}

// deleteKey revokes the key of a name.
func (d *draft) deleteKey(name string) error {
	for hash, k := range d.Keys {
		if k.Name == name {
			delete(owned(&d.View.Keys, &d.own.keys), hash)
			return nil
		}
	}
	return fmt.Errorf("%w: key %q", ErrUnknown, name)
}

// KeyNamed finds a key by its name.
func (v *View) KeyNamed(name string) (Key, bool) {
	for _, k := range v.Keys {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}
