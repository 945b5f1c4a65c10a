package p2p

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/gonka-mesh/mesh"
)

const bookNetwork mesh.NetworkID = "test00000000"

func bookID(t testing.TB, n int) peer.ID {
	t.Helper()
	var a mesh.Address
	copy(a[:], testKey(n)[32:])
	id, err := peerID(a)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func bookAddr(n int) []ma.Multiaddr {
	return []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/10.0.%d.%d/tcp/4700", n/256, n%256))}
}

func mustBook(t *testing.T, home string, log *slog.Logger) *book {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b, err := openBook(home, bookNetwork, log)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBookSurvivesRestart(t *testing.T) {
	home := t.TempDir()
	b := mustBook(t, home, nil)
	b.good(bookID(t, 1), RoleHost, bookAddr(1))
	b.good(bookID(t, 2), RoleLight, bookAddr(2))
	b.fail(bookID(t, 1))
	b.good(bookID(t, 3), RoleHost, nil) // no address: nothing to remember
	if err := b.save(); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(b.path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	got := mustBook(t, home, nil).best(9)
	if len(got) != 2 || got[0].ID != bookID(t, 2) || got[1].ID != bookID(t, 1) || !got[1].Addrs[0].Equal(bookAddr(1)[0]) {
		t.Errorf("book after a restart: %v, want peer 2, then peer 1, which failed", got)
	}
	before, _ := os.Stat(b.path)
	if err := b.save(); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(b.path); !after.ModTime().Equal(before.ModTime()) {
		t.Error("written though nothing changed")
	}
}

func TestBookDamaged(t *testing.T) {
	for _, content := range []string{"", "{", "[]", `{"peers":[]}`, "\x00\x01", strings.Repeat(" ", bookBytes+1)} {
		home := t.TempDir()
		path := filepath.Join(home, bookFile)
		os.WriteFile(path, []byte(content), 0o600)
		var out bytes.Buffer
		b := mustBook(t, home, slog.New(slog.NewTextHandler(&out, nil)))
		if !strings.Contains(out.String(), "damaged") {
			t.Errorf("%.20q: nothing in the log", content)
		}
		if kept, err := os.ReadFile(path + ".damaged"); err != nil || string(kept) != content {
			t.Errorf("%.20q: not set aside: %v", content, err)
		}
		b.good(bookID(t, 1), RoleHost, bookAddr(1))
		if err := b.save(); err != nil || len(mustBook(t, home, nil).best(9)) != 1 {
			t.Errorf("%.20q: the new book does not work: %v", content, err)
		}
	}
}

func TestBookOfOtherVersionOrNetwork(t *testing.T) {
	home := t.TempDir()
	os.WriteFile(filepath.Join(home, bookFile), []byte(`{"version":2}`), 0o600)
	if _, err := openBook(home, bookNetwork, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a newer book: %v, want it refused", err)
	}
	home = t.TempDir()
	b := mustBook(t, home, nil)
	b.good(bookID(t, 1), RoleHost, bookAddr(1))
	b.save()
	other, err := openBook(home, "else00000000", slog.New(slog.DiscardHandler))
	if err != nil || len(other.best(9)) != 0 {
		t.Errorf("book of another network: %v, %v: want none of its peers", other.best(9), err)
	}
}

// TestBookWriteInterrupted: whatever a process leaves behind when it dies during
// a save, the book that was there is read.
func TestBookWriteInterrupted(t *testing.T) {
	home := t.TempDir()
	b := mustBook(t, home, nil)
	b.good(bookID(t, 1), RoleHost, bookAddr(1))
	if err := b.save(); err != nil {
		t.Fatal(err)
	}
	whole, _ := os.ReadFile(b.path)
	for _, cut := range []int{0, 1, len(whole) / 2} {
		os.WriteFile(filepath.Join(home, "."+bookFile+".123"), whole[:cut], 0o600)
		if got := mustBook(t, home, nil).best(9); len(got) != 1 {
			t.Errorf("cut at %d: %v", cut, got)
		}
	}
	// A folder that cannot be written to is an error, and the change is kept.
	b.path = filepath.Join(home, bookFile, "below-a-file")
	b.good(bookID(t, 2), RoleHost, bookAddr(2))
	if err := b.save(); err == nil {
		t.Error("no error from a save that cannot work")
	}
	b.path = filepath.Join(home, bookFile)
	if err := b.save(); err != nil || len(mustBook(t, home, nil).best(9)) != 2 {
		t.Errorf("the change was lost with the failed save: %v", err)
	}
}

func TestBookIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mustBook(t, "", nil)
		for n := range bookPeers + 50 {
			b.good(bookID(t, n), RoleHost, bookAddr(n))
			if n == 7 {
				b.fail(bookID(t, n))
			}
			time.Sleep(time.Second)
		}
		if len(b.entries) != bookPeers {
			t.Errorf("%d entries", len(b.entries))
		}
		if b.entries[bookID(t, 7)] != nil || b.entries[bookID(t, 0)] != nil || b.entries[bookID(t, bookPeers+49)] == nil {
			t.Error("want the failed and the oldest evicted, the newest kept")
		}
		id := bookID(t, 500)
		time.Sleep(20 * 24 * time.Hour)
		for range 20 {
			b.fail(id)
		}
		if b.entries[id] != nil {
			t.Error("a peer that failed for weeks is not forgotten")
		}
	})
}

func FuzzBook(f *testing.F) {
	b := &book{network: bookNetwork, entries: make(map[peer.ID]*entry), dirty: true}
	b.good(bookID(f, 1), RoleHost, bookAddr(1))
	f.Add([]byte(`{"version":1,"network":"test00000000","peers":[{"address":"12D3KooWA4rBmYq1iaZLskz4jnBVLJk3sgYWDfBkWuZ3gWxtK9ZT","addrs":["/ip4/1.2.3.4/tcp/1","x"],"seen":-5,"ok":1000}]}`))
	f.Add([]byte(`{"version":1,"peers":[{"address":"x"}]}`))
	f.Add([]byte(`{"version":1e9}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		doc, err := decodeBook(in)
		if err != nil {
			return
		}
		b := &book{network: bookNetwork, entries: make(map[peer.ID]*entry)}
		b.fill(doc)
		for id, e := range b.entries {
			if len(e.addrs) == 0 || len(e.addrs) > bookAddrs || e.ok < 0 || e.ok > 100 || e.failed < 0 || len(e.role) > 16 {
				t.Errorf("entry %s: %+v", id, e)
			}
		}
		b.dirty = true
		doc2, _ := b.doc()
		if len(doc2.Peers) != len(b.entries) {
			t.Errorf("%d of %d entries written", len(doc2.Peers), len(b.entries))
		}
	})
}
