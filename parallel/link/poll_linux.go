package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"manta/internal/nowait"
)

// canFollow: elsewhere tokens come to the inbox.
const canFollow = true

// A poller tells which of many sockets can be read: an epoll instance (epoll(7)) that the
// Go runtime waits for as for one more socket. So many that come at once wake one
// goroutine, on the thread that waited. The scheduler is not told of its system calls,
// for the reason that nowait gives.
type poller struct {
	file   *os.File
	raw    syscall.RawConn
	try    func(fd uintptr) bool
	events [64]unix.EpollEvent
	count  int
	failed error

	mu    sync.Mutex // guards what follows
	feeds map[int32]*feed
	next  int32
	ready []*feed // of wait's caller
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p := &poller{file: os.NewFile(uintptr(fd), "epoll"), feeds: map[int32]*feed{}}
	p.try = p.look
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p, nil
}

func (p *poller) add(f *feed) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	f.plain.id = p.next
	p.feeds[p.next] = f
	return p.control(unix.EPOLL_CTL_ADD, f.plain, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: p.next})
}

func (p *poller) remove(f *feed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.feeds, f.plain.id)
	_ = p.control(unix.EPOLL_CTL_DEL, f.plain, nil) // a socket that is closed is gone from it too
}

func (p *poller) control(what int, s *socket, event *unix.EpollEvent) (err error) {
	failed := p.raw.Control(func(fd uintptr) { err = unix.EpollCtl(int(fd), what, s.fd, event) })
	return errors.Join(failed, err)
}

// wait gives the feeds that can be read, until the poller is closed.
func (p *poller) wait() ([]*feed, error) {
	if err := p.raw.Read(p.try); err != nil {
		return nil, err
	}
	if p.failed != nil {
		return nil, p.failed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = p.ready[:0]
	for _, event := range p.events[:p.count] {
		if f := p.feeds[event.Fd]; f != nil {
			p.ready = append(p.ready, f)
		}
	}
	return p.ready, nil
}

// look reports whether there is anything.
func (p *poller) look(fd uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), 0, 0, 0)
		switch errno {
		case 0:
			p.count = int(n)
			return p.count > 0
		case syscall.EINTR:
		default:
			p.count, p.failed = 0, fmt.Errorf("epoll: %w", errno)
			return true
		}
	}
}

func (p *poller) close() { p.file.Close() }

// A socket is a connection until detach; then it reads what has come and never waits.
// One goroutine reads and closes it.
type socket struct {
	net.Conn // nil once detached
	fd       int
	id       int32
	empty    bool // nothing more has come

	mu     sync.Mutex // guards closed, and fd against its use after that
	closed bool
}

// errLater is temporary, so TLS goes on where it was.
var errLater net.Error = later{}

type later struct{}

func (later) Error() string   { return "link: nothing more has come" }
func (later) Timeout() bool   { return true }
func (later) Temporary() bool { return true }

// detach takes the socket away from the runtime, which would wake for it.
func (s *socket) detach() error {
	raw, err := s.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { s.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	s.Conn.Close()
	s.Conn = nil
	return nil
}

// readable says that something may have come.
func (s *socket) readable() { s.empty = false }

func (s *socket) Read(p []byte) (int, error) {
	if s.Conn != nil {
		return s.Conn.Read(p)
	}
	if s.empty || len(p) == 0 {
		return 0, errLater
	}
	n, err := nowait.Read(uintptr(s.fd), p)
	switch {
	case err == syscall.EAGAIN:
		s.empty = true
		return 0, errLater
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	s.empty = n < len(p) // else the poller says so again
	return n, nil
}

// Write writes all of it at once, or fails: what is written here is short.
func (s *socket) Write(p []byte) (int, error) {
	if s.Conn != nil {
		return s.Conn.Write(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(p) == 0 {
		return 0, net.ErrClosed
	}
	n, err := nowait.Write(uintptr(s.fd), p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

// shut makes whoever reads it see its end.
func (s *socket) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR) // it may have ended already
	}
}

// Close is called by who reads it.
func (s *socket) Close() error {
	if s.Conn != nil {
		return s.Conn.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return unix.Close(s.fd)
}
