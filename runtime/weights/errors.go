package weights

import (
	"errors"

	"manta/runtime/weights/disk"
)

var (
	// ErrUnsupported: the file is sound, but holds what the project does not do.
	ErrUnsupported = errors.New("not supported")
	// ErrCorrupt: the file breaks the rules of its format; fetch it again.
	ErrCorrupt = errors.New("file is damaged")
	// ErrNotFound: nothing is there under that name.
	ErrNotFound = errors.New("not found")
	// ErrDiskFull: there is no room for what is pulled.
	ErrDiskFull = disk.ErrFull
)
