package state

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// ErrNothing: there is no raft state to recover.
var ErrNothing = errors.New("state: no raft state here")

// Recovered says what Recover did.
type Recovered struct {
	ID   string   // the head, now the only voter
	Were []string // who was in raft before
	View *View    // what it knows
}

// Recover makes a head the only voter of its cluster, with all that its disk holds,
// for the case that most voters are lost for good. digits end the head's id: they
// are those on its disk. The head must not run, and no other head of the old
// cluster may ever run on its old disk again: two clusters would go on apart.
func Recover(dir, digits string, log *slog.Logger) (_ Recovered, err error) {
	if _, err := os.Stat(filepath.Join(dir, "log")); err != nil {
		return Recovered{}, fmt.Errorf("%w: %w", ErrNothing, err)
	}
	logger := raftLogger(log)
	logs, err := wal.Open(filepath.Join(dir, "log"), wal.WithSegmentSize(walSegmentBytes), wal.WithLogger(logger.Named("wal")))
	if err != nil {
		return Recovered{}, fmt.Errorf("state: open log in %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, logger.Named("snapshot"))
	if err != nil {
		return Recovered{}, fmt.Errorf("state: snapshots in %s: %w", dir, err)
	}
	if exists, err := raft.HasExistingState(logs, logs, snapshots); err != nil || !exists {
		return Recovered{}, errors.Join(ErrNothing, err)
	}
	_, nowhere := raft.NewInmemTransport("")
	defer nowhere.Close()
	config := raft.DefaultConfig()
	config.LocalID, config.Logger = "nobody", logger
	before, err := raft.GetConfiguration(config, newMachine(), logs, logs, snapshots, nowhere)
	if err != nil {
		return Recovered{}, fmt.Errorf("state: members: %w", err)
	}
	var r Recovered
	for _, server := range before.Servers {
		r.Were = append(r.Were, string(server.ID))
		if strings.HasSuffix(string(server.ID), "-"+digits) {
			r.ID = string(server.ID)
		}
	}
	if r.ID == "" {
		return r, fmt.Errorf("state: no member's id ends with -%s: %v; was this disk another head's?", digits, r.Were)
	}
	config.LocalID = raft.ServerID(r.ID)
	machine := newMachine()
	err = raft.RecoverCluster(config, machine, logs, logs, snapshots, nowhere, raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: config.LocalID, Address: raft.ServerAddress(r.ID),
	}}})
	if err != nil {
		return r, fmt.Errorf("state: recover: %w", err)
	}
	r.View = machine.view.Load()
	return r, nil
}
