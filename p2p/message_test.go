package p2p

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/gonka-mesh/mesh/p2p/p2ppb"
)

func TestMessageRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	first := &p2ppb.Hello{Network: "test00000000", Agent: strings.Repeat("a", 300)}
	second := &p2ppb.Hello{}
	for _, m := range []proto.Message{first, second} {
		if err := WriteMessage(&buf, m); err != nil {
			t.Fatal(err)
		}
	}
	buf.WriteString("raw")
	for _, want := range []proto.Message{first, second} {
		got := &p2ppb.Hello{}
		if err := ReadMessage(&buf, 1<<10, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("got %v, %v: want %v", got, err, want)
		}
	}
	if rest := buf.String(); rest != "raw" {
		t.Errorf("after the messages %q: nothing of what follows may be consumed", rest)
	}
}

func TestReadMessageRefuses(t *testing.T) {
	tests := []struct {
		name, in string
		want     error
	}{
		{"nothing", "", io.EOF},
		{"half a length", "\x80", ErrMessage},
		{"no body", "\x05", ErrMessage},
		{"half a body", "\x05\x0a\x03a", ErrMessage},
		{"too large", "\x81\x08" + strings.Repeat("x", 1025), ErrMessage},
		{"huge", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", ErrMessage},
		{"65 bits", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", ErrMessage},
		{"endless length", strings.Repeat("\x80", 100), ErrMessage},
		{"not minimal", "\x85\x00\x0a\x03abc", ErrMessage},
		{"zero not minimal", "\x80\x00", ErrMessage},
		{"not protobuf", "\x03\xff\xff\xff", ErrMessage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := ReadMessage(strings.NewReader(tt.in), 1024, &p2ppb.Hello{}); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	t.Run("fault of the stream", func(t *testing.T) {
		err := ReadMessage(io.MultiReader(strings.NewReader("\x05\x0a"), failing{}), 1024, &p2ppb.Hello{})
		if !errors.Is(err, errFailing) || errors.Is(err, ErrMessage) {
			t.Errorf("%v: want the stream's own error, which is not held against the peer", err)
		}
	})
}

var errFailing = errors.New("failing")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errFailing }

// TestReadMessageAllocatesWithinLimit: the claimed length costs nothing.
func TestReadMessageAllocatesWithinLimit(t *testing.T) {
	in := []byte("\xff\xff\xff\xff\x07") // 2 GiB - 1
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		ReadMessage(bytes.NewReader(in), 1<<20, &p2ppb.Hello{})
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / 1000; n > 8192 {
		t.Errorf("%d bytes allocated for a refused message", n)
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte("\x05\x0a\x03abc"))
	f.Add([]byte("\x85\x00\x0a\x03abc"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		m := &p2ppb.Hello{}
		r := bytes.NewReader(in)
		if err := ReadMessage(r, 512, m); err != nil {
			return
		}
		used := len(in) - r.Len()
		if used > 512+2 {
			t.Errorf("consumed %d bytes with a limit of 512", used)
		}
		var out bytes.Buffer
		if err := WriteMessage(&out, m); err != nil {
			t.Fatal(err)
		}
		again := &p2ppb.Hello{}
		if err := ReadMessage(&out, 1024, again); err != nil || !proto.Equal(m, again) {
			t.Errorf("%v reads back as %v, %v", m, again, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	h := &Host{cfg: Config{Network: "test00000000", Genesis: testGenesis, Role: RoleHost, Agent: "mesh/1"}}
	s := newHellos(h)
	good, _ := proto.Marshal(s.own())
	f.Add(good)
	f.Add([]byte("\x0a\x03abc\x2a\x04\xff\xfe\x00\x0a"))
	f.Fuzz(func(t *testing.T, in []byte) {
		m := &p2ppb.Hello{}
		if proto.Unmarshal(in, m) != nil {
			return
		}
		err := s.verify(m)
		if err == nil && (m.GetNetwork() != "test00000000" || !bytes.Equal(m.GetGenesis(), testGenesis[:]) || m.GetProtocol() != 1) {
			t.Errorf("a foreign hello passes: %v", m)
		}
		if err != nil && (len(err.Error()) > 300 || strings.ContainsAny(err.Error(), "\n\x00")) {
			t.Errorf("the refusal repeats what the peer sent: %q", err)
		}
		if a := clip(m.GetAgent(), agentLimit); len(a) > agentLimit || strings.ContainsAny(a, "\n\x1b\x00") {
			t.Errorf("agent %q", a)
		}
	})
}
