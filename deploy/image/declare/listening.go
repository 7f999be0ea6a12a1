package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// errSilent says that no process of this container listens on the port.
var errSilent = errors.New("nothing listens")

// listening looks for a listener among the container's sockets. It is the probe of
// pods without HTTP: connecting to their ports would be logged there as a failed
// handshake each time.
func listening(port int, tables ...string) error {
	want := fmt.Sprintf("%04X", port)
	for _, table := range tables {
		data, err := os.ReadFile(table)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6 here
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			// proc_net_tcp.rst: sl local_address rem_address st …; 0A is TCP_LISTEN.
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != "0A" {
				continue
			}
			if _, local, ok := strings.Cut(fields[1], ":"); ok && local == want {
				return nil
			}
		}
	}
	return fmt.Errorf("%w on port %s", errSilent, strconv.Itoa(port))
}
