package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"manta/head/jobs"
	"manta/head/state"
)

// tailEvery is between two looks for more of a log.
const tailEvery = 200 * time.Millisecond

// tailJob sends a job's log over a WebSocket as it grows, and closes it normally
// once the job is over.
func (s *Server) tailJob(w http.ResponseWriter, r *http.Request) (any, error) {
	j, err := s.job(w, r)
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		w.Header().Set("Upgrade", "websocket")
		return nil, &Error{Status: http.StatusUpgradeRequired, Type: "BadRequestError",
			Message: "this log is followed over a WebSocket; GET /api/jobs/" + j.ID + "/logs gives what there is"}
	}
	defer s.progress.Add(-1)
	if s.progress.Add(1) > int64(s.limits.Requests) {
		return nil, errBusy
	}
	// Keys are sent by the page itself, never by the browser: any origin may ask.
	socket, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return nil, nil // Accept has answered
	}
	defer socket.CloseNow()
	ctx := socket.CloseRead(r.Context()) // ends when the client goes
	if err := s.follow(ctx, socket, j.ID); err != nil {
		if ctx.Err() == nil {
			s.log.Warn("log not followed", "job", j.ID, "error", err)
			_ = socket.Close(websocket.StatusInternalError, "the log can't be read")
		}
		return nil, nil
	}
	_ = socket.Close(websocket.StatusNormalClosure, "")
	return nil, nil
}

// follow sends what a job's log has beyond what was sent, until the job is over.
func (s *Server) follow(ctx context.Context, socket *websocket.Conn, id string) error {
	var sent int64
	var seen []state.Part
	ticker := time.NewTicker(tailEvery)
	defer ticker.Stop()
	for {
		j, ok := s.views.View().Jobs[id]
		if !ok {
			return nil // it was deleted
		}
		if !sameParts(seen, j.Log) {
			seen = j.Log
			n, err := s.sendLog(ctx, socket, j.Log, sent)
			if err != nil {
				return err
			}
			sent += n
		}
		if j.Status.Over() || s.dispatch.Draining() {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func sameParts(a, b []state.Part) bool {
	return len(a) == len(b) && (len(a) == 0 || a[len(a)-1] == b[len(b)-1])
}

// sendLog sends a log from an offset on. Parts may have been put together since;
// the text before the offset stays what it was.
func (s *Server) sendLog(ctx context.Context, socket *websocket.Conn, parts []state.Part, from int64) (int64, error) {
	for len(parts) > 0 && parts[0].Size <= from {
		from -= parts[0].Size
		parts = parts[1:]
	}
	log := jobs.Open(ctx, s.store, parts)
	if _, err := io.CopyN(io.Discard, log, from); err != nil && from > 0 {
		return 0, fmt.Errorf("log: %w", err)
	}
	var n int64
	buffer := make([]byte, 32<<10)
	for {
		count, err := log.Read(buffer)
		if count > 0 {
			writing, stop := context.WithTimeout(ctx, s.limits.WriteTime)
			failed := socket.Write(writing, websocket.MessageText, bytes.ToValidUTF8(buffer[:count], []byte("?")))
			stop()
			if failed != nil {
				return n, failed
			}
			n += int64(count)
		}
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}
