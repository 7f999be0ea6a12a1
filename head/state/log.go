package state

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes what raft has to say on to slog. It warns of every election
// and every peer out of reach, which are a cluster's daily life: that is for
// information, errors stay errors, the rest is for whoever debugs.
func raftLogger(to *slog.Logger) hclog.InterceptLogger {
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Debug})
	logger.RegisterSink(slogSink{to})
	return logger
}

type slogSink struct{ log *slog.Logger }

func (s slogSink) Accept(name string, level hclog.Level, message string, args ...any) {
	to := slog.LevelDebug
	switch {
	case level >= hclog.Error && strings.HasPrefix(message, "failed to ") && slices.Contains(args, any("peer")):
		to = slog.LevelInfo // a peer is away: raft says so three times a second
	case level >= hclog.Error:
		to = slog.LevelError
	case level >= hclog.Warn:
		to = slog.LevelInfo
	}
	for i, a := range args { // hclog.Fmt and friends print as their text
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	s.log.Log(context.Background(), to, name, append([]any{"message", message}, args...)...)
}
