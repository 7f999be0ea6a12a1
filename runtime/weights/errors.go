package weights

import (
	"manta/runtime/weights/disk"
	"manta/runtime/weights/hub"
)

// What went wrong, for errors.Is; the text says where and what to do. Those of a
// pull are the hub's.
var (
	// ErrUnsupported: the file is sound, but holds what the project does not do.
	ErrUnsupported = hub.ErrUnsupported
	// ErrCorrupt: the file breaks the rules of its format; fetch it again.
	ErrCorrupt = hub.ErrCorrupt
	// ErrNotFound: nothing is there under that name.
	ErrNotFound = hub.ErrNotFound
	// ErrDenied: the hub wants a token, or another one.
	ErrDenied = hub.ErrDenied
	// ErrUnavailable: the hub does not answer as it should; try again later.
	ErrUnavailable = hub.ErrUnavailable
	// ErrOffline: it is not here, and HF_HUB_OFFLINE forbids fetching it.
	ErrOffline = hub.ErrOffline
	// ErrDiskFull: there is no room for what is pulled.
	ErrDiskFull = disk.ErrFull
)
