package weights

import (
	"context"
	"fmt"
)

func (l *Library) pullHub(context.Context, Reference, func(Progress)) (Pulled, error) {
	return Pulled{}, fmt.Errorf("the hub: %w", ErrUnsupported)
}

func (l *Library) listHub() ([]Pulled, error) { return nil, nil }

func (l *Library) removeHub(Reference) error {
	return fmt.Errorf("the hub: %w", ErrUnsupported)
}
