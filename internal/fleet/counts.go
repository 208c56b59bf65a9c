package fleet

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Counts for TLS reports (RFC 8460). Each relay keeps a field of its own, with its
// counts since the day began, so that a retry overwrites and nothing counts twice. After
// the day one relay adds them up and delivers one report for all.

const maxCounts = 256 << 10 // bytes of one relay's counts of a day and domain

// dayKey has day and domain in braces, for one slot of a Cluster.
func dayKey(kind, day, domain string) string { return kind + ":{" + day + ":" + domain + "}" }

// PutCounts replaces the counts of a relay for a day and a domain, which the engine keeps
// so long. relay is a random id that the relay keeps, not its name: two relays may have
// the same.
func (f *Fleet) PutCounts(ctx context.Context, day, domain, relay string, counts []byte, keep time.Duration) error {
	if len(counts) > maxCounts {
		return fmt.Errorf("%d bytes of counts for %s are more than %d", len(counts), domain, maxCounts)
	}
	return f.putField(ctx, dayKey("r", day, domain), relay, string(counts), keep)
}

// Counts returns the counts of a day and a domain, by relay.
func (f *Fleet) Counts(ctx context.Context, day, domain string) (map[string]string, error) {
	return f.fields(ctx, dayKey("r", day, domain))
}

// PutDelivery replaces the state of a report's delivery to a destination.
func (f *Fleet) PutDelivery(ctx context.Context, day, domain, destination, state string, keep time.Duration) error {
	return f.putField(ctx, dayKey("rs", day, domain), destination, state, keep)
}

// Deliveries returns the states of a report's deliveries, by destination.
func (f *Fleet) Deliveries(ctx context.Context, day, domain string) (map[string]string, error) {
	return f.fields(ctx, dayKey("rs", day, domain))
}

// LeaseDelivery asks for the right to deliver the report of a day and a domain, or renews
// it. Without an answer of the engine it is an error: nobody has the right.
func (f *Fleet) LeaseDelivery(ctx context.Context, day, domain, relay string, long time.Duration) (ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	key := f.key(dayKey("rl", day, domain))
	ms := strconv.FormatInt(long.Milliseconds(), 10)
	reply, err := f.do(ctx, key, "SET", key, relay, "NX", "PX", ms)
	if err != nil || reply != nil {
		return err == nil, err
	}
	if reply, err = f.do(ctx, key, "GET", key); err != nil || reply != relay {
		return false, err
	}
	reply, err = f.do(ctx, key, "PEXPIRE", key, ms)
	return reply == int64(1), err
}

func (f *Fleet) putField(ctx context.Context, key, field, content string, keep time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	full := f.key(key)
	if _, err := f.do(ctx, full, "HSET", full, field, f.seal(key, field, f.o.Now(), content)); err != nil {
		return err
	}
	_, err := f.do(ctx, full, "PEXPIRE", full, strconv.FormatInt(keep.Milliseconds(), 10))
	return err
}

// fields reads a hash. A value that is not believed is an error: a report without it would
// be wrong.
func (f *Fleet) fields(ctx context.Context, key string) (map[string]string, error) {
	if f.breaker.isOpen() {
		return nil, errAway
	}
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	found, bad := make(map[string]string), 0
	err := f.readHash(ctx, key, maxRelays, func(field, sealed string) bool {
		v, ok := f.open(key, field, sealed, 1)
		if ok {
			found[field] = v.fields[0]
		} else {
			bad++
		}
		return true
	})
	if err == nil && bad > 0 {
		err = errors.New("the engine holds values of " + key + " that cannot be verified")
	}
	return found, err
}
