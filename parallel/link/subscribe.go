package link

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"manta/internal/trust"
)

// inboxBuffer holds a few chunks: what a subscriber gives away lies in it.
const inboxBuffer = 128 << 10

// A subscriber is the reading half of a NATS client at the server that holds this
// process's inbox. It hands on what arrives from its one buffer, on its one
// goroutine: the client library would copy each chunk twice more and wake two.
type subscriber struct {
	conn    net.Conn
	in      *bufio.Reader
	subject []byte // of the message at hand
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
}

// wideID is a subscription's, which stands before each message. The server gathers what
// it writes in buffers of 512 bytes, 4 KiB or 64 KiB, the first so large that a message's
// first line fits. This one needs the second: a small message then stands whole in one
// and is handed over at once, where each handing over wakes both sides in turn.
var wideID = strings.Repeat("1", 512)

// newSubscriber subscribes over a fresh connection, which it closes if it fails.
func newSubscriber(conn net.Conn, name, token, subject string) (*subscriber, error) {
	s := newReader(conn)
	_, encrypted := conn.(*tls.Conn)
	id := "1"
	if !encrypted {
		id = wideID
	}
	if err := s.begin(connectOptions{TLS: encrypted, Token: token, Name: name, Language: "go", Protocol: 1}, subject, id); err != nil {
		conn.Close()
		return nil, fmt.Errorf("subscribe %s: %w", subject, err)
	}
	return s, nil
}

func newReader(conn net.Conn) *subscriber {
	return &subscriber{conn: conn, in: bufio.NewReaderSize(conn, inboxBuffer)}
}

func (s *subscriber) begin(options connectOptions, subject, id string) error {
	if err := s.conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	if line, err := s.in.ReadSlice('\n'); err != nil {
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
		line, err := s.in.ReadSlice('\n')
		switch {
		case err != nil:
			return err
		case bytes.HasPrefix(line, []byte("PONG")):
			return s.conn.SetDeadline(time.Time{})
		case bytes.HasPrefix(line, []byte("-ERR")):
			return fmt.Errorf("%w: %s", ErrBroken, bytes.TrimSpace(line))
		}
	}
}

// run reads until the connection ends. What handle gets is valid until it returns.
func (s *subscriber) run(handle func(subject, data []byte)) error {
	defer s.conn.Close()
	for {
		line, err := s.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		switch {
		case bytes.HasPrefix(line, []byte("MSG ")):
			if err := s.message(line, handle); err != nil {
				return err
			}
		case bytes.HasPrefix(line, []byte("PING")):
			if _, err := io.WriteString(s.conn, "PONG\r\n"); err != nil {
				return err
			}
		case bytes.HasPrefix(line, []byte("-ERR")):
			return fmt.Errorf("%w: %s", ErrBroken, bytes.TrimSpace(line))
		}
	}
}

// message reads what follows "MSG subject sid bytes\r\n".
func (s *subscriber) message(line []byte, handle func(subject, data []byte)) error {
	subject, rest, _ := bytes.Cut(bytes.TrimSpace(line[len("MSG "):]), []byte(" "))
	_, bytesText, _ := bytes.Cut(rest, []byte(" "))
	size, err := strconv.Atoi(string(bytesText))
	if err != nil || size < 0 || size > maxPayload {
		return fmt.Errorf("%w: %.80q", ErrProtocol, line)
	}
	s.subject = append(s.subject[:0], subject...) // the line goes with the next read
	whole := size + len("\r\n")
	if whole > s.in.Size() { // a peer of an earlier version sends larger chunks
		data := make([]byte, whole)
		if _, err := io.ReadFull(s.in, data); err != nil {
			return err
		}
		handle(s.subject, data[:size])
		return nil
	}
	data, err := s.in.Peek(whole)
	if err != nil {
		return err
	}
	handle(s.subject, data[:size])
	_, err = s.in.Discard(whole)
	return err
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
	return newSubscriber(conn, l.self.String(), l.password, inbox(l.self)+"."+which.String()+".>")
}

// open makes the inboxes of all lanes and begins to read them.
func (l *Link) open() error {
	for which := range lanes {
		s, err := l.subscribe(which)
		if err != nil {
			return fmt.Errorf("link: own inbox: %w", err)
		}
		l.in[which].sessions = map[trust.Identity]*session{}
		l.receiveAll(which, s)
	}
	return nil
}
