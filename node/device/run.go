package device

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"manta/internal/trace"
	"manta/internal/trust"
	"manta/node/serve"
	"manta/node/wire"
	"manta/parallel/link"
	"manta/runtime/weights"
)

const (
	// tellEvery is the heartbeat that the node sees.
	tellEvery = 500 * time.Millisecond
	// breaking is what a device that is lost may take to be let go.
	breaking = time.Second
)

// Errors that end a device process.
var (
	errParent = errors.New("device: the node is gone")
	errBroken = errors.New("device: device lost")
)

// worker is the process.
type worker struct {
	life    life
	log     *slog.Logger
	link    *link.Link
	server  *serve.Server
	changed chan struct{} // holds one: there is something to tell
	end     context.CancelCauseFunc

	mu      sync.Mutex // guards what follows
	members map[trust.Identity]wire.Member
	heads   int
	drain   bool
}

// Config is what a device process is made of.
type Config struct {
	Input io.Reader // its life line
	Logs  io.Writer
	// Kinds opens what --devices names.
	Kinds func(devices string) ([]serve.Kind, error)
	// Library gives how to open a download folder; "" is the given one.
	Library func(downloads string) func(dir string) *weights.Library
}

// Run is the device process: it obeys the node at the other end of its input until
// that ends.
func Run(ctx context.Context, cfg Config) error {
	w := &worker{log: slog.New(slog.NewJSONHandler(cfg.Logs, nil)), changed: make(chan struct{}, 1), members: map[trust.Identity]wire.Member{}}
	err := w.run(ctx, cfg)
	switch {
	case errors.Is(err, errParent), ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil
	case err != nil:
		w.log.Error("device process", "error", err.Error())
	}
	return err
}

func (w *worker) run(ctx context.Context, cfg Config) error {
	reader := bufio.NewReader(cfg.Input)
	text, err := reader.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(text, &w.life)
	}
	if err != nil {
		return fmt.Errorf("device: this command is for a node to call: first line: %w", err)
	}
	ctx, w.end = context.WithCancelCause(ctx)
	defer w.end(nil)
	defer context.AfterFunc(ctx, func() { w.leave(context.Cause(ctx)) })()
	go w.hold(reader) // ends with the life line, at the latest with the process
	devices, err := cfg.Kinds(w.life.Devices)
	if err != nil {
		return err
	}
	authority, err := trust.NewAuthority(w.life.Secrets, w.life.identity())
	if err != nil {
		return err
	}
	w.link, err = link.Start(link.Config{Authority: authority, Resolve: w.address, Lost: w.lost, Logger: w.log})
	if err != nil {
		return err
	}
	defer w.link.Close()
	tracer, err := trace.Open(trace.Config{Endpoint: w.life.Traces, Service: "manta-node", Instance: w.life.identity().String(), Logger: w.log})
	if err != nil {
		return err
	}
	defer tracer.Close()
	w.server = serve.New(serve.Config{
		Node: w.life.Node, Devices: devices, Tracer: tracer, Send: Heads{w.link}, Peers: Peers{w.link, w.ranks}, Logger: w.log, Changed: w.wake,
		Library: cfg.Library(w.life.Downloads),
		Broken:  func(err error) { w.end(fmt.Errorf("%w: %w", errBroken, err)) },
	})
	Receive(w.link, w.server, w.log)
	Handle(w.link, w.log, w.obey, wire.KindOrders, trust.Node)
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return w.server.Run(running) })
	group.Go(func() error { return w.tell(running) })
	err = group.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// leave ends what does not end by itself, in a driver that hangs say.
func (w *worker) leave(cause error) {
	grace := parting / 2
	if errors.Is(cause, errBroken) {
		grace = breaking
	}
	time.AfterFunc(grace, func() {
		w.log.Error("device process", "error", cause.Error())
		os.Exit(1)
	})
}

// hold waits for the end of the life line.
func (w *worker) hold(line io.Reader) {
	_, _ = io.Copy(io.Discard, line) // an error ends it as well
	w.end(errParent)
}

// wake asks for what changed to be told at once.
func (w *worker) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// lost ends the process when its node can't be reached: nobody would stop it.
// When it is ranks elsewhere that can't, their epoch ends.
func (w *worker) lost(peer trust.Identity, err error) {
	switch {
	case peer == w.life.identity():
		w.end(fmt.Errorf("%w: %w", errParent, err))
	case peer.Role != trust.Head && !errors.Is(err, link.ErrReplaced):
		w.server.Lost(peer.Home().ID, err)
	}
}

// obey takes the node's orders.
func (w *worker) obey(o wire.Orders) {
	if o.Version > wire.Version || o.Assignment.Replica != w.life.Replica {
		return
	}
	members := make(map[trust.Identity]wire.Member, len(o.Members))
	for _, m := range o.Members {
		members[trust.Identity{Role: trust.Role(m.Role), ID: m.ID}] = m
	}
	w.mu.Lock()
	w.members, w.heads = members, o.Heads
	drain := o.Draining && !w.drain
	w.drain = w.drain || drain
	w.mu.Unlock()
	w.server.Assign(wire.Assignments{Version: wire.Version, Index: o.Assignment.Epoch, Replicas: []wire.Assignment{o.Assignment}})
	if drain {
		w.server.Refuse()
	}
}

// tell says how the process is, again and again, and at once when that changes.
func (w *worker) tell(ctx context.Context) error {
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	for {
		if err := w.send(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: %w", errParent, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.changed:
		case <-ticker.C:
		}
	}
}

func (w *worker) send(ctx context.Context) error {
	w.mu.Lock()
	heads := w.heads
	w.mu.Unlock()
	message := wire.Told{Version: wire.Version, Boot: w.life.Boot, Requests: w.server.Requests(), Resident: resident()}
	for _, r := range w.server.Report().Replicas {
		message.Report = r
	}
	message.Report.Replica = w.life.Replica
	for _, c := range w.server.Credits(heads) {
		message.Credit = &c
	}
	data, err := wire.Marshal(message)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, sendTimeout)
	defer stop()
	return w.link.Send(ctx, w.life.identity().Home(), link.Control, wire.KindTold, data)
}

func (w *worker) address(peer trust.Identity) (string, error) {
	if peer == w.life.identity().Home() {
		return w.life.Address, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.members[peer]
	if !ok {
		return "", fmt.Errorf("%s is not a living member", peer)
	}
	return m.Address, nil
}

func (w *worker) ranks(node, replica string) trust.Identity {
	id := trust.Identity{Role: trust.Node, ID: node}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.members[id].Processes {
		return trust.DeviceOf(node, replica)
	}
	return id
}
