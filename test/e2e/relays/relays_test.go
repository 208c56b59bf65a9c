//go:build e2e

package relays

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestRelaysShareThroughRedis7(t *testing.T)  { testShare(t, "redis-bookworm", "redis") }
func TestRelaysShareThroughValkey8(t *testing.T) { testShare(t, "valkey-trixie", "valkey") }

func testShare(t *testing.T, root, server string) {
	w := newWorld(t, root, server)
	t.Run("a policy that one relay has found protects mail at the first contact of all", w.firstContact)
	t.Run("a policy host is asked once for all relays", w.askOnce)
	t.Run("an exemption holds at all relays, over restarts, until it is ended", w.exemption)
	t.Run("a forget holds at all relays, over restarts", w.forget)
	for _, r := range failures {
		t.Run(r.name, func(t *testing.T) { w.fail(t, r) })
	}
	t.Run("a relay whose clock is an hour off answers as one that is alone, and says so", w.clockOff)
	t.Run("a relay with another key is alone, and says so", w.otherKey)
}

func (w *world) firstContact(t *testing.T) {
	for how, name := range map[testlab.How]string{testlab.ServFail: "first.test", testlab.Silent: "silent.test"} {
		d := w.domain(t, name)
		w.ask(t, name, true, w.relays[:1])
		await(t, "the policy is at the engine", func() bool { return w.engine.do(t, "EXISTS", "sts-tlsmap:p:{"+name+"}") == "1" })
		d.takeAway(t, how)
		longest := w.ask(t, name, true, w.relays[1:])
		t.Logf("%s: %d relays answer OK secure, the last one after %s", name, len(w.relays)-1, longest.Round(time.Millisecond))
		if longest > 5*time.Second { // a question that the DNS does not answer fails after 10 s
			t.Errorf("%s: that takes %s", name, longest)
		}
		w.ask(t, name, false, []*relay{w.alone})
	}
	for _, r := range w.relays[1:] {
		if !strings.Contains(r.Log(), `msg="MTA-STS policy found by another relay" domain=first.test relay=mx1`) {
			t.Errorf("%s does not log who found it", r.name)
		}
	}
	await(t, "-fleet lists all relays", func() bool { return len(w.relays[0].fleet(t).Members) == len(w.relays) })
	t.Logf("-fleet:\n%s", w.relays[0].must(t, 0, "-fleet"))
	if out, _, _, err := w.relays[0].Run(t.Context(), "-check"); err != nil || !strings.Contains(out, "ok      fleet: ") {
		t.Errorf("-check: %v\n%s", err, out)
	}
}

// askOnce has all relays ask for some domains, once a minute for the time that
// STS_TLSMAP_E2E_FLEET_TIME says, and counts the fetches. With a max_age of two hours each
// relay draws its moment of the next fetch between 30 and 60 minutes: the hour has the
// first fetch of each policy and its refresh, which the earliest draw does for all.
func (w *world) askOnce(t *testing.T) {
	domains, long := 10, time.Duration(0)
	if text := os.Getenv("STS_TLSMAP_E2E_FLEET_TIME"); text != "" {
		var err error
		if long, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		domains = 1000
	}
	server := w.lab.PolicyServer("")
	var hosts []*testlab.Domain
	for i := range domains {
		name := fmt.Sprintf("once%d.test", i)
		hosts = append(hosts, w.lab.Domain(name, testlab.With{Server: server, MX: []string{"mx1." + name}, MaxAge: 2 * time.Hour, NoMail: true}))
	}
	fetches := func() (n int) {
		for _, d := range hosts {
			n += d.Policy.Asked()
		}
		return n
	}
	rounds, first := 0, 0
	for begun, tick := time.Now(), time.NewTicker(time.Minute); rounds == 0 || time.Since(begun) < long; rounds++ {
		for _, r := range w.relays {
			m := r.dial(t)
			for _, d := range hosts {
				m.wantSecure(t, d.Name)
			}
			m.close(t)
		}
		if rounds == 0 {
			first = fetches()
		}
		if long > 0 {
			<-tick.C
		}
	}
	all := fetches()
	t.Logf("%d relays asked for %d domains %d times each: %d fetches, %d of them in the first round", len(w.relays), domains, rounds, all, first)
	// On a busy machine the engine sometimes takes more than 100 ms; then a relay fetches.
	if first < domains || first > domains*len(w.relays)/2 || long > 0 && (first > domains*3/2 || all-first > domains*3/2) {
		t.Errorf("%d fetches of %d policies, and %d more", first, domains, all-first)
	}
}

// follow waits until all relays answer as wanted, and logs after how long.
func (w *world) follow(t *testing.T, what, domain string, want bool) {
	t.Helper()
	begun := time.Now()
	for _, r := range w.relays {
		await(t, r.name+": "+what, func() bool { return r.protects(t, domain) == want })
	}
	t.Logf("%s at all relays after %s", what, time.Since(begun).Round(100*time.Millisecond))
}

func (w *world) exemption(t *testing.T) {
	w.domain(t, "exempt.test")
	w.ask(t, "exempt.test", true, w.relays)
	down, last := w.relays[1], w.relays[len(w.relays)-1]
	if err := down.Stop(); err != nil {
		t.Fatal(err)
	}
	w.relays[0].must(t, 0, "-exempt", "exempt.test", "-for", "4h", "-fleet")
	down.start(t)
	w.follow(t, "exempt.test is exempt", "exempt.test", false)
	if err := last.Kill(); err != nil {
		t.Fatal(err)
	}
	last.start(t)
	w.ask(t, "exempt.test", false, w.relays)
	if log := last.Log(); !strings.Contains(log, `msg="order of the fleet" order=exempt domain=exempt.test by="\"root\" at relay \"mx1\""`) {
		t.Error("the log does not say who exempted it")
	}
	w.relays[0].must(t, 0, "-fleet", "-exempt", "exempt.test", "-for", "0")
	w.follow(t, "exempt.test is exempt no more", "exempt.test", true)
	last.restart(t) // the older order is still there for a relay that knows nothing of the end
	w.ask(t, "exempt.test", true, w.relays)
}

func (w *world) forget(t *testing.T) {
	d := w.domain(t, "forget.test")
	w.ask(t, "forget.test", true, w.relays)
	d.takeAway(t, testlab.ServFail)
	w.ask(t, "forget.test", true, w.relays)
	w.relays[1].must(t, 0, "-forget", "forget.test", "-fleet")
	w.follow(t, "forget.test is forgotten", "forget.test", false)
	w.relays[0].restart(t)
	w.ask(t, "forget.test", false, w.relays)
}

// A failure is something that goes wrong with the engine, and is mended.
type failure struct {
	name   string
	quiet  bool // no relay notices
	some   bool // only the relays that some returns notice
	begin  func(t *testing.T, w *world)
	mend   func(t *testing.T, w *world)
	reason string // in the log; alternatives are separated by |
}

var failures = []failure{
	{
		name:  "an engine that is down at the start",
		begin: func(t *testing.T, w *world) { w.engine.stop(); w.restart(t) },
		mend:  func(t *testing.T, w *world) { w.engine.start(t) }, reason: "connection refused",
	},
	{
		name:  "an engine that hangs",
		begin: func(t *testing.T, w *world) { w.engine.signal(t, syscall.SIGSTOP) },
		mend:  func(t *testing.T, w *world) { w.engine.signal(t, syscall.SIGCONT) }, reason: "timeout|deadline",
	},
	{
		name: "an engine that was emptied", quiet: true,
		begin: func(t *testing.T, w *world) { w.engine.do(t, "FLUSHALL") },
		mend:  func(*testing.T, *world) {},
	},
	{
		name:  "an engine that is full",
		begin: func(t *testing.T, w *world) { w.engine.do(t, "CONFIG", "SET", "maxmemory", "1kb") },
		mend:  func(t *testing.T, w *world) { w.engine.do(t, "CONFIG", "SET", "maxmemory", "0") }, reason: "OOM",
	},
	{
		name:  "a replica that takes no writes",
		begin: func(t *testing.T, w *world) { w.engine.do(t, "REPLICAOF", router, "6379") },
		mend:  func(t *testing.T, w *world) { w.engine.do(t, "REPLICAOF", "NO", "ONE") }, reason: "READONLY",
	},
	{
		name: "a wrong password",
		begin: func(t *testing.T, w *world) {
			w.engine.do(t, "ACL", "SETUSER", "relay", "resetpass", ">other")
			w.engine.do(t, "CLIENT", "KILL", "USER", "relay")
		},
		mend: func(t *testing.T, w *world) { w.engine.do(t, "ACL", "SETUSER", "relay", "resetpass", ">secret") }, reason: "WRONGPASS",
	},
	{
		name: "a network that is cut to half of the relays", some: true,
		begin: func(t *testing.T, w *world) {
			for _, r := range w.some() {
				run(t, "ip", "-n", r.name, "route", "add", "blackhole", engineAt)
			}
		},
		mend: func(t *testing.T, w *world) {
			for _, r := range w.some() {
				run(t, "ip", "-n", r.name, "route", "del", "blackhole", engineAt)
			}
		},
		reason: "timeout|deadline|unreachable|invalid argument",
	},
}

// some returns every other relay.
func (w *world) some() (list []*relay) {
	for i := 1; i < len(w.relays); i += 2 {
		list = append(list, w.relays[i])
	}
	return list
}

func (w *world) restart(t *testing.T) {
	for _, r := range w.relays {
		r.restart(t)
	}
}

const (
	lineAway  = `msg="the fleet's engine does not serve; this relay goes on alone"`
	lineAgain = `msg="the fleet's engine serves again"`
)

var failed int // rows so far, for names of domains

// fail has relays answer while something is wrong with the engine, and after it is mended.
func (w *world) fail(t *testing.T, f failure) {
	failed++
	name := func(what string) string { return fmt.Sprintf("%s%d.test", what, failed) }
	hit := w.relays
	if f.some {
		hit = w.some()
	}
	w.domain(t, name("held"))
	w.ask(t, name("held"), true, w.relays)
	for _, r := range w.relays {
		r.mark()
	}
	f.begin(t, w)
	t.Logf("50 first contacts, the median and the longest: %s; at the relay that is alone: %s", w.firstContacts(t, hit[0]), w.firstContacts(t, w.alone))

	// The answers are those of a relay without a fleet.
	w.ask(t, name("held"), true, w.relays)
	w.domain(t, name("new"))
	first := w.ask(t, name("new"), true, append([]*relay{w.alone}, w.relays...))
	w.ask(t, name("none"), false, w.relays)
	if !f.quiet {
		for _, r := range hit {
			await(t, r.name+" notices", func() bool { return strings.Contains(r.since(), lineAway) })
		}
		if out, _, code, err := hit[0].Run(t.Context(), "-fleet"); err != nil || code != 1 || !strings.Contains(out, "this relay goes on alone") {
			t.Errorf("-fleet exits with %d, %v:\n%s", code, err, out)
		}
	}
	w.domain(t, name("later"))
	later := w.ask(t, name("later"), true, append([]*relay{w.alone}, w.relays...))
	t.Logf("a first contact of all at once takes %s, and %s once the relays know", first.Round(time.Millisecond), later.Round(time.Millisecond))

	// Without a restart, they share again, also what was found meanwhile.
	f.mend(t, w)
	found := w.domain(t, name("found"))
	w.ask(t, name("found"), true, hit[:1])
	for _, r := range hit {
		if f.quiet {
			break
		}
		await(t, r.name+" is served again", func() bool { return strings.Contains(r.since(), lineAgain) })
		if log := r.since(); strings.Count(log, "level=ERROR") != 1 || strings.Count(log, lineAway) != 1 {
			t.Errorf("%s logs more than one error:\n%s", r.name, log)
		} else if !matches(f.reason, log) {
			t.Errorf("%s: the log does not have %s:\n%s", r.name, f.reason, log)
		}
	}
	await(t, "the policy is at the engine", func() bool { return w.engine.do(t, "EXISTS", "sts-tlsmap:p:{"+found.Name+"}") == "1" })
	found.takeAway(t, testlab.ServFail)
	w.ask(t, found.Name, true, w.relays)
}

// firstContacts asks a relay for 50 domains one after the other, and returns the
// median and the longest time.
func (w *world) firstContacts(t *testing.T, r *relay) string {
	t.Helper()
	server, m := w.lab.PolicyServer(""), r.dial(t)
	defer m.close(t)
	var took []time.Duration
	for i := range 50 {
		name := fmt.Sprintf("contact%d-%d-%s.test", failed, i, r.name)
		w.lab.Domain(name, testlab.With{Server: server, MX: []string{"mx1." + name}, NoMail: true})
		took = append(took, m.wantSecure(t, name))
	}
	slices.Sort(took)
	return fmt.Sprint(took[25].Round(100*time.Microsecond), ", ", took[49].Round(100*time.Microsecond))
}

func matches(reasons, log string) bool {
	for reason := range strings.SplitSeq(reasons, "|") {
		if strings.Contains(log, reason) {
			return true
		}
	}
	return false
}

// clockOff has the last relay start with an empty cache and a wrong clock.
func (w *world) clockOff(t *testing.T) {
	dir := stage.Path("clock")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	program, err := testlab.BuildDaemonWithClock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	clock, odd, others := testlab.Clock(filepath.Join(dir, "offset")), w.relays[len(w.relays)-1], w.relays[:len(w.relays)-1]
	begin := func(program string, env []string) {
		if err := odd.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(stage.Path(odd.name), "cache.db")); err != nil {
			t.Fatal(err)
		}
		odd.Program, odd.Env = program, env
		odd.start(t)
	}
	defer begin(odd.Program, odd.Env)
	atEngine := func(name string) func() bool {
		return func() bool { return w.engine.do(t, "EXISTS", "sts-tlsmap:p:{"+name+"}") == "1" }
	}
	for ahead, off := range map[bool]time.Duration{true: time.Hour, false: -time.Hour} {
		if err := clock.Set(off); err != nil {
			t.Fatal(err)
		}
		begin(program, append(testlab.WithoutProxies(os.Environ()), clock.Env()))
		await(t, "-check names the clock", func() bool {
			out, _, _, err := odd.Run(t.Context(), "-check")
			return err == nil && strings.Contains(out, "the clock of this relay is ")
		})

		// Of two relays, the one whose clock is behind refuses what the other shares.
		behind, before := others, others[0].fleet(t).Refused["ahead"]
		if !ahead {
			behind, before = []*relay{odd}, odd.fleet(t).Refused["ahead"]
		}
		theirs, its := w.domain(t, fmt.Sprintf("theirs%t.test", ahead)), w.domain(t, fmt.Sprintf("its%t.test", ahead))
		w.ask(t, theirs.Name, true, others[:1])
		w.ask(t, its.Name, true, []*relay{odd})
		await(t, "both policies are at the engine", func() bool { return atEngine(theirs.Name)() && atEngine(its.Name)() })
		theirs.takeAway(t, testlab.ServFail)
		w.ask(t, theirs.Name, ahead, []*relay{odd})
		w.ask(t, theirs.Name, true, others)
		its.takeAway(t, testlab.ServFail)
		w.ask(t, its.Name, !ahead, others)
		w.ask(t, its.Name, true, []*relay{odd})
		if after := behind[0].fleet(t).Refused["ahead"]; after <= before {
			t.Errorf("%s has refused %d values as ahead of its clock, and %d before", behind[0].name, after, before)
		}
		w.domain(t, fmt.Sprintf("own%t.test", ahead))
		w.ask(t, fmt.Sprintf("own%t.test", ahead), true, append([]*relay{w.alone}, w.relays...))
	}
}

func (w *world) otherKey(t *testing.T) {
	odd := w.relays[len(w.relays)-1]
	if err := odd.Stop(); err != nil {
		t.Fatal(err)
	}
	odd.key = w.other
	odd.configure(t)
	odd.start(t)
	d := w.domain(t, "key.test")
	w.ask(t, "key.test", true, w.relays[:1])
	await(t, "the policy is at the engine", func() bool { return w.engine.do(t, "EXISTS", "sts-tlsmap:p:{key.test}") == "1" })
	d.takeAway(t, testlab.ServFail)
	w.ask(t, "key.test", false, []*relay{odd, w.alone})
	w.ask(t, "key.test", true, w.relays[:len(w.relays)-1])
	if out, _, code, err := odd.Run(t.Context(), "-check"); err != nil || code == 2 || !strings.Contains(out, "note    fleet: values of the fleet's server were refused since the start (unknown ") {
		t.Errorf("-check: exit code %d, %v\n%s", code, err, out)
	}
	w.domain(t, "own.test")
	w.ask(t, "own.test", true, w.relays)
}
