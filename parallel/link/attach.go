package link

import (
	"fmt"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"manta/internal/trust"
)

// attach connects a device process to its node's server, for grants and for its inbox. When such a
// connection breaks the process can't be reached any more: Lost is told of itself.
func (l *Link) attach() error {
	home := l.self.Home()
	address, err := l.cfg.Resolve(home)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	for which := range lanes {
		conn, err := nats.Connect("tls://"+address,
			nats.Name(l.self.String()), nats.Secure(l.cfg.Authority.Client(home)), nats.TLSHandshakeFirst(),
			nats.NoReconnect(), nats.Timeout(dialTimeout), nats.FlusherTimeout(writeDeadline),
			nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(maxPings), nats.NoCallbacksAfterClientClose(),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
				l.log.Error("link grant", "lane", which.String(), "error", err)
			}),
			nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { l.cfg.Lost(l.self, lost(err)) }))
		if err != nil {
			return fmt.Errorf("%w: dial %s: %w", ErrBroken, address, err)
		}
		l.local[which] = conn
	}
	return l.open()
}

// leadsTo separates the two ends in the name of a lane's connection.
const leadsTo = " to "

func laneName(self, peer trust.Identity) string { return self.String() + leadsTo + peer.String() }

// Disconnect breaks every connection that leads to a device process of this node
// which has ended: its peers learn it at once, and do not go on with a session that
// the next process knows nothing of.
func (l *Link) Disconnect(device trust.Identity) error {
	for offset := 0; ; {
		list, err := l.server.Connz(&server.ConnzOptions{Offset: offset})
		if err != nil {
			return fmt.Errorf("link: list connections: %w", err)
		}
		for _, c := range list.Conns {
			if strings.HasSuffix(c.Name, leadsTo+device.String()) {
				_ = l.server.DisconnectClientByID(c.Cid) // it may be gone already
			}
		}
		if offset += len(list.Conns); len(list.Conns) == 0 || offset >= list.Total {
			return nil
		}
	}
}
