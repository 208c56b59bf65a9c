package fleet

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// Counts for TLS reports (RFC 8460). Each relay keeps a field of its own, with its
// counts since the day began, so that a retry overwrites and nothing counts twice. After
// the day one relay adds them up and delivers one report for all.

const maxCounts = 256 << 10 // bytes of a value

// dayKey has day and domain in braces, for one slot of a Cluster.
func dayKey(kind, day, domain string) string { return kind + ":{" + day + ":" + domain + "}" }

// PutReport replaces a field of what relays have put about a day and a domain, and has all of
// them kept so long. The kinds are those of package deliver.
func (f *Fleet) PutReport(ctx context.Context, kind, day, domain, field, content string, keep time.Duration) error {
	if len(content) > maxCounts {
		return fmt.Errorf("%d bytes for %s are more than %d", len(content), domain, maxCounts)
	}
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	name := dayKey(kind, day, domain)
	key := f.key(name)
	if _, err := f.do(ctx, key, "HSET", key, field, f.seal(name, field, f.o.Now(), content)); err != nil {
		return err
	}
	_, err := f.do(ctx, key, "PEXPIRE", key, strconv.FormatInt(keep.Milliseconds(), 10))
	return err
}

// Report returns what relays have put, without the values that are not believed.
func (f *Fleet) Report(ctx context.Context, kind, day, domain string) (map[string]string, error) {
	if f.breaker.isOpen() {
		return nil, errAway
	}
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	found, name := make(map[string]string), dayKey(kind, day, domain)
	err := f.readHash(ctx, name, maxRelays, func(field, sealed string) bool {
		if v, ok := f.open(name, field, sealed, 1); ok {
			found[field] = v.fields[0]
		}
		return true
	})
	return found, err
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
