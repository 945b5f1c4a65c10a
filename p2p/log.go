package p2p

import (
	"context"
	"log/slog"

	"github.com/libp2p/go-libp2p/gologshim"
)

// LogLibrary sends libp2p's log of the whole process to h. It has to be called before a host is made.
func LogLibrary(h slog.Handler) { gologshim.SetDefaultHandler(libraryLog{h}) }

// libraryLog writes what libp2p calls errors at debug level: most are doings of peers or of a stop,
// and what a host must know of them the node says itself. The rest of its log is left out.
type libraryLog struct{ slog.Handler }

func (l libraryLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError && l.Handler.Enabled(ctx, slog.LevelDebug)
}

func (l libraryLog) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return l.Handler.Handle(ctx, r)
}

func (l libraryLog) WithGroup(name string) slog.Handler {
	return libraryLog{l.Handler.WithGroup(name)}
}

func (l libraryLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return libraryLog{l.Handler.WithAttrs(attrs)}
}
