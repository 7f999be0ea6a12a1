package hub

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"manta/runtime/weights/disk"
)

const (
	copyBuffer  = 1 << 20
	goodStretch = 1 << 20 // bytes after which failures are counted anew
)

// A download writes one blob. It belongs to one goroutine.
//
// Invariant: sum has seen exactly the first done bytes of file.
type download struct {
	hub    *Hub
	remote remote
	file   *os.File
	sum    hash.Hash // nil: the hub's ETag is no hash of the content
	done   int64
	report func(done int64)
}

// fetch brings a file's content to blob, going on where an .incomplete ends. The
// caller holds the blob's lock.
func (h *Hub) fetch(ctx context.Context, req Request, r remote, blob string, report func(int64)) (err error) {
	partial := blob + unfinished
	if err := os.MkdirAll(filepath.Dir(blob), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	d := &download{hub: h, remote: r, file: f, sum: checksum(r.etag, r.size), report: report}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := d.resume(); err != nil {
		return err
	}
	resumed := d.done > 0
	for {
		err := h.retry(ctx, attempts, func() error { return d.attempt(ctx) })
		if err != nil {
			return h.explain(req, r.name, disk.Explain(err, filepath.Dir(blob), r.size-d.done))
		}
		got := d.hex()
		if got == "" || got == r.etag {
			break
		}
		if err := d.restart(); err != nil {
			return err
		}
		if !resumed {
			return fmt.Errorf("%s: the content's hash is %s, the hub says %s: %w: try again, and suspect a proxy if it stays so", r.name, got, r.etag, ErrCorrupt)
		}
		resumed = false // what lay there may have been at fault: once more from the start
	}
	if err := f.Sync(); err != nil {
		return disk.Explain(err, filepath.Dir(blob), r.size)
	}
	return disk.Rename(partial, blob)
}

var (
	hexSHA256 = regexp.MustCompile(`^[0-9a-f]{64}$`)
	hexSHA1   = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// checksum gives the hash that an ETag is: SHA-256 of the content for large files,
// else git's blob hash.
func checksum(etag string, size int64) hash.Hash {
	switch {
	case hexSHA256.MatchString(etag):
		return sha256.New()
	case hexSHA1.MatchString(etag):
		h := sha1.New() // git's choice; it detects damage, not malice
		fmt.Fprintf(h, "blob %d\x00", size)
		return h
	}
	return nil
}

func (d *download) hex() string {
	if d.sum == nil {
		return ""
	}
	return hex.EncodeToString(d.sum.Sum(nil))
}

// resume reads what lies there into the hash. More than there should be is rubbish.
func (d *download) resume() error {
	info, err := d.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() > d.remote.size {
		return d.restart()
	}
	to := io.Discard
	if d.sum != nil {
		to = d.sum
	}
	d.done, err = io.Copy(to, d.file)
	return err
}

func (d *download) restart() error {
	d.done, d.sum = 0, checksum(d.remote.etag, d.remote.size)
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	_, err := d.file.Seek(0, io.SeekStart)
	return err
}

// attempt asks for the rest and appends what comes.
func (d *download) attempt(ctx context.Context) error {
	if d.done == d.remote.size {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(d.hub.idle, func() { cancel(fmt.Errorf("no byte for %v", d.hub.idle)) })
	defer stalled.Stop()

	header := http.Header{}
	if d.done > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.done))
	}
	response, err := d.hub.send(ctx, d.hub.follow, http.MethodGet, d.remote.url, header)
	if err != nil {
		return stall(ctx, err)
	}
	defer response.Body.Close()
	if err := d.begin(response); err != nil {
		return err
	}
	start := d.done
	err = d.append(response.Body, stalled)
	if err != nil {
		err = stall(ctx, err)
		if d.done-start >= goodStretch && !errors.As(err, new(permanent)) {
			return errProgress{err}
		}
	}
	return err
}

// stall puts the reason of a cancelled request before its bare «context canceled».
func stall(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// begin checks that the answer goes on at done, or starts again from 0.
func (d *download) begin(response *http.Response) error {
	switch response.StatusCode {
	case http.StatusOK:
		if response.ContentLength >= 0 && response.ContentLength != d.remote.size {
			return fmt.Errorf("%s: Content-Length is %d, the hub announced %d: %w", d.remote.name, response.ContentLength, d.remote.size, ErrCorrupt)
		}
		if d.done > 0 { // the server knows no ranges
			if err := d.restart(); err != nil {
				return permanent{err}
			}
		}
		return nil
	case http.StatusPartialContent:
		var from, to, size int64
		text := response.Header.Get("Content-Range")
		if n, err := fmt.Sscanf(text, "bytes %d-%d/%d", &from, &to, &size); err != nil || n != 3 || from != d.done || size != d.remote.size {
			if err := d.restart(); err != nil {
				return permanent{err}
			}
			return fmt.Errorf("%s: Content-Range %q answers bytes %d- of %d: %w", d.remote.name, text, d.done, d.remote.size, ErrCorrupt)
		}
		return nil
	case http.StatusRequestedRangeNotSatisfiable:
		if err := d.restart(); err != nil {
			return permanent{err}
		}
		return fmt.Errorf("%s: the server has less than it announced: %w", d.remote.name, ErrCorrupt)
	}
	return status(response)
}

// append writes the body up to the announced size.
func (d *download) append(body io.Reader, stalled *time.Timer) error {
	buffer := make([]byte, copyBuffer)
	for {
		n, readErr := body.Read(buffer)
		if n > 0 {
			stalled.Reset(d.hub.idle)
			if int64(n) > d.remote.size-d.done {
				if err := d.restart(); err != nil {
					return permanent{err}
				}
				return fmt.Errorf("%s: more bytes came than the %d announced: %w", d.remote.name, d.remote.size, ErrCorrupt)
			}
			if _, err := d.file.Write(buffer[:n]); err != nil {
				return permanent{err}
			}
			if d.sum != nil {
				d.sum.Write(buffer[:n])
			}
			d.done += int64(n)
			d.report(d.done)
		}
		switch {
		case d.done == d.remote.size && (readErr == nil || readErr == io.EOF):
			if readErr == io.EOF {
				return nil
			}
		case readErr == io.EOF:
			return fmt.Errorf("%s: broken off at byte %d of %d: %w", d.remote.name, d.done, d.remote.size, io.ErrUnexpectedEOF)
		case readErr != nil:
			return fmt.Errorf("%s: at byte %d of %d: %w", d.remote.name, d.done, d.remote.size, readErr)
		}
	}
}
