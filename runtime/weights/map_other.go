//go:build !unix

package weights

import (
	"fmt"
	"os"
	"runtime"
)

func mapFile(*os.File, int64) ([]byte, error) {
	return nil, fmt.Errorf("mapping model files on %s: %w: use Linux, macOS or WSL", runtime.GOOS, ErrUnsupported)
}

func unmap([]byte) error { return nil }

func populate(data []byte) { touch(data) }

func drop([]byte) {}

func readAhead([]byte) {}
