package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"manta/head/state"
)

// ErrNoMajority says that too few heads took a blob.
var ErrNoMajority = errors.New("store: no majority of heads took the bytes")

// Peers are the other heads.
type Peers interface {
	// Voters gives the ids of all voters, this head's own included when it is one.
	Voters() (self string, ids []string, err error)
	Put(ctx context.Context, head string, data []byte) error
	Get(ctx context.Context, head string, digest state.Digest) ([]byte, error)
}

// Replicated keeps blobs on a majority of the heads. It is safe for concurrent use.
type Replicated struct {
	disk  *Disk
	peers Peers
}

// NewReplicated puts to and gets from disk and peers.
func NewReplicated(disk *Disk, peers Peers) *Replicated { return &Replicated{disk: disk, peers: peers} }

// PutBlob returns once a majority of the voters have the bytes on disk. This head's
// own disk may be the one that has no room.
func (r *Replicated) PutBlob(ctx context.Context, data []byte) (state.Digest, error) {
	digest := state.Digest(sha256.Sum256(data))
	_, own := r.disk.PutBlob(ctx, data)
	self, voters, err := r.peers.Voters()
	if err != nil {
		return digest, err
	}
	ctx, stop := context.WithCancel(ctx)
	var puts sync.WaitGroup
	defer puts.Wait()
	defer stop() // those that are not needed any more
	have, left := 0, 0
	outcome := make(chan error, len(voters))
	for _, id := range voters {
		if id == self {
			if own == nil {
				have++
			}
			continue
		}
		left++
		puts.Go(func() { outcome <- r.peers.Put(ctx, id, data) })
	}
	errs := []error{own}
	for need := len(voters)/2 + 1; have < need; left-- {
		if left == 0 {
			return digest, fmt.Errorf("%w: %d of %d: %w", ErrNoMajority, have, len(voters), errors.Join(errs...))
		}
		if err := <-outcome; err != nil {
			errs = append(errs, err)
		} else {
			have++
		}
	}
	return digest, nil
}

// Blob reads from this head's disk, or else from another head's, and keeps it where there is room.
func (r *Replicated) Blob(ctx context.Context, digest state.Digest) ([]byte, error) {
	data, err := r.disk.Blob(ctx, digest)
	if err == nil {
		return data, nil
	}
	self, voters, votersErr := r.peers.Voters()
	errs := []error{err, votersErr}
	for _, id := range voters {
		if id == self {
			continue
		}
		data, err := r.peers.Get(ctx, id, digest)
		if err == nil && state.Digest(sha256.Sum256(data)) != digest {
			err = fmt.Errorf("%w: from head %s", ErrCorrupt, id)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		_, _ = r.disk.PutBlob(ctx, data) // a disk without room keeps nothing more, but nobody waits for it
		return data, nil
	}
	return nil, errors.Join(errs...)
}
