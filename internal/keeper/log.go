package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"golang.org/x/time/rate"
)

// This file: what is logged about single domains, and how much of it.

// mayLog says whether there is room in the log for one more line about a
// domain. While nothing succeeds at all, that is said once, and of few domains:
// enough for those that have their own faults.
func (k *Keeper) mayLog(limit *rate.Limiter) bool {
	if k.health.dead() {
		limit = k.outageLines
	}
	return k.hasRoom(limit)
}

// hasRoom is mayLog for what the network has no part in.
func (k *Keeper) hasRoom(limit *rate.Limiter) bool {
	if limit.Allow() {
		return true
	}
	k.counters.linesDropped.Add(1)
	return false
}

// logFailure says that a discovery failed, and what that means for the mail.
func (k *Keeper) logFailure(n *Negative) {
	level, words := slog.LevelInfo, "MTA-STS discovery failed; mail goes as it would without us"
	if n.damaged {
		level, words = slog.LevelError, "the stored MTA-STS policy is damaged and could not be fetched again; mail waits"
	} else if e := k.unkept(n.Domain); e != nil && time.Now().Unix() < liveUntil(e.Fetched, e.Expires) {
		words = "MTA-STS discovery failed; the policy in memory still applies"
	}
	limit := k.strangersLines
	if n.damaged {
		limit = k.ownLines
	}
	if !k.mayLog(limit) {
		return
	}
	k.o.Log.Log(context.Background(), level, words,
		"domain", n.Domain, "result", string(n.Result), "err", n.Err, "next", n.Until.Round(time.Second))
}

// survive keeps a panic in one domain's work from ending the daemon: mail
// waits while it is down.
func (k *Keeper) survive(what, domain string) {
	if v := recover(); v != nil {
		k.counters.panics.Add(1)
		k.skipped.note(domain, time.Now())
		if !k.hasRoom(k.ownLines) {
			return
		}
		k.o.Log.Error("bug: a panic was recovered from; please report it", "in", what, "domain", domain,
			"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}
