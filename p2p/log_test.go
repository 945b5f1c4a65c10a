package p2p

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// TestFurthest: of a node's addresses the one that reaches furthest is shown.
func TestFurthest(t *testing.T) {
	const (
		local  = "/ip4/127.0.0.1/udp/9798/quic-v1"
		lanTCP = "/ip4/192.168.1.7/tcp/9798"
		lan    = "/ip4/192.168.1.7/udp/9798/quic-v1"
		public = "/ip4/1.2.3.4/tcp/9798"
		quic   = "/ip4/1.2.3.4/udp/9798/quic-v1"
	)
	for _, tt := range []struct {
		addrs []string
		want  string
	}{
		{nil, ""},
		{[]string{"nowhere"}, ""},
		{[]string{local}, local},
		{[]string{local, lanTCP, lan}, lan},
		{[]string{local, lan, lanTCP}, lan},
		{[]string{public, lan, local}, public},
		{[]string{public, lan, quic}, quic},
	} {
		if got := Furthest(tt.addrs); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.addrs, got, tt.want)
		}
	}
}

// TestLibraryLog: what libp2p calls errors is for those who ask for debug.
func TestLibraryLog(t *testing.T) {
	for level, want := range map[slog.Level]string{slog.LevelInfo: "", slog.LevelDebug: "level=DEBUG msg=closed logger=swarm"} {
		var out bytes.Buffer
		l := slog.New(libraryLog{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})}).With("logger", "swarm")
		l.Error("closed")
		l.Warn("slow")
		if got := out.String(); (want == "") != (got == "") || !strings.Contains(got, want) || strings.Contains(got, "slow") {
			t.Errorf("at %s: %q, want %q alone", level, got, want)
		}
	}
}
