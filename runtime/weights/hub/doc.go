// Package hub fetches model repositories from the Hugging Face hub, or whatever
// speaks its protocol, into the cache that Python's huggingface_hub uses: what
// transformers or vLLM fetched is found here, and the reverse.
//
//	CACHE/models--ORG--NAME/refs/REVISION              the commit it stood for
//	CACHE/models--ORG--NAME/blobs/ETAG                 content; ETAG is its hash
//	CACHE/models--ORG--NAME/blobs/ETAG.incomplete      a download under way
//	CACHE/models--ORG--NAME/snapshots/COMMIT/FILE  →   ../../blobs/ETAG
//	CACHE/.locks/models--ORG--NAME/ETAG.lock           held while ETAG is fetched
//
// A revision is resolved to a commit once; every file is fetched at that commit,
// checked against its hash (SHA-256 for large files, git's for small ones), synced
// and renamed. Of a repository with several weight formats one is fetched.
//
// Package weights owns the one Hub of a Library. The package opens no model, and
// sends its token to the endpoint's host and to no other.
package hub

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound: no such repository, revision or file, as far as the token may see.
	ErrNotFound = errors.New("not found")
	// ErrDenied: the hub wants a token, or another one (401, 403).
	ErrDenied = errors.New("access is denied")
	// ErrUnavailable: the hub did not answer, answered 429 or 5xx, or broke off, too
	// often. What was fetched is kept, and the next pull goes on there.
	ErrUnavailable = errors.New("hub is not available")
	// ErrOffline: it would have to be fetched, and HF_HUB_OFFLINE is set.
	ErrOffline = errors.New("not in the cache, and offline mode is on")
	// ErrCorrupt: what came is not what the hub says it has.
	ErrCorrupt = errors.New("file is damaged")
	// ErrUnsupported: the repository holds no weights that are read here.
	ErrUnsupported = errors.New("not supported")
)

// A Request names what is wanted.
type Request struct {
	Repository string // ORG/NAME
	Revision   string // branch, tag or commit; "" is main
	Variant    string // of several GGUF files: Q4_K_M, or a file's name
	// Check, where set, sees config.json before the weights are fetched, and may refuse.
	Check func(config []byte) error
}

func (r Request) revision() string {
	if r.Revision == "" {
		return "main"
	}
	return r.Revision
}

func (r Request) String() string {
	s := r.Repository + "@" + r.revision()
	if r.Variant != "" {
		s += ":" + r.Variant
	}
	return s
}

// A Snapshot is a model that lies whole in the cache.
type Snapshot struct {
	Repository string
	Variant    string // of GGUF: the file's name
	Path       string // folder in Hugging Face form, or a .gguf file
	Commit     string
	Main       bool // Commit is what main stood for when last asked
	Bytes      int64
	Digest     string // "sha256:…" over the hashes of the weight files; "" where they are not known
}

// Progress reports bytes of one file. Calls never overlap.
type Progress func(file string, done, total int64)

// errStatus is an answer that is no success.
type errStatus struct {
	code    int
	url     string
	message string // what the server says, for people
	reason  string // its X-Error-Code
}

func (e *errStatus) Error() string {
	s := fmt.Sprintf("%s answers %d", e.url, e.code)
	if e.message != "" {
		s += ": " + e.message
	}
	return s
}
