//go:build !cuda

package gpu

import (
	"context"
	"fmt"
)

// Reader reads nothing in this build.
type Reader struct{}

// Open says that the program was built without CUDA.
func Open() (*Reader, error) {
	return nil, fmt.Errorf("%w: this program was built without the tag cuda; use make cuda", ErrUnavailable)
}

// Read lists none.
func (*Reader) Read() ([]Device, error) { return nil, nil }

// Watch waits for the context.
func (*Reader) Watch(ctx context.Context, report func(Fault)) error {
	<-ctx.Done()
	return nil
}

// Close has nothing to close.
func (*Reader) Close() error { return nil }
