package serve

import (
	"context"

	"manta/node/wire"
)

// Hosted is one replica's life on this node, in this process or in one of its own.
type Hosted interface {
	// Want takes an assignment; one that is not newer changes nothing.
	Want(a wire.Assignment)
	// Run lives until ctx ends or Stop is called; then the devices are free.
	Run(ctx context.Context)
	Stop()
	Report() wire.ReplicaReport
	// Credit is what each of so many heads may have outstanding; false: no driver is here.
	Credit(heads int, draining bool) (wire.Credit, bool)
}

var _ Hosted = (*replica)(nil)

// Hosts runs replicas in processes of their own.
type Hosts interface {
	Host(a wire.Assignment) Hosted
	// Drain returns when the processes' requests have ended, or with ctx.
	Drain(ctx context.Context) error
}

func (s *Server) host(a wire.Assignment) Hosted {
	if s.cfg.Hosts != nil {
		return s.cfg.Hosts.Host(a)
	}
	return newReplica(s, a)
}
