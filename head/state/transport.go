package state

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"manta/internal/trust"
)

// A Resolver gives the network address of a head's raft port.
type Resolver func(id string) (address string, err error)

// stream carries raft over TLS. Raft's addresses are ids: they outlive a head's
// IP, Dial resolves them, and the certificate proves who answered.
type stream struct {
	listener  net.Listener
	authority *trust.Authority
	resolve   Resolver
}

var _ raft.StreamLayer = (*stream)(nil)

// id is a raft address.
type id string

func (id) Network() string  { return "manta" }
func (i id) String() string { return string(i) }

func listen(address string, authority *trust.Authority, resolve Resolver) (*stream, error) {
	plain, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("state: raft port: %w", err)
	}
	return &stream{listener: plain, authority: authority, resolve: resolve}, nil
}

var errNotHead = errors.New("state: only heads speak raft")

// Accept gives a connection whose handshake happens at the first read, so that a
// slow peer does not hold the others up; only heads pass it.
func (s *stream) Accept() (net.Conn, error) {
	conn, err := s.listener.Accept()
	if err != nil {
		return nil, err
	}
	config := s.authority.Server()
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verify(state); err != nil {
			return err
		}
		if peer, err := s.authority.Peer(state); err != nil || peer.Role != trust.Head {
			return errors.Join(errNotHead, err)
		}
		return nil
	}
	return tls.Server(conn, config), nil
}

func (s *stream) Close() error   { return s.listener.Close() }
func (s *stream) Addr() net.Addr { return id(s.authority.Self().ID) }

func (s *stream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	address, err := s.resolve(string(to))
	if err != nil {
		return nil, fmt.Errorf("state: raft peer %s: %w", to, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	dialer := tls.Dialer{Config: s.authority.Client(trust.Identity{Role: trust.Head, ID: string(to)})}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("state: raft peer %s at %s: %w", to, address, err)
	}
	return conn, nil
}
