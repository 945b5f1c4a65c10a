package consensus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	cmtlog "github.com/cometbft/cometbft/libs/log"
)

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	ctx, cancel := context.WithCancel(t.Context())
	l := newLogger(ctx, slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))).With("module", "x", "odd")
	formatted := false
	l.Info("chatter", "v", cmtlog.NewLazySprintf("%v", formats(func() string { formatted = true; return "now" })))
	l.Debug("more")
	l.Error("failed signing vote", "err", errors.New("refused"))
	l.Error("Not stopping State service -- has not been started yet")
	if out.Len() > 0 || formatted {
		t.Errorf("logged at info: %s", out.String())
	}
	l.Error("CONSENSUS FAILURE!!!", "err", errors.New("cause"), "long", formats(func() string { return strings.Repeat("y", 5000) }))
	if s := out.String(); !strings.Contains(s, "CONSENSUS FAILURE") || !strings.Contains(s, "err=cause") || !strings.Contains(s, "module=x") || len(s) > 1000 {
		t.Errorf("an error is logged as %s", s)
	}
	out.Reset()
	level.Set(slog.LevelDebug)
	l.Info("chatter", "v", formats(func() string { return "now" }))
	if s := out.String(); !strings.Contains(s, "level=DEBUG") || !strings.Contains(s, "v=now") {
		t.Errorf("at debug: %s", s)
	}
	level.Set(slog.LevelInfo)
	out.Reset()
	cancel()
	l.Error("CONSENSUS FAILURE!!!")
	if out.Len() > 0 {
		t.Errorf("while the chain stops: %s", out.String())
	}
}

type formats func() string

func (f formats) String() string { return f() }
