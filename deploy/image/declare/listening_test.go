package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A probe tells a listener from a connection, and one port from another.
func TestListening(t *testing.T) {
	table := filepath.Join(t.TempDir(), "tcp")
	text := "  sl  local_address rem_address   st tx_queue\n" +
		"   0: 00000000:1F0C 00000000:0000 0A 00000000:00000000\n" + // 7948 listens
		"   1: 0100007F:1F0B 0100007F:9C40 01 00000000:00000000\n" // 7947 is connected
	if err := os.WriteFile(table, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(t.TempDir(), "tcp6")
	if err := listening(7948, absent, table); err != nil {
		t.Errorf("a listener is not seen: %v", err)
	}
	for _, port := range []int{7947, 80} {
		if err := listening(port, absent, table); !errors.Is(err, errSilent) {
			t.Errorf("port %d: got %v", port, err)
		}
	}
}
