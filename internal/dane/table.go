package dane

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// A table keeps values for a while, for the keys last asked for. Those who ask
// for one that is not there wait for one and the same renewal; one that is
// asked for in the last part of its life is renewed meanwhile, so that nobody
// waits for a key in use.
type table[K comparable, V perishable] struct {
	renew    func(ctx context.Context, k K, old V) V
	survived func(panicked any)

	mu   sync.Mutex
	held *simplelru.LRU[K, *slot[V]]
}

// A perishable says how long it keeps. The zero value has perished.
type perishable interface{ end() time.Time }

func (f Finding) end() time.Time  { return f.Until }
func (a mxAnswer) end() time.Time { return a.until }

// A slot is a key's place. Guarded by the table's mutex.
type slot[V perishable] struct {
	value V
	since time.Time
	ended bool     // the value's life is over before its time
	call  *call[V] // the renewal at work; nil if none is
}

// A call is a renewal at work; value is there when done is closed.
type call[V any] struct {
	done  chan struct{}
	value V
}

// newTable returns an empty table for up to size keys. renew
// has checkTime for its work; old is the value that was held last, alive or
// not. A panic in it is given to survived.
func newTable[K comparable, V perishable](size int, renew func(ctx context.Context, k K, old V) V, survived func(any)) *table[K, V] {
	held, err := simplelru.NewLRU[K, *slot[V]](size, nil)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	return &table[K, V]{renew: renew, survived: survived, held: held}
}

// get returns the value of k, or the error of ctx if that ends first.
func (t *table[K, V]) get(ctx context.Context, k K) (V, error) {
	v, wait := t.start(ctx, k)
	if wait == nil {
		return v, nil
	}
	select {
	case <-wait.done:
		return wait.value, nil
	case <-ctx.Done():
		var none V
		return none, context.Cause(ctx)
	}
}

// start returns the value of k, or the renewal to wait for.
func (t *table[K, V]) start(ctx context.Context, k K) (V, *call[V]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.held.Get(k)
	if !ok {
		s = new(slot[V])
		t.held.Add(k, s)
	}
	now := time.Now()
	end := s.value.end()
	alive := now.Before(end) && !s.ended
	if !alive || end.Sub(now) < end.Sub(s.since)/renewPart {
		t.renewing(ctx, k, s)
	}
	if alive {
		return s.value, nil
	}
	return s.value, s.call
}

// renewing starts a renewal of s, unless one is at work. It outlives those who
// wait for it. The caller holds the mutex.
func (t *table[K, V]) renewing(ctx context.Context, k K, s *slot[V]) {
	if s.call != nil {
		return
	}
	old := s.value
	c := &call[V]{done: make(chan struct{})}
	s.call = c
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	go func() {
		defer cancel()
		renewed := false
		defer func() {
			if v := recover(); v != nil {
				t.survived(v)
			}
			t.settle(s, c, renewed)
		}()
		c.value = t.renew(ctx, k, old)
		renewed = true
	}()
}

// settle ends a renewal. Those who wait get its value, the zero one if it broke
// off; then the slot keeps what it has.
func (t *table[K, V]) settle(s *slot[V], c *call[V], renewed bool) {
	t.mu.Lock()
	s.call = nil
	if renewed {
		s.value, s.since, s.ended = c.value, time.Now(), false
		if s.value.end().IsZero() { // not to be kept
			var none V
			s.value = none
		}
	}
	t.mu.Unlock()
	close(c.done)
}

// end has the values for which f is true replaced the next time that they are
// asked for. What they were is still there for their renewal.
func (t *table[K, V]) end(f func(V) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.held.Values() {
		s.ended = s.ended || f(s.value)
	}
}

// each calls f with every key and its value; not with one that is to be
// replaced before its time. f must be quick, and is not to use the table.
func (t *table[K, V]) each(f func(K, V)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.held.Keys() {
		if s, ok := t.held.Peek(k); ok && !s.ended {
			f(k, s.value)
		}
	}
}

// length returns the number of keys.
func (t *table[K, V]) length() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held.Len()
}
