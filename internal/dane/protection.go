package dane

import (
	"context"
	"time"
)

// A protection is the DANE that a next-hop has, and whether a probe confirmed it.
// The zero value means that the next-hop has no DANE.
//
// Where a next-hop gains DANE or loses it, the answers alone do not tell
// whether the domain or the resolver has changed: the resolver is probed
// (docs/decision.md).
type protection struct {
	state   State     // Usable or LookupFailed
	since   time.Time // when the next-hop gained DANE
	vouched bool      // a probe that began after that found a validating resolver
	because Verdict   // why the next-hop keeps it, as last logged
}

// find checks a next-hop. The result replaces old.
func (c *Checker) find(ctx context.Context, n NextHop, listed func(string) bool, old *hop) (found *hop) {
	defer func() {
		if v := recover(); v != nil {
			c.recovered("check", v)
			found = &hop{finding: brief(Undecided, errPanic.Error()), protection: old.protection, logged: old.logged}
		}
	}()
	if v := c.Verdict().Verdict; v.proof() {
		return c.keepStronger(n, old, notValidating(v), v)
	}
	var known []*Host
	if time.Now().Before(old.finding.Until) {
		known = old.hosts // the policy lists others now
	}
	r := c.look(ctx, n, listed, known)
	state := r.Finding.State
	found = r.hop()
	found.logged = old.logged
	switch {
	case state == Undecided:
		found.protection, found.finding.Kept = old.protection, old.finding.Kept // an outage does not end it
	case state.protects():
		found = c.gainedDANE(ctx, n, old, found)
	case old.protection.state.protects():
		found = c.lostDANE(ctx, n, old, found, r.unsigned)
	}
	if found.finding.State == state && found.logged != state && c.logLost(n, r) {
		found.logged = state
	}
	return found
}

// gainedDANE returns found with its protection, unless the resolver sets AD on
// anything. A probe of the last minute suffices; only a later one confirms it.
func (c *Checker) gainedDANE(ctx context.Context, n NextHop, old, found *hop) *hop {
	now := time.Now()
	p := protection{state: found.finding.State, since: old.protection.since, vouched: old.protection.vouched}
	if p.state == SomeFailed {
		p.state = LookupFailed // which holds without the hosts
	}
	if !old.protection.state.protects() {
		p.since = now
	}
	if !p.vouched {
		began := now.Add(-probeRetry)
		if p.since.Before(began) {
			began = p.since
		}
		probe, ok := c.probeSince(ctx, began)
		switch {
		case !ok:
			found.finding = brief(Undecided, "the probe of the resolver took too long")
			found.protection = old.protection
			return found
		case probe.Verdict.proof():
			return c.keepStronger(n, old, notValidating(probe.Verdict), probe.Verdict)
		}
		p.vouched = probe.Verdict == Validates && !probe.Began.Before(p.since)
	}
	found.protection = p
	return found
}

// lostDANE decides for a next-hop that had DANE and whose check found none: it
// returns found, or the kept protection. unsigned means that found rests on an
// unauthenticated answer.
func (c *Checker) lostDANE(ctx context.Context, n NextHop, old, found *hop, unsigned bool) *hop {
	v := c.Probe(ctx).Verdict
	switch {
	case v == FalseAD:
		found = notValidating(v)
	case !unsigned && !old.protection.vouched:
		return found // presence and absence rest on the same word
	}
	return c.keepStronger(n, old, found, v)
}

// keepStronger refuses an unconfirmed downgrade: it returns found, or the
// protection that the next-hop had, unless a validating resolver confirms that
// the domain has given DANE up. Under a resolver that sets AD on anything, a
// protection that was vouched for makes the finding Undecided, since the MTA
// would take anybody's TLSA records for the domain's; one that was not is gone.
func (c *Checker) keepStronger(n NextHop, old, found *hop, v Verdict) *hop {
	p := old.protection
	if !p.state.protects() || v == Validates || v == FalseAD && !p.vouched {
		return found
	}
	if (!old.finding.Kept || p.because != v) && c.lines.Allow() {
		c.log.Error("next-hop keeps its DANE state: its answers are no longer authenticated", "domain", n.Host, "resolver", v.String(),
			"next", "have the resolver validate again: sts-tlsmap -check says when it does; until then mail to the domain may wait")
	}
	p.because = v
	state := p.state
	if v == FalseAD {
		state = Undecided
	}
	kept := &hop{finding: brief(state, "the domain had DANE while answers were authenticated, and now nothing is known: "+v.String()), protection: p, logged: old.logged}
	kept.finding.Kept = true
	return kept
}

// notValidating returns the finding for a resolver proven not to validate.
func notValidating(v Verdict) *hop { return &hop{finding: brief(NotValidating, v.String())} }

// brief returns a finding that is kept for a short time.
func brief(s State, why string) Finding {
	return Finding{State: s, Why: why, Until: time.Now().Add(failKeep)}
}

// logLost logs which hosts of a next-hop get no mail. It returns false if there are
// none or the log's rate is used up.
func (c *Checker) logLost(n NextHop, r *Report) bool {
	if len(r.lost) == 0 || !c.lines.Allow() {
		return false
	}
	what := "DNS lookups fail at some MX hosts of the policy: no mail goes to them"
	if r.Finding.State == Usable {
		what = "mail goes to the hosts with TLSA records only"
	}
	c.log.Warn(what, "domain", n.Host, "skipped", len(r.lost), "hosts", r.lost[:min(len(r.lost), loggedHosts)])
	return true
}
