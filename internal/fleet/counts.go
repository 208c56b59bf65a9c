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

const maxCounts = 256 << 10 // bytes of one relay's

// The kinds of what relays share about a day and a domain.
const (
	Counts   = "r"  // by relay: a random id that it keeps, since two relays may have one name
	Delivery = "rs" // by destination: the state of the report's delivery
)

// dayKey has day and domain in braces, for one slot of a Cluster.
func dayKey(kind, day, domain string) string { return kind + ":{" + day + ":" + domain + "}" }

// PutReport replaces what the engine has of one relay or destination, and has it kept so long.
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

// Report returns what relays have put. A value that is not believed is an error: a report
// without it would be wrong.
func (f *Fleet) Report(ctx context.Context, kind, day, domain string) (map[string]string, error) {
	if f.breaker.isOpen() {
		return nil, errAway
	}
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	found, bad, name := make(map[string]string), 0, dayKey(kind, day, domain)
	err := f.readHash(ctx, name, maxRelays, func(field, sealed string) bool {
		v, ok := f.open(name, field, sealed, 1)
		if ok {
			found[field] = v.fields[0]
		} else {
			bad++
		}
		return true
	})
	if err == nil && bad > 0 {
		err = errors.New("the engine holds values of " + name + " that cannot be verified")
	}
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
