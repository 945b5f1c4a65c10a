package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	cmtlog "github.com/cometbft/cometbft/libs/log"
)

// logger passes CometBFT's log on. What it calls information is chatter to an operator
// of a mesh node and goes to debug; warnings and errors stay what they are, less the
// errors that are everyday on an open network.
type logger struct {
	log *slog.Logger
	ctx context.Context // after its end the chain stops, and errors are those of parts that miss each other
}

var _ cmtlog.Logger = logger{}

func newLogger(ctx context.Context, log *slog.Logger) cmtlog.Logger {
	return logger{log.With("part", "comet"), ctx}
}

func (l logger) Debug(msg string, kv ...any) { l.say(slog.LevelDebug, msg, kv) }
func (l logger) Info(msg string, kv ...any)  { l.say(slog.LevelDebug, msg, kv) }
func (l logger) Warn(msg string, kv ...any)  { l.say(slog.LevelWarn, msg, kv) }

func (l logger) Error(msg string, kv ...any) {
	if l.ctx.Err() != nil || everyday[msg] || strings.HasPrefix(msg, "Not stopping ") {
		l.say(slog.LevelDebug, msg, kv)
		return
	}
	l.say(slog.LevelError, msg, kv)
}

// everyday are messages that CometBFT logs as errors and that need nobody's attention:
// parts that are stopped twice, peers that left, and a vote that the guard refused,
// which it reports itself, once.
var everyday = map[string]bool{
	"Error stopping pool":                   true,
	"Error stopping consensus state":        true,
	"failed signing vote":                   true,
	"propose step; failed signing proposal": true,
	"Stopping peer for error":               true,
}

func (l logger) With(kv ...any) cmtlog.Logger { return logger{l.log.With(plain(kv)...), l.ctx} }

func (l logger) say(level slog.Level, msg string, kv []any) {
	if !l.log.Enabled(context.Background(), level) {
		return // before the values are formatted
	}
	l.log.Log(context.Background(), level, msg, plain(kv)...)
}

// plain gives values that format themselves lazily as text, and completes a lone key.
func plain(kv []any) []any {
	out := make([]any, 0, len(kv)+1)
	for i, v := range kv {
		if i%2 == 0 {
			v = fmt.Sprint(v)
		} else if s, ok := v.(fmt.Stringer); ok {
			if _, isErr := v.(error); !isErr {
				v = lazy{s}
			}
		}
		out = append(out, v)
	}
	if len(out)%2 == 1 {
		out = append(out, "")
	}
	return out
}

// lazy formats a value when the log is written, with no more of it than is readable.
type lazy struct{ s fmt.Stringer }

func (l lazy) LogValue() slog.Value {
	text := l.s.String()
	if len(text) > 500 {
		text = text[:500] + "…"
	}
	return slog.StringValue(text)
}
