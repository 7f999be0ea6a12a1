package head

import (
	"context"

	"manta/head/api"
	"manta/internal/trust"
	"manta/node/wire"
	"manta/parallel/link"
)

var _ api.Logs = (*control)(nil)

// Logs implements api.Logs: the process itself is asked, so nothing is kept twice.
func (c *control) Logs(ctx context.Context, role trust.Role, id string, lines int, containing string) ([]string, error) {
	question := wire.Logs{Version: wire.Version, Lines: lines, Containing: containing}
	if role == trust.Head && id == c.head.id.ID {
		return question.From(c.head.cfg.Tail), nil
	}
	data, err := wire.Marshal(question)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	reply, err := c.head.link.Call(ctx, trust.Identity{Role: role, ID: id}, wire.KindLogs, data)
	if err != nil {
		return nil, err
	}
	var answer []string
	err = wire.Unmarshal(reply, &answer)
	return answer, err
}

// listenToReaders answers other heads that were asked for this one's log.
func (h *Head) listenToReaders() {
	h.link.HandleCall(wire.KindLogs, maxHeadCalls, func(_ context.Context, m link.Message) ([]byte, error) {
		var question wire.Logs
		if err := wire.Unmarshal(m.Data, &question); err != nil {
			return nil, err
		}
		if m.From.Role != trust.Head {
			question.Lines = 0 // a node has no business here
		}
		return wire.Marshal(question.From(h.cfg.Tail))
	})
}
