package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"golang.org/x/time/rate"
)

// upkeep looks after health, lateness and expired policies until ctx ends.
func (k *Keeper) upkeep(ctx context.Context) {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	start := time.Now()
	purgeAt, stats := start.Add(purgeEvery), k.o.Store.Stats()
	files, beat := stats.Files, stats.Heartbeat
	mayBeAhead := !beat.IsZero() && start.Sub(beat) > keepExpired // nothing contradicts the clock, but it may be
	wasLate, wasInDoubt := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n := k.o.Store.Stats().Files; n != files {
			files = n
			k.ForgetFailures() // they would hide the policies of that file
		}
		isInDoubt := k.o.Off() != 0
		if wasInDoubt && !isInDoubt {
			k.ForgetFailures() // the time may have gone back
		}
		wasInDoubt = isInDoubt
		now := time.Now()
		k.health.report(k.o.Log, now)
		by := time.Duration(k.late.Load()) * time.Second
		if by >= LateAfter && !wasLate {
			k.o.Log.Error("policies are refreshed late", "by", by, "next", "raise [refresh] fetch_rate or concurrency if it stays so")
		}
		wasLate = by >= LateAfter || wasLate && by > LateAfter/2 // hysteresis: one line, not one for each crossing
		if !now.Before(purgeAt) {
			purgeAt = now.Add(purgeEvery)
			before := k.o.Now().Add(-keepExpired)
			if mayBeAhead && now.Sub(start) < clockDoubt {
				before = time.Time{} // nothing, so that the clock can be corrected
			}
			k.purge(ctx, before)
		}
	}
}

// purge deletes what expired before a time, a batch at a time. Where there is nothing
// to delete, the store still writes its heartbeat.
func (k *Keeper) purge(ctx context.Context, before time.Time) {
	for ctx.Err() == nil {
		gone, err := k.o.Store.Purge(before, purgeBatch)
		if err != nil {
			k.counters.add(&k.counters.StoreErrors, 1)
			k.o.Log.Warn("cannot delete expired policies from the cache", "err", err, "next", "tried again in "+purgeEvery.String())
		}
		for _, domain := range gone {
			k.memory.forget(k.hash(domain))
		}
		if len(gone) < purgeBatch {
			return
		}
	}
}

// mayLog says whether the rate allows one more log line about a domain. While
// nothing succeeds at all, it does not: one error line covers all domains.
func (k *Keeper) mayLog(limit *rate.Limiter) bool {
	dns, https, _ := k.health.failing()
	may := !dns && !https && limit.Allow()
	if !may {
		k.counters.add(&k.counters.LogLinesDropped, 1)
	}
	return may
}

// logFailure logs a failed discovery and its effect on mail.
func (k *Keeper) logFailure(n *Negative, ours bool) {
	level, words, limit := slog.LevelInfo, "MTA-STS discovery failed; no policy applied", k.strangerLines
	switch {
	case n.unreadable:
		level, limit = slog.LevelError, k.heldLines
		words = "the stored MTA-STS policy cannot be read and could not be fetched again; mail waits"
	case ours:
		level, words = slog.LevelWarn, "MTA-STS discovery failed on this side; mail waits"
	}
	if k.mayLog(limit) {
		k.o.Log.Log(context.Background(), level, words,
			"domain", n.Domain, "result", string(n.Result), "err", n.Err, "next", n.Until.Round(time.Second))
	}
}

// recoverPanic recovers from a panic in one domain's work, which would end the
// daemon and so delay all mail.
func (k *Keeper) recoverPanic(what, domain string) {
	if v := recover(); v != nil {
		k.counters.add(&k.counters.Panics, 1)
		if k.mayLog(k.heldLines) {
			k.o.Log.Error("bug: recovered from a panic; please report it", "in", what, "domain", domain,
				"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}
}
