package observe

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
)

// The conditions, as the label of a metric has them.
const (
	Discovery = "discovery" // no policy fetch has succeeded for some minutes although it was tried
	Roots     = "roots"     // no policy host's certificate is trusted, or the authorities cannot be read any more
	Resolver  = "resolver"  // no TXT lookup has succeeded for some minutes
	Clock     = "clock"     // the clock is before the newest record
	Refresher = "refresher" // policies are refreshed late
	Writes    = "writes"    // the cache cannot be written to
	Salvage   = "salvage"   // the cache was damaged, and what could be read of it saved

	Validation = "validation" // next-hops keep their DANE state although the resolver is not known to validate
)

// Conditions are all of them.
func Conditions() []string {
	return []string{Discovery, Roots, Resolver, Clock, Refresher, Writes, Salvage, Validation}
}

// Signs are what the troubles are told from.
type Signs struct {
	Now    time.Time
	Keeper keeper.Stats
	Cache  cache.Stats
	DANE   dane.Stats
	Roots  error // why the authorities could not be read the last time; nil if they could
}

// Troubles returns the conditions that hold, in the order of Conditions.
func (s *Signs) Troubles() []control.Trouble {
	var list []control.Trouble
	for _, t := range []struct {
		holds bool
		control.Trouble
	}{
		{s.Keeper.FetchDead && !s.Keeper.Untrusted, control.Trouble{Condition: Discovery, Told: true,
			What: "no policy fetch has succeeded for some minutes, although several domains were tried",
			Next: "see whether this machine reaches port 443 of policy hosts, and HTTPS_PROXY; sts-tlsmap -explain DOMAIN shows each step"}},
		{s.Roots != nil || s.Keeper.FetchDead && s.Keeper.Untrusted, s.roots()},
		{s.Keeper.DNSDead, control.Trouble{Condition: Resolver, Told: true,
			What: "no TXT lookup has succeeded for some minutes, although several domains were tried",
			Next: "see whether the resolver answers: servers in [dns], or /etc/resolv.conf"}},
		{s.Cache.Newest.Sub(s.Now) > keeper.ClockSlack, s.clock()},
		{time.Duration(s.Keeper.LateSeconds)*time.Second >= keeper.LateAfter, control.Trouble{Condition: Refresher, Told: true,
			What: fmt.Sprintf("the refresher is %s late", time.Duration(s.Keeper.LateSeconds)*time.Second),
			Next: "if it stays so, raise fetch_rate, check_rate or concurrency in [refresh]"}},
		{s.Keeper.Failing, control.Trouble{Condition: Writes, Told: true,
			What: "the cache cannot be written to; new policies are kept in memory",
			Next: "see whether the disk is full, and who owns the folder of the cache; it is tried again until it works"}},
		{s.Cache.Salvage != nil || s.Cache.Rebuild != nil, s.salvage()},
		{s.DANE.Kept > 0 && s.DANE.Verdict != dane.Validates, s.validation()},
	} {
		if t.holds {
			list = append(list, t.Trouble)
		}
	}
	return list
}

func (s *Signs) roots() control.Trouble {
	if s.Roots != nil {
		return control.Trouble{Condition: Roots,
			What: fmt.Sprintf("the certificate authorities cannot be read any more (%v); those read at the start stay in force", s.Roots),
			Next: "correct ca_file in [fetch] or the file that it names: without it the daemon will not start again"}
	}
	return control.Trouble{Condition: Roots, Told: true,
		What: "no policy host's certificate has been trusted for some minutes, although several domains were tried",
		Next: "see whether this machine's clock is right, whether ca-certificates is installed and current (or ca_file in [fetch]), " +
			"and whether something on the way intercepts TLS"}
}

func (s *Signs) clock() control.Trouble {
	return control.Trouble{Condition: Clock,
		What: fmt.Sprintf("the clock says %s, which is before the newest record of the cache, %s",
			s.Now.UTC().Format(time.RFC3339), s.Cache.Newest.UTC().Format(time.RFC3339)),
		Next: "set the clock: with a wrong one policies expire too early or live too long; " +
			"if it is right, it was ahead before, and this ends when it gets there again"}
}

func (s *Signs) salvage() control.Trouble {
	r := s.Cache.Salvage
	if s.Cache.Rebuild != nil {
		r = s.Cache.Rebuild
	}
	if r == nil {
		return control.Trouble{}
	}
	where := ""
	if r.MovedTo != "" {
		where = "; the damaged file is " + r.MovedTo
	}
	if r.Unopened {
		where = strings.Replace(where, "damaged file", "file", 1)
		return control.Trouble{Condition: Salvage, Told: true,
			What: fmt.Sprintf("the cache file could not be opened (%v), and a new one was started: how many policies were lost is not known%s", oneLine(r.Why), where),
			Next: cmp.Or(r.Advice(), "look at the disk of this machine") + "; lost policies are found anew by the next lookup; this ends with a restart"}
	}
	return control.Trouble{Condition: Salvage, Told: true,
		What: fmt.Sprintf("the cache was damaged (%v): %d policies were saved, %d were damaged, %d lost%s",
			oneLine(r.Why), r.Recovered, r.Damaged, r.Lost, where),
		Next: "look at the disk and the memory of this machine; lost policies are found anew by the next lookup; this ends with a restart"}
}

func (s *Signs) validation() control.Trouble {
	return control.Trouble{Condition: Validation, Told: true,
		What: fmt.Sprintf("%d next-hops keep the DANE that they had, since nothing vouches for what the DNS says of them now: %s", s.DANE.Kept, s.DANE.Verdict),
		Next: "run a resolver on this machine that validates: until then mail to them waits, if the relay asks the same resolver; " +
			"a restart of the daemon forgets that they had DANE"}
}

// oneLine is an error of several lines in one.
func oneLine(err error) string {
	if err == nil {
		return "it is not known how"
	}
	return strings.ReplaceAll(err.Error(), "\n", ": ")
}
