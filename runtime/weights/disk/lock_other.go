//go:build !unix

package disk

import (
	"context"
	"errors"
	"fmt"
)

// Lock refuses: without locks between processes a shared folder is not safe.
func Lock(_ context.Context, path string, _ func()) (func() error, error) {
	return nil, fmt.Errorf("lock %s: %w on this system: use Linux, macOS or WSL", path, errors.ErrUnsupported)
}

func free(string) (int64, bool) { return 0, false }
