package head

import (
	"context"
	"net"
	"net/http"
	"time"

	"manta/head/dispatch"
	"manta/internal/telemetry"
	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

// sendTimeout bounds how long a message may wait for its link.
const sendTimeout = 5 * time.Second

// sender gives requests to nodes.
type sender struct{ head *Head }

var _ dispatch.Link = sender{}

func (s sender) Send(ctx context.Context, node string, request *wire.Request) error {
	return s.send(ctx, node, request.Replica, wire.KindRequest, request)
}

func (s sender) Cancel(ctx context.Context, node string, cancel *wire.Cancel) error {
	return s.send(ctx, node, cancel.Replica, wire.KindCancel, cancel)
}

func (s sender) send(ctx context.Context, node, replica, kind string, message any) error {
	data, err := wire.Marshal(message)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, sendTimeout)
	defer stop()
	if kind == wire.KindRequest {
		err = s.head.link.Follow(ctx, trust.Identity{Role: trust.Node, ID: node})
	}
	if err == nil {
		err = s.head.link.Send(ctx, s.head.members.Load().Ranks(node, replica), link.Control, kind, data)
	}
	if err != nil && ctx.Err() == nil {
		s.head.silence(node)
	}
	return err
}

// listen says what becomes of the messages that nodes send. Handlers wait for nothing:
// the goroutine that calls them reads all nodes.
func (h *Head) listen() {
	handle(h, wire.KindFrames, wire.UnmarshalFrames, func(_ string, frames *wire.Frames) int {
		for i := range frames.Frames {
			h.dispatch.Frame(&frames.Frames[i])
		}
		return frames.Version
	})
	handle(h, wire.KindCredit, unmarshal, func(node string, credit *wire.Credit) int {
		if credit.Node == node {
			h.dispatch.Credit(*credit)
		}
		return credit.Version
	})
	handle(h, wire.KindReport, unmarshal, func(node string, report *wire.Report) int {
		if report.Node == node && report.Version <= wire.Version {
			h.control.report(*report)
			h.measure(report)
			for _, credit := range report.Credits {
				if credit.Node == node {
					h.dispatch.Credit(credit)
				}
			}
		}
		return report.Version
	})
}

func unmarshal[M any](data []byte, message *M) error { return wire.Unmarshal(data, message) }

// handle decodes messages of a kind from nodes; take gives the version it found.
func handle[M any](h *Head, kind string, decode func([]byte, *M) error, take func(node string, message *M) int) {
	h.link.Handle(kind, func(m link.Message) {
		message := new(M)
		// A device process sends frames; all else its node tells.
		if m.From.Role != trust.Node && (m.From.Role != trust.Device || kind != wire.KindFrames) {
			h.log.Warn("message refused", "kind", kind, "from", m.From.String())
			return
		}
		if err := decode(m.Data, message); err != nil {
			h.log.Warn("message refused", "kind", kind, "from", m.From.String(), "error", err)
			return
		}
		if v := take(m.From.ID, message); v > wire.Version {
			h.log.Warn("message refused", "kind", kind, "from", m.From.String(), "version", v)
		}
	})
}

// measure passes what drivers count on to the metrics.
func (h *Head) measure(report *wire.Report) {
	view := h.raft.View()
	var gpus []telemetry.GPU
	for _, g := range report.GPUs {
		gpus = append(gpus, telemetry.GPU{
			Index: g.Index, UUID: g.UUID, Name: g.Name, Memory: g.Memory, Free: g.Free, Utilisation: g.Utilisation,
			Temperature: g.Temperature, Watts: g.Watts, Uncorrected: g.Uncorrected, Xid: g.Xid, Lost: g.Lost != "",
		})
	}
	var processes []telemetry.Process
	for _, r := range report.Replicas {
		if r.Process != nil {
			processes = append(processes, telemetry.Process{Replica: r.Replica, Starts: r.Process.Starts, Resident: r.Process.Resident})
		}
	}
	h.metrics.SetNode(report.Node, gpus, processes)
	for _, r := range report.Replicas {
		replica, ok := view.Replicas[r.Replica]
		if !ok || replica.Epoch != r.Epoch || r.Phase != wire.PhaseReady || len(replica.Shards) == 0 || replica.Shards[0].Node != report.Node {
			continue
		}
		e := r.Engine
		h.metrics.SetEngine(replica.Deployment, r.Replica, r.Epoch, telemetry.Engine{
			Running: e.Running, Waiting: e.Waiting, Blocks: e.Blocks, BlocksFree: e.BlocksFree, BlocksCached: e.BlocksCached,
			SlotsTaken: e.SlotsTaken, SlotsUsed: e.SlotsUsed, PrefixQueries: e.PrefixQueries, PrefixHits: e.PrefixHits,
			Preemptions: e.Preemptions, Steps: e.Steps, Rows: e.Rows,
		})
	}
}

// serveMetrics answers /metrics on a port of its own, until ctx ends.
func serveMetrics(ctx context.Context, listener net.Listener, metrics http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	err := server.Close()
	<-served
	return err
}
