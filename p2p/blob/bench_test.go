package blob

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/merkle"
)

// BenchmarkFetch downloads from four peers over TLS on loopback, once with all of
// them well and once with one that is killed half-way and one that lies, and
// reports the speed as a multiple of a plain TLS copy that hashes and writes too.
// MESH_BLOB_BENCH_MB sets the size, 256 when unset. Both sides end with fsync.
func BenchmarkFetch(b *testing.B) {
	path, origin, root := benchBlob(b)
	for _, faulty := range []bool{false, true} {
		b.Run(fmt.Sprintf("faulty=%v", faulty), func(b *testing.B) {
			compare(b, path, func() time.Duration { return fetchOnce(b, origin, root, faulty) })
		})
	}
}

// benchBlob makes a file of random bytes and a store that offers it.
func benchBlob(b *testing.B) (path string, origin *Store, root mesh.Hash) {
	size := 256 << 20
	if mb, err := strconv.Atoi(os.Getenv("MESH_BLOB_BENCH_MB")); err == nil {
		size = mb << 20
	}
	path = filepath.Join(b.TempDir(), "blob")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, int64(size)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	f.Close()
	origin = testStore(b, merkle.ChunkSize)
	if root, err = origin.Add(b.Context(), path, nil); err != nil {
		b.Fatal(err)
	}
	return path, origin, root
}

// compare runs a fetch beside a plain copy of the same file and reports both.
func compare(b *testing.B, path string, fetch func() time.Duration) {
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	size := info.Size()
	b.SetBytes(size)
	var plain, fetched, plainCPU, fetchedCPU time.Duration
	measured := func(f func() time.Duration, wall, cpu *time.Duration) {
		before := cpuTime(b)
		*wall += f()
		*cpu += cpuTime(b) - before
	}
	copied := func() time.Duration { return plainCopy(b, path) }
	for i := 0; b.Loop(); i++ {
		// Who comes second may find the disk tired, so they take turns.
		if i%2 == 0 {
			measured(copied, &plain, &plainCPU)
		}
		measured(fetch, &fetched, &fetchedCPU)
		if i%2 == 1 {
			measured(copied, &plain, &plainCPU)
		}
	}
	n := float64(b.N)
	b.ReportMetric(float64(size)*n/1e6/plain.Seconds(), "plain-MB/s")
	b.ReportMetric(float64(size)*n/1e6/fetched.Seconds(), "fetch-MB/s")
	b.ReportMetric(plainCPU.Seconds()*1e9/n/float64(size), "plain-cpu-s/GB")
	b.ReportMetric(fetchedCPU.Seconds()*1e9/n/float64(size), "fetch-cpu-s/GB")
	b.ReportMetric(plain.Seconds()/fetched.Seconds(), "fetch/plain")
}

// cpuTime is what this process, both ends of the transfer, has used so far.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func fetchOnce(b *testing.B, origin *Store, root mesh.Hash, faulty bool) time.Duration {
	n := newNet(b, true)
	wraps := make([]wrapFunc, 4)
	if faulty {
		wraps[0] = liar(0)
	}
	var peers []*testPeer
	for _, wrap := range wraps {
		peers = append(peers, n.add(b, origin, wrap))
	}
	store := testStore(b, merkle.ChunkSize)
	killed := make(chan struct{})
	var half bool
	start := time.Now()
	_, err := n.fetcher(store, peers...).Fetch(b.Context(), root, Options{Progress: func(done, total uint64, _ int) {
		if faulty && !half && done > total/2 {
			half = true
			go func() { peers[1].kill(); close(killed) }()
		}
	}})
	took := time.Since(start)
	if err != nil {
		b.Fatal(err)
	}
	if faulty {
		<-killed
		if n.points(peers[0].addr) != pointsLie {
			b.Error("the liar was not dropped")
		}
	}
	for _, p := range peers {
		p.kill()
	}
	if err := store.Remove(root); err != nil {
		b.Error(err)
	}
	return took
}

// plainCopy moves a file over one TLS connection, hashing and writing it.
func plainCopy(b *testing.B, path string) time.Duration {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{testCertificate(b)}})
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if f, err := os.Open(path); err == nil {
			defer f.Close()
			io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{f}, make([]byte, 1<<20))
		}
	}()
	start := time.Now()
	var conn net.Conn
	dialer := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	if conn, err = dialer.DialContext(context.Background(), "tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	out := filepath.Join(b.TempDir(), "copy")
	f, err := os.Create(out)
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(out)
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, struct{ io.Reader }{conn}, make([]byte, 1<<20)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	h.Sum(nil)
	return time.Since(start)
}
