package plainly

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestSaid makes what really comes of networks readable.
func TestSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	get := func(url string) error {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:1/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, late := http.DefaultClient.Do(req)
	if late == nil {
		resp.Body.Close()
	}
	_, taken := net.Listen("tcp", l.Addr().String())
	_, missing := os.Open("/nonexistent/file")
	// What asking for a name at such an address gives.
	lookup := func(server string, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "udp", server)
		}}
		_, err := (&net.Dialer{Resolver: r}).DialContext(ctx, "tcp", "mesh.example.:1")
		return err
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, c := range []struct {
		err  error
		want string
	}{
		{get("http://127.0.0.1:1/x"), "nobody listens there"},
		{get("http://" + l.Addr().String()), "the connection broke off"},
		{late, "no answer in time"},
		{fmt.Errorf("ask: %w", context.DeadlineExceeded), "no answer in time"},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), "the connection broke off"},
		{lookup("127.0.0.1:1", time.Minute), "no name server answers for mesh.example."},
		{lookup(silent.LocalAddr().String(), 100*time.Millisecond), "no name server answers for mesh.example."},
		{&net.DNSError{Name: "nowhere.invalid", Err: "no such host", IsNotFound: true}, "the name nowhere.invalid is not known"},
		{errors.New("failed to listen on any addresses: [listen tcp4 127.0.0.1:1: bind: address already in use]"), "another program has that address"},
		{taken, "another program has that address"},
		{missing, "there is no /nonexistent/file"},
		{errors.New("all dials failed:\n  * [/ip4/1.2.3.4] x"), "all dials failed"},
		{errors.New("it is of another network"), "it is of another network"},
	} {
		got := Said(c.err)
		if got.Error() != c.want || !errors.Is(got, c.err) || strings.ContainsRune(got.Error(), '\n') {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
	if Said(nil) != nil {
		t.Error("an error came of none")
	}
}
