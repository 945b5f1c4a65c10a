package state

import "sync"

// cache keeps what the last blocks read and wrote of the committed state, entries and
// pages of the tree alike, so that accounts in use cost no search in the database. It
// has two generations of half its size: what is not used for one of them is dropped.
// It only ever holds committed values, and starts empty.
type cache struct {
	mu         sync.Mutex
	young, old map[string][]byte // a nil value: absent
	size       int               // of young, in bytes
	limit      int               // of young, in bytes
	version    uint64            // of the committed state; odd while it changes
}

const entryCost = 80 // bytes of a map's entry beside key and value, about

func newCache(limit int) *cache { return &cache{young: map[string][]byte{}, limit: limit / 2} }

// get returns a value and whether it is known; if not, the version to give to put.
func (c *cache) get(key []byte) (value []byte, known bool, version uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.young[string(key)]; ok {
		return v, true, 0
	}
	v, ok := c.old[string(key)]
	if ok {
		c.set(string(key), v)
	}
	return v, ok, c.version
}

// put keeps what was read from the database, unless the state has changed since get.
func (c *cache) put(key, value []byte, version uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.version == version && version%2 == 0 {
		c.set(string(key), value)
	}
}

func (c *cache) set(key string, value []byte) {
	if was, ok := c.young[key]; ok {
		c.size -= len(was)
	} else {
		c.size += len(key) + entryCost
	}
	c.young[key] = value
	c.size += len(value)
	if c.size > c.limit {
		c.old, c.young, c.size = c.young, map[string][]byte{}, 0
	}
}

// clear forgets everything, and what is being read just now.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version += 2
	c.young, c.old, c.size = map[string][]byte{}, nil, 0
}

// change keeps the cache and the database together: commit makes the writes durable.
func (c *cache) change(writes map[string][]byte, commit func() error) error {
	c.mu.Lock()
	c.version++
	c.mu.Unlock()
	err := commit()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	if err != nil { // who knows what is on disk
		c.young, c.old, c.size = map[string][]byte{}, nil, 0
		return err
	}
	for k, v := range writes {
		delete(c.old, k)
		c.set(k, v)
	}
	return nil
}
