//go:build !linux

package link

import (
	"errors"
	"net"
)

// canFollow: there is no epoll here, so tokens come to the inbox.
const canFollow = false

var (
	errNoPoller = errors.New("link: no epoll on this system")
	errLater    = errNoPoller
)

type poller struct{}

func newPoller() (*poller, error)      { return nil, errNoPoller }
func (*poller) add(*feed) error        { return errNoPoller }
func (*poller) remove(*feed)           {}
func (*poller) wait() ([]*feed, error) { return nil, errNoPoller }
func (*poller) close()                 {}

type socket struct{ net.Conn }

func (*socket) detach() error { return errNoPoller }
func (*socket) readable()     {}
func (s *socket) shut()       { s.Close() }
