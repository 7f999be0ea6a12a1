package link

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// inboxBuffer holds a few chunks: what a subscriber gives away lies in it.
const inboxBuffer = 128 << 10

// A subscriber is the reading half of a NATS client at the server that holds this
// process's inbox. It hands on what arrives from its one buffer, on the goroutine that
// reads: the client library would copy each chunk twice more and wake two.
type subscriber struct {
	conn     net.Conn
	buffer   []byte
	from, to int // what has arrived and is not handled yet
}

// connectOptions is what a NATS client says of itself.
type connectOptions struct {
	Verbose  bool   `json:"verbose"`
	Pedantic bool   `json:"pedantic"`
	TLS      bool   `json:"tls_required"`
	Token    string `json:"auth_token,omitempty"`
	Name     string `json:"name"`
	Language string `json:"lang"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	// Both: the server tells when nobody has subscribed to what asks for an answer.
	Headers      bool `json:"headers,omitempty"`
	NoResponders bool `json:"no_responders,omitempty"`
}

// wideID is a subscription's, which stands before each message. The server gathers what
// it writes in buffers of 512 bytes, 4 KiB or 64 KiB, the first so large that a message's
// first line fits. This one needs the second: a small message then stands whole in one
// and is handed over at once, where each handing over wakes both sides in turn.
var wideID = strings.Repeat("1", 512)

// newSubscriber subscribes over a fresh connection, which it closes if it fails.
func newSubscriber(conn net.Conn, size int, options connectOptions, subject string) (*subscriber, error) {
	s := newReader(conn, size)
	options.Language, options.Protocol = "go", 1
	id := "1"
	if !options.TLS {
		id = wideID
	}
	if err := s.begin(options, subject, id); err != nil {
		conn.Close()
		return nil, fmt.Errorf("subscribe %s: %w", subject, err)
	}
	return s, nil
}

func newReader(conn net.Conn, size int) *subscriber {
	return &subscriber{conn: conn, buffer: make([]byte, size)}
}

func (s *subscriber) begin(options connectOptions, subject, id string) error {
	if err := s.conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	if line, err := s.next(); err != nil {
		return err
	} else if !bytes.HasPrefix(line, []byte("INFO ")) {
		return fmt.Errorf("%w: server begins with %.20q", ErrProtocol, line)
	}
	connect, err := json.Marshal(options)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.conn, "CONNECT %s\r\nSUB %s %s\r\nPING\r\n", connect, subject, id); err != nil {
		return err
	}
	for {
		line, err := s.next()
		switch {
		case err != nil:
			return err
		case bytes.HasPrefix(line, []byte("PONG")):
			return s.conn.SetDeadline(time.Time{})
		case bytes.HasPrefix(line, []byte("-ERR 'Permissions")):
			return fmt.Errorf("%w: %s", errRefused, bytes.TrimSpace(line))
		case bytes.HasPrefix(line, []byte("-ERR")):
			return fmt.Errorf("%w: %s", ErrBroken, bytes.TrimSpace(line))
		}
	}
}

// next waits for a line.
func (s *subscriber) next() ([]byte, error) {
	for {
		if line := s.line(); len(line) > 0 {
			s.from += len(line)
			return line, nil
		}
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
}

// line gives the next line if all of it has arrived, and does not go past it.
func (s *subscriber) line() []byte {
	end := bytes.IndexByte(s.buffer[s.from:s.to], '\n')
	return s.buffer[s.from : s.from+end+1 : s.to]
}

// fill reads what there is room for, once.
func (s *subscriber) fill() error {
	if s.from > 0 {
		s.from, s.to = 0, copy(s.buffer, s.buffer[s.from:s.to])
	}
	if s.to == len(s.buffer) {
		return fmt.Errorf("%w: a line of %d bytes", ErrProtocol, s.to)
	}
	n, err := s.conn.Read(s.buffer[s.to:])
	if s.to += n; n > 0 {
		return nil
	}
	return err
}

// run reads until the connection gives an error. What handle gets is valid until it
// returns.
func (s *subscriber) run(handle func(subject, data []byte)) error {
	for {
		for more := true; more; {
			var err error
			if more, err = s.take(handle); err != nil {
				return err
			}
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}

// take handles what comes next, and reports whether all of it had arrived.
func (s *subscriber) take(handle func(subject, data []byte)) (bool, error) {
	line := s.line()
	switch {
	case len(line) == 0:
		return false, nil
	case bytes.HasPrefix(line, []byte("MSG ")), bytes.HasPrefix(line, []byte("HMSG ")):
		return s.message(line, handle)
	}
	s.from += len(line)
	switch {
	case bytes.HasPrefix(line, []byte("PING")):
		if _, err := io.WriteString(s.conn, "PONG\r\n"); err != nil {
			return false, err
		}
	case bytes.HasPrefix(line, []byte("-ERR")):
		return false, fmt.Errorf("%w: %s", ErrBroken, bytes.TrimSpace(line))
	}
	return true, nil
}

// message handles what begins with "MSG subject sid [reply] bytes\r\n", once it is there,
// or with "HMSG subject sid [reply] header-bytes bytes\r\n": headers count as data.
func (s *subscriber) message(line []byte, handle func(subject, data []byte)) (bool, error) {
	_, head, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
	subject, rest, _ := bytes.Cut(head, []byte(" "))
	size, err := strconv.Atoi(string(rest[bytes.LastIndexByte(rest, ' ')+1:]))
	if err != nil || size < 0 || size > maxPayload {
		return false, fmt.Errorf("%w: %.80q", ErrProtocol, line)
	}
	begin := s.from + len(line)
	end := begin + size + len("\r\n")
	if end > s.to {
		if whole := end - s.from; whole > len(s.buffer) { // a peer of an earlier version sends larger chunks
			s.buffer = append(make([]byte, 0, whole), s.buffer[s.from:s.to]...)[:whole]
			s.from, s.to = 0, s.to-s.from
		}
		return false, nil
	}
	handle(subject, s.buffer[begin:begin+size])
	s.from = end
	return true, nil
}

// inboxConn opens a connection to the server that holds this process's inbox.
func (l *Link) inboxConn() (net.Conn, error) {
	if l.server != nil {
		return l.server.InProcessConn()
	}
	home := l.self.Home()
	address, err := l.cfg.Resolve(home)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout, Control: control}, Config: l.cfg.Authority.Client(home)}
	return dialer.DialContext(l.ctx, "tcp", address)
}

// subscribe makes this process's inbox of a lane.
func (l *Link) subscribe(which Lane) (*subscriber, error) {
	conn, err := l.inboxConn()
	if err != nil {
		return nil, err
	}
	options := connectOptions{TLS: l.server == nil, Token: l.password, Name: l.self.String()}
	return newSubscriber(conn, inboxBuffer, options, inbox(l.self)+"."+which.String()+".>")
}

// open makes the inboxes of all lanes and begins to read them.
func (l *Link) open() error {
	for which := range lanes {
		s, err := l.subscribe(which)
		if err != nil {
			return fmt.Errorf("link: own inbox: %w", err)
		}
		l.in[which].begin(which, l.grant)
		l.receiveAll(which, s)
	}
	return nil
}
