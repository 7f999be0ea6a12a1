package link

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"manta/internal/trust"
)

const (
	writeDeadline = 5 * time.Second
	// inboxDeadline is how long a handler may keep its lane from what comes next: then
	// the server closes our inbox, and what it held is lost.
	inboxDeadline = 30 * time.Second
	maxPending    = 512 << 20
	maxPeers      = 4096
)

// Subjects. A process subscribes to <role>.<id>.<lane>.> at its own server; a
// peer publishes there as <role>.<id>.<lane>.<its role>.<its id>.<kind>, and the
// server lets it publish under no other name. Credit comes back on
// credit.<its role>.<its id>.<lane>. On the lane of tokens the server is the sender's,
// and the peer subscribes.
func inbox(owner trust.Identity) string { return string(owner.Role) + "." + owner.ID }

func subject(owner trust.Identity, lane Lane, sender trust.Identity, kind string) string {
	return inbox(owner) + "." + lane.String() + "." + inbox(sender) + "." + kind
}

func creditSubject(sender trust.Identity, lane Lane) string {
	return "credit." + inbox(sender) + "." + lane.String()
}

// parseSubject gives the sender and the kind.
func parseSubject(subject string) (trust.Identity, string, error) {
	part := strings.Split(subject, ".")
	if len(part) != 6 {
		return trust.Identity{}, "", fmt.Errorf("%w: subject %q", ErrProtocol, subject)
	}
	sender := trust.Identity{Role: trust.Role(part[3]), ID: part[4]}
	return sender, part[5], sender.Check()
}

// serve starts the embedded server. It speaks TLS from the first byte; only our own
// connections, which do not leave the process, come before it does and listens: it
// would wait 50 ms before it takes one for a connection without TLS.
func (l *Link) serve() error {
	host, portText, err := net.SplitHostPort(l.cfg.Listen)
	if err != nil {
		return fmt.Errorf("link: listen address %q: %w", l.cfg.Listen, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return fmt.Errorf("link: listen address %q: bad port", l.cfg.Listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	} else if err := portIsFree(l.cfg.Listen); err != nil {
		return err // the server itself would end the process
	}
	l.password = rand.Text()
	l.server, err = server.NewServer(l.options(host, port, false))
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	l.server.SetLoggerV2(serverLog{l.log}, false, false, false)
	l.server.Start()
	if err := l.connectLocal(); err != nil {
		return err
	}
	if err := l.open(); err != nil {
		return err
	}
	if err := l.spare(); err != nil {
		return err
	}
	if err := l.server.ReloadOptions(l.options(host, port, true)); err != nil {
		return fmt.Errorf("link: TLS first: %w", err)
	}
	listening := make(chan struct{})
	l.server.AcceptLoop(listening)
	<-listening
	if l.server.Addr() == nil {
		return fmt.Errorf("link: NATS server does not listen on %s", l.cfg.Listen)
	}
	return nil
}

// options gives the server's, before it speaks TLS first and since.
func (l *Link) options(host string, port int, first bool) *server.Options {
	deadline := inboxDeadline // our own connections come before
	if first {
		deadline = writeDeadline
	}
	return &server.Options{
		ServerName:                 inbox(l.self),
		Host:                       host,
		Port:                       port,
		DontListen:                 true, // AcceptLoop is called when all is set
		TLSConfig:                  l.cfg.Authority.Server(),
		TLSTimeout:                 5,
		TLSHandshakeFirst:          first,
		TLSVerify:                  true,
		AuthTimeout:                10,
		CustomClientAuthentication: &gatekeeper{l.self, l.cfg.Authority, l.password, l.log},
		MaxPayload:                 maxPayload,
		MaxPending:                 maxPending,
		MaxConn:                    maxPeers * int(lanes),
		MaxSubs:                    16,
		WriteDeadline:              deadline,
		NoSigs:                     true,
		NoSystemAccount:            true,
		DisableShortFirstPing:      true,
	}
}

func portIsFree(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("link: listen on %s: %w", address, err)
	}
	return listener.Close()
}

// gatekeeper says who may connect and what each may do.
type gatekeeper struct {
	self      trust.Identity
	authority *trust.Authority
	password  string // of our own connections, which do not leave the process
	log       *slog.Logger
}

var _ server.Authentication = (*gatekeeper)(nil)

func (g *gatekeeper) Check(c server.ClientAuthentication) bool {
	state := c.GetTLSConnectionState()
	if state == nil {
		given := c.GetOpts().Token
		return subtle.ConstantTimeCompare([]byte(given), []byte(g.password)) == 1
	}
	peer, err := g.authority.Peer(*state)
	if err != nil {
		g.log.Warn("link refused", "remote", c.RemoteAddress(), "error", err)
		return false
	}
	// Every device process of this node subscribes here, nobody else's does.
	devices := trust.Identity{Role: trust.Device, ID: "*"}
	var publish, subscribe []string
	for lane := range lanes {
		publish = append(publish, subject(g.self, lane, peer, "*"), subject(devices, lane, peer, "*"))
		subscribe = append(subscribe, creditSubject(peer, lane))
	}
	publish = append(publish, creditSubject(g.self, Tokens), creditSubject(devices, Tokens))
	subscribe = append(subscribe, inbox(peer)+"."+Tokens.String()+".>")
	if peer.Role == trust.Device && peer.Home() == g.self {
		everyone := trust.Identity{Role: "*", ID: "*"}
		publish = append(publish, "credit.>", subject(everyone, Tokens, peer, "*"))
		subscribe = append(subscribe, inbox(peer)+".>", creditSubject(peer, Tokens))
	}
	c.RegisterUser(&server.User{Username: peer.String(), Permissions: &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: publish},
		Subscribe: &server.SubjectPermission{Allow: subscribe},
	}})
	return true
}

// serverLog passes what the NATS server has to say on to slog. Its errors (a
// handshake refused, a client cut off) are a process's warnings; notices of its
// starting and stopping are left out.
type serverLog struct{ log *slog.Logger }

func (s serverLog) Noticef(string, ...any) {}
func (s serverLog) Debugf(string, ...any)  {}
func (s serverLog) Tracef(string, ...any)  {}
func (s serverLog) Warnf(format string, v ...any) {
	if strings.Contains(format, "TLS Handshake First") {
		return // no client is to connect without
	}
	s.log.Info("nats", "message", fmt.Sprintf(format, v...))
}
func (s serverLog) Errorf(format string, v ...any) {
	s.log.Warn("nats", "message", fmt.Sprintf(format, v...))
}
func (s serverLog) Fatalf(format string, v ...any) {
	s.log.Error("nats", "message", fmt.Sprintf(format, v...))
}
