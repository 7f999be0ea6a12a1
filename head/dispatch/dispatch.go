package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"manta/head/route"
	"manta/head/state"
	"manta/node/wire"
	"manta/runtime/kv"
)

// maxRefusals bounds how often in a row one request is refused by a driver that
// lives, or gets faulty frames from it.
const maxRefusals = 40

// Config is what a Dispatcher needs. Zero limits mean the defaults.
type Config struct {
	Head  string // this head's name in requests
	Views Views
	Link  Link
	Meter Meter
	Log   *slog.Logger
	// MaxQueue bounds the requests of one key that wait here for one deployment; those
	// of all keys together are bounded by eight times as many.
	MaxQueue int
	// MaxBacklog bounds the bytes that wait for one slow client.
	MaxBacklog int
	// StreamInterval is how many tokens come at once, after the first one; 0: as they are.
	StreamInterval int
}

const (
	defaultMaxQueue   = 512
	defaultMaxBacklog = 4 << 20
)

// Dispatcher is the head's queue and switchboard. It is safe for concurrent use.
// Lock order: a stream's turn, Dispatcher.mu, mailbox.mu.
type Dispatcher struct {
	name       string
	views      Views
	link       Link
	meter      Meter
	log        *slog.Logger
	maxQueue   int
	maxBacklog int
	interval   int

	mu         sync.Mutex
	streams    map[wire.RequestID]*Stream // guarded by mu
	queues     map[string]*queue          // guarded by mu, by deployment
	loads      map[string]route.Load      // guarded by mu, by replica
	cached     map[string]*route.Cached   // guarded by mu, by replica
	told       []route.Sent               // guarded by mu: what the other heads have yet to hear
	toTell     chan struct{}              // holds one: told has something
	toldBlocks int                        // guarded by mu: in told
	faded      time.Time                  // guarded by mu: when the loads' Work last was
	rates      map[string]*rate           // guarded by mu, by deployment
	arrivals   uint64                     // guarded by mu
	draining   bool                       // guarded by mu
	idle       chan struct{}              // guarded by mu: closed when draining and empty
}

// New makes a dispatcher; Run must run for it to notice changes of the View.
func New(config Config) *Dispatcher {
	d := &Dispatcher{
		name: config.Head, views: config.Views, link: config.Link, meter: config.Meter, log: config.Log,
		maxQueue: config.MaxQueue, maxBacklog: config.MaxBacklog, interval: config.StreamInterval,
		streams: map[wire.RequestID]*Stream{}, queues: map[string]*queue{},
		loads: map[string]route.Load{}, cached: map[string]*route.Cached{}, rates: map[string]*rate{},
		idle: make(chan struct{}), toTell: make(chan struct{}, 1), faded: time.Now(),
	}
	if d.maxQueue == 0 {
		d.maxQueue = defaultMaxQueue
	}
	if d.maxBacklog == 0 {
		d.maxBacklog = defaultMaxBacklog
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Run follows the View until ctx ends: requests of replicas that are gone resume,
// and those that wait go to replicas that have come.
func (d *Dispatcher) Run(ctx context.Context) error {
	for {
		if _, err := d.views.Wait(ctx, d.observe()); err != nil {
			return ctx.Err()
		}
	}
}

// Submit queues a request. The caller runs the stream and closes it.
func (d *Dispatcher) Submit(request Request) (*Stream, error) {
	s := &Stream{
		dispatcher: d, request: request, place: notQueued, running: request.Choices,
		times:   times{accepted: time.Now(), last: make([]time.Time, request.Choices)},
		mailbox: mailbox{attempt: request.Attempt, wake: make(chan struct{}, 1)},
		chain:   kv.Extend(nil, kv.Hash{}, request.Prompt),
	}
	if request.Seen != nil && len(request.Seen) != request.Choices {
		return nil, fmt.Errorf("request %s: %d choices, the id names %d: %w",
			request.ID, request.Choices, len(request.Seen), ErrNotFound)
	}
	if until := request.waitUntil(); !until.IsZero() {
		s.deadline = time.After(time.Until(until))
	}
	if s.turn = request.Turn; s.turn == nil {
		s.turn = &sync.Mutex{}
	}
	for i := range request.Choices {
		s.choices = append(s.choices, newChoice(i, &s.request))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draining {
		return nil, ErrDraining
	}
	if old, taken := d.streams[request.ID]; taken {
		if request.Seen == nil {
			return nil, fmt.Errorf("request %s is in progress: %w", request.ID, ErrInvalid)
		}
		// The client came back before its first connection was found dead.
		s.mailbox.attempt = max(request.Attempt, d.supersede(old))
	}
	waiting := d.queue(request.Deployment)
	if most := waiting.room(request.Key, d.maxQueue); most <= 0 {
		return nil, &QueueFullError{
			Deployment: request.Deployment, Waiting: waiting.Len(),
			RetryAfter: d.rate(request.Deployment).wait(waiting.Len()),
		}
	}
	d.arrivals++
	s.arrival = d.arrivals
	d.streams[request.ID] = s
	d.enqueue(s)
	d.pump(d.views.View(), request.Deployment)
	return s, nil
}

// supersede takes a request from the stream that has it, whose connection is
// dead or soon will be, and gives its newest attempt. It holds mu. The driver
// hears nothing until the new stream's sending.
func (d *Dispatcher) supersede(old *Stream) uint32 {
	delete(d.streams, old.request.ID)
	if old.place != notQueued {
		d.queue(old.request.Deployment).remove(old, time.Now())
		d.meter.Waiting(old.request.Deployment, -1)
	} else if to, _ := old.mailbox.where(); to != nil {
		d.meter.Running(old.request.Deployment, -1)
	}
	d.credit(old, old.charged)
	d.queue(old.request.Deployment).settle(old, 0) // the new stream pays
	return old.mailbox.supersede()
}

// Frame takes what a driver sent, which passes through its request's Sink before the
// return if it can. It never waits.
func (d *Dispatcher) Frame(frame *wire.Frame) {
	d.mu.Lock()
	s := d.streams[frame.Request]
	d.mu.Unlock()
	if s == nil {
		return // ended or cancelled; the driver has been told
	}
	if s.offer(frame, d.maxBacklog) {
		d.meter.Fault(s.request.Deployment, "stale")
		return
	}
	if frame.Finish != wire.Unfinished {
		d.finished(s, frame)
	}
}

// finished gives a choice's credit back as soon as its driver is done with it:
// the reader may be held up by a slow client.
func (d *Dispatcher) finished(s *Stream, frame *wire.Frame) {
	view := d.views.View()
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.mailbox.takes(frame) {
		d.uncharge(s, frame.Choice)
		d.pump(view, s.request.Deployment)
	}
}

// Credit takes a driver's grant: the choices that this head may have there.
func (d *Dispatcher) Credit(credit wire.Credit) {
	view := d.views.View()
	d.mu.Lock()
	defer d.mu.Unlock()
	load := d.loads[credit.Replica]
	if credit.Epoch < load.Epoch {
		return
	}
	load.Epoch, load.Credit = credit.Epoch, credit.Choices
	d.loads[credit.Replica] = load
	if replica, ok := view.Replicas[credit.Replica]; ok {
		d.pump(view, replica.Deployment)
	}
}

// Disconnected tells that messages to or from a node may be lost: its requests
// are sent again, and drivers there grant anew.
func (d *Dispatcher) Disconnected(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.streams {
		s.mailbox.lose(func(t target) bool { return t.node == node })
	}
}

// Drain refuses new requests and waits until those in progress have ended.
func (d *Dispatcher) Drain(ctx context.Context) error {
	d.mu.Lock()
	if !d.draining {
		d.draining = true
		d.checkIdle()
	}
	d.mu.Unlock()
	select {
	case <-d.idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Draining reports whether Drain was called.
func (d *Dispatcher) Draining() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.draining
}

// Waiting is the number of requests of a deployment that wait here.
func (d *Dispatcher) Waiting(deployment string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q, ok := d.queues[deployment]; ok {
		return q.Len()
	}
	return 0
}

// observe acts on the newest View and gives its index. An older one would lack replicas
// whose drivers have granted already.
func (d *Dispatcher) observe() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	view := d.views.View()
	for id, load := range d.loads {
		replica, ok := view.Replicas[id]
		if !ok && load.Outstanding == 0 {
			delete(d.loads, id)
			delete(d.cached, id)
		} else if ok && load.Epoch < replica.Epoch {
			load.Credit = 0
			d.loads[id] = load
		}
	}
	for deployment := range d.rates {
		if _, ok := view.Deployments[deployment]; !ok {
			delete(d.rates, deployment)
		}
	}
	for _, s := range d.streams {
		s.mailbox.lose(func(t target) bool {
			replica, ok := view.Replicas[t.replica]
			return !ok || replica.Epoch != t.epoch || replica.Phase == state.Failed
		})
	}
	for deployment := range d.queues {
		d.pump(view, deployment)
	}
	return view.Index
}

// pump grants what waits, in order, for as long as there is credit, and tells it when
// its deployment is gone. It holds mu.
func (d *Dispatcher) pump(view *state.View, deployment string) {
	waiting := d.queue(deployment)
	if _, ok := view.Deployments[deployment]; !ok {
		for _, f := range waiting.flows {
			for _, s := range f.items {
				s.mailbox.delete()
			}
		}
		if waiting.Len() == 0 {
			delete(d.queues, deployment)
		}
		return
	}
	now := time.Now()
	d.fade(now)
	if waiting.Len() > 0 {
		waiting.runs = float64(route.Runs(view, d.loads, deployment))
	}
	for full := map[*flow]bool{}; d.grantNext(view, deployment, waiting, full, now); {
	}
	if waiting.empty(now) {
		delete(d.queues, deployment)
	}
}

// grantNext gives the flow whose turn it is a place, if there is one. A flow that
// leaves the rest to others is full, and does not stand in their way. It holds mu.
func (d *Dispatcher) grantNext(view *state.View, deployment string, waiting *queue, full map[*flow]bool, now time.Time) bool {
	if waiting.Len() == 0 {
		return false
	}
	all := waiting.stand(now)
	for _, f := range waiting.turns() {
		if full[f] {
			continue
		}
		s := f.items[0]
		choices := max(s.running, 1)
		hits := d.hits(view, s)
		spare := 0.0
		if s.cost == 0 {
			spare = waiting.leaves(f, all, now)
		}
		replica, ok := route.Choose(view, d.loads, route.Request{
			Deployment: deployment, Choices: choices, Prompt: len(s.request.Prompt), Hits: hits, Session: s.request.Session, Spare: spare,
		})
		if !ok && spare > 0 {
			full[f] = true
			continue
		}
		if !ok {
			return false
		}
		node, ok := route.Driver(replica)
		if !ok {
			d.log.Error("replica without a driver", "replica", replica.ID)
			return false
		}
		d.dequeue(s)
		waiting.granted(s, choices)
		d.charge(s, replica, choices, hits[replica.ID])
		s.mailbox.grant(target{replica: replica.ID, node: node, epoch: replica.Epoch})
		return true
	}
	return false
}

func (d *Dispatcher) queue(deployment string) *queue {
	q, ok := d.queues[deployment]
	if !ok {
		q = newQueue()
		d.queues[deployment] = q
	}
	return q
}

func (d *Dispatcher) rate(deployment string) *rate {
	r, ok := d.rates[deployment]
	if !ok {
		r = &rate{}
		d.rates[deployment] = r
	}
	return r
}

func (d *Dispatcher) enqueue(s *Stream) {
	d.queue(s.request.Deployment).add(s, time.Now())
	d.meter.Waiting(s.request.Deployment, 1)
}

func (d *Dispatcher) dequeue(s *Stream) {
	d.queue(s.request.Deployment).remove(s, time.Now())
	d.meter.Waiting(s.request.Deployment, -1)
	d.meter.Running(s.request.Deployment, 1)
}

// detach takes a request off its replica, and tells where it ran.
func (d *Dispatcher) detach(s *Stream) (*target, uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.streams[s.request.ID] != s {
		return nil, 0 // superseded
	}
	d.credit(s, s.charged)
	d.meter.Running(s.request.Deployment, -1)
	return s.mailbox.withdraw()
}

// requeue lets a detached request wait again. It is not held to the queue's
// bound: it was admitted.
func (d *Dispatcher) requeue(s *Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.streams[s.request.ID] == s { // else superseded
		d.enqueue(s)
		d.pump(d.views.View(), s.request.Deployment) // not older than what was observed
	}
}

// ended gives back the credit of a choice, and tells where it ran.
func (d *Dispatcher) ended(s *Stream, choice int) (*target, uint32) {
	view := d.views.View()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.uncharge(s, choice)
	d.pump(view, s.request.Deployment)
	return s.mailbox.where()
}

// uncharge gives back the credit of a choice, once since it was granted. It
// holds mu.
func (d *Dispatcher) uncharge(s *Stream, choice int) {
	if slices.Contains(s.repaid, choice) {
		return
	}
	s.repaid = append(s.repaid, choice)
	d.credit(s, min(1, s.charged))
	d.rate(s.request.Deployment).count(time.Now())
}

// credit takes choices off the load of the stream's replica. It holds mu.
func (d *Dispatcher) credit(s *Stream, choices int) {
	to, _ := s.mailbox.where()
	if to == nil || choices == 0 {
		return
	}
	load := d.loads[to.replica]
	load.Outstanding = max(0, load.Outstanding-choices)
	if s.charged -= choices; s.charged == 0 {
		load.Pending, s.pending = max(0, load.Pending-s.pending), 0
	}
	d.loads[to.replica] = load
	d.queue(s.request.Deployment).released(s.request.Key, choices, time.Now())
}

// forget removes a stream that took so many tokens to compute, and tells where it
// ran, if it did.
func (d *Dispatcher) forget(s *Stream, spent int) (*target, uint32) {
	view := d.views.View()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.streams[s.request.ID] == s {
		delete(d.streams, s.request.ID)
	}
	if s.place != notQueued {
		d.queue(s.request.Deployment).remove(s, time.Now())
		d.meter.Waiting(s.request.Deployment, -1)
	} else if to, _ := s.mailbox.where(); to != nil {
		d.meter.Running(s.request.Deployment, -1)
	}
	d.credit(s, s.charged)
	d.queue(s.request.Deployment).settle(s, spent)
	d.pump(view, s.request.Deployment)
	d.checkIdle()
	return s.mailbox.withdraw()
}

func (d *Dispatcher) checkIdle() {
	if d.draining && len(d.streams) == 0 {
		select {
		case <-d.idle:
		default:
			close(d.idle)
		}
	}
}

// cancel tells a driver. What can't be told is found by the driver itself: its
// frames have no reader, or its head is gone.
func (d *Dispatcher) cancel(id wire.RequestID, attempt uint32, to target, choices []int) {
	message := &wire.Cancel{Version: wire.Version, ID: id, Attempt: attempt, Choices: choices, Replica: to.replica}
	ctx, stop := context.WithTimeout(context.Background(), cancelTimeout)
	defer stop()
	if err := d.link.Cancel(ctx, to.node, message); err != nil {
		d.log.Warn("cancel not sent", "request", id, "node", to.node, "error", err)
	}
}

const cancelTimeout = 2 * time.Second
