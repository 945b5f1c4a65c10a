package p2p

import (
	"context"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// Bounds of the provider records that a node keeps for others.
const (
	storedRecords        = 32768
	storedRecordsPerPeer = 1024
)

// recordStore is the bounded store of provider records in memory. Its keys are
// /providers/KEY/PEER. A peer beyond its share, and the whole beyond its size,
// displace an arbitrary record: the DHT is a hint, and providers repeat theirs.
type recordStore struct {
	mu      sync.Mutex
	records map[ds.Key][]byte              // guarded by mu
	byPeer  map[string]map[ds.Key]struct{} // guarded by mu
	byKey   map[string]map[ds.Key]struct{} // by /providers/KEY; guarded by mu
}

var _ ds.Batching = (*recordStore)(nil)

func newRecordStore() *recordStore {
	return &recordStore{records: make(map[ds.Key][]byte),
		byPeer: make(map[string]map[ds.Key]struct{}), byKey: make(map[string]map[ds.Key]struct{})}
}

// Put stores a record and displaces others where there is no room.
func (s *recordStore) Put(_ context.Context, k ds.Key, v []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner := k.BaseNamespace()
	if _, known := s.records[k]; !known {
		if mine := s.byPeer[owner]; len(mine) >= storedRecordsPerPeer {
			s.dropOne(mine)
		}
		if len(s.records) >= storedRecords {
			s.dropOne(s.largest())
		}
		add(s.byPeer, owner, k)
		add(s.byKey, k.Parent().String(), k)
	}
	s.records[k] = v
	return nil
}

// largest returns the records of the peer that has most. The caller holds mu.
func (s *recordStore) largest() map[ds.Key]struct{} {
	var most map[ds.Key]struct{}
	for _, keys := range s.byPeer {
		if len(keys) > len(most) {
			most = keys
		}
	}
	return most
}

func (s *recordStore) dropOne(of map[ds.Key]struct{}) {
	for k := range of {
		s.drop(k)
		return
	}
}

// drop removes a record. The caller holds mu.
func (s *recordStore) drop(k ds.Key) {
	if _, ok := s.records[k]; !ok {
		return
	}
	delete(s.records, k)
	remove(s.byPeer, k.BaseNamespace(), k)
	remove(s.byKey, k.Parent().String(), k)
}

func add(m map[string]map[ds.Key]struct{}, at string, k ds.Key) {
	if m[at] == nil {
		m[at] = make(map[ds.Key]struct{})
	}
	m[at][k] = struct{}{}
}

func remove(m map[string]map[ds.Key]struct{}, at string, k ds.Key) {
	delete(m[at], k)
	if len(m[at]) == 0 {
		delete(m, at)
	}
}

// Delete removes a record.
func (s *recordStore) Delete(_ context.Context, k ds.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(k)
	return nil
}

// Get returns a record.
func (s *recordStore) Get(_ context.Context, k ds.Key) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.records[k]; ok {
		return v, nil
	}
	return nil, ds.ErrNotFound
}

// Has reports whether a record is there.
func (s *recordStore) Has(ctx context.Context, k ds.Key) (bool, error) {
	_, err := s.Get(ctx, k)
	return err == nil, nil
}

// GetSize returns the length of a record.
func (s *recordStore) GetSize(ctx context.Context, k ds.Key) (int, error) {
	v, err := s.Get(ctx, k)
	if err != nil {
		return -1, err
	}
	return len(v), nil
}

// Query returns the records under one key from the index, and otherwise looks
// at all.
func (s *recordStore) Query(_ context.Context, q query.Query) (query.Results, error) {
	s.mu.Lock()
	var found []query.Entry
	put := func(k ds.Key) {
		found = append(found, query.Entry{Key: k.String(), Value: s.records[k], Size: len(s.records[k])})
	}
	if keys := s.byKey[q.Prefix]; keys != nil {
		for k := range keys {
			put(k)
		}
	} else if strings.Count(strings.Trim(q.Prefix, "/"), "/") == 0 {
		for k := range s.records {
			put(k)
		}
	}
	s.mu.Unlock()
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, found)), nil
}

// Batch collects writes; they are not atomic, which provider records do not need.
func (s *recordStore) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }

// Sync does nothing: the store is in memory.
func (s *recordStore) Sync(context.Context, ds.Key) error { return nil }

// Close does nothing.
func (s *recordStore) Close() error { return nil }
