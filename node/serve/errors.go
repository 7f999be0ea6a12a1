package serve

import (
	"manta/node/wire"
	"manta/runtime/engine"
)

// errorCodes maps an engine's errors to what a head does about them.
var errorCodes = []struct {
	err  error
	code wire.ErrorCode
}{
	{engine.ErrInvalid, wire.ErrInvalid},
	{engine.ErrStale, wire.ErrStale},
	{engine.ErrBusy, wire.ErrBusy},
	{engine.ErrDeadline, wire.ErrDeadline},
	{engine.ErrLost, wire.ErrLost},
	{ErrDraining, wire.ErrBusy},
}
