package explain_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

const enforced = "version: STSv1\nmode: enforce\nmx: mx1.a.test\nmax_age: 604800\n"

// world is what a test's domain publishes.
type world struct {
	txt    []string
	txtErr error
	text   string // of the policy
	fetch  error
	mx     []string // "10 mx1.a.test."
	mxErr  error
	held   control.Held
	heldIs error
	from   string
	asking error               // why the daemon could not be asked
	hint   string              // what to do about it
	maps   []mta.Map           // nil: those built in
	signed map[string][]string // "name type": records that come authenticated; nil ones fail
}

// honest publishes an enforced policy, which is held.
func honest() *world {
	return &world{
		txt: []string{"v=STSv1; id=1;"}, text: enforced, mx: []string{"10 mx1.a.test."}, from: explain.Daemon,
		held: control.Held{Domain: "a.test", Entry: &control.Entry{
			Domain: "a.test", Mode: "enforce", ID: "1", Policy: enforced,
			Fetched: now.Add(-time.Hour), Expires: now.Add(24 * time.Hour), Checked: now.Add(-time.Minute),
		}},
	}
}

// fresh is honest, with nothing held.
func fresh() *world {
	w := honest()
	w.held, w.heldIs = control.Held{Domain: "a.test"}, control.ErrNothingHeld
	return w
}

func (w *world) Query(_ context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	signed, ok := w.signed[name+" "+qtype.String()]
	switch {
	case ok && signed == nil:
		return nil, &resolver.Error{Name: name, Type: qtype, Kind: resolver.KindServFail}
	case ok:
		a := testlab.Answer(name, qtype, signed...)
		a.Authenticated = true
		return a, nil
	case qtype == resolver.TypeTXT && w.txtErr != nil:
		return nil, w.txtErr
	case qtype == resolver.TypeMX && w.mxErr != nil:
		return nil, w.mxErr
	case qtype == resolver.TypeTXT:
		return testlab.Answer(name, qtype, w.txt...), nil
	case qtype == resolver.TypeMX:
		return testlab.Answer(name, qtype, w.mx...), nil
	}
	return testlab.Answer(name, qtype), nil
}

func (w *world) TrustsAD() bool     { return true }
func (w *world) Generation() uint64 { return 0 }

func (w *world) Record(_ context.Context, domain string) (policy.Record, time.Duration, error) {
	if w.txtErr != nil {
		return policy.Record{}, 0, &policy.Error{Domain: domain, Result: policy.ResultDNS, Err: fmt.Errorf("%w: %w", policy.ErrRecordLookup, w.txtErr)}
	}
	rec, err := policy.FindRecord(w.txt)
	if err != nil {
		result := policy.ResultRecordInvalid
		if len(w.txt) == 0 {
			result = policy.ResultNoRecord
		}
		return rec, 0, &policy.Error{Domain: domain, Result: result, Err: err}
	}
	return rec, 0, nil
}

func (w *world) Fetch(_ context.Context, domain string, _ policy.Gate) (*policy.Fetched, error) {
	if w.fetch != nil {
		return nil, &policy.Error{Domain: domain, Result: policy.ResultFetch, Err: w.fetch}
	}
	p, err := policy.Parse([]byte(w.text))
	if err != nil {
		return nil, &policy.Error{Domain: domain, Result: policy.ResultInvalid, Err: err}
	}
	return &policy.Fetched{Text: []byte(w.text), Policy: p, Addr: netip.MustParseAddr("192.0.2.1"), Duration: 7 * time.Millisecond}, nil
}

func (w *world) gather(t *testing.T, key string) *explain.Report {
	t.Helper()
	maps := w.maps
	if maps == nil {
		maps = mta.Builtin()
	}
	table, err := tlsmap.NewTable(maps)
	if err != nil {
		t.Fatal(err)
	}
	return explain.Gather(t.Context(), key, explain.Sources{
		Resolver: w, Policies: w, Table: table, NextHops: dane.New(dane.Options{Resolver: w}),
		Held: func(context.Context, string) (control.Held, string, error) { return w.held, w.from, w.heldIs },
		Now:  func() time.Time { return now },

		NotAsked: w.asking, AskHint: w.hint,
	})
}

func TestAnUnreachableDaemonIsNotReportedAsDown(t *testing.T) {
	locked := errors.New("cache c.db: process 1 (sts-tlsmap) has it open")
	for _, test := range []struct {
		name   string
		asking error
		from   string
		heldIs error
		want   []string
		never  string
	}{
		{"down", control.ErrNoDaemon, explain.File, control.ErrNothingHeld,
			[]string{"Cache, from the file\n  daemon       the daemon is not running\n", "systemctl start sts-tlsmap"}, "About the daemon"},
		{"hung", fmt.Errorf("%w at c.sock", control.ErrNoAnswer), explain.File, locked,
			[]string{"Cache, from the file\n  daemon       the daemon does not answer at c.sock\n", "process 1 ",
				" reply if nothing is held (not known)\n", "Whether the daemon holds a policy is not known. If it holds none:", "\n  About the daemon: do this.\n"}, "not running"},
		{"not started, and systemd holds the socket", control.ErrNoAnswer, explain.File, control.ErrNothingHeld,
			[]string{"the daemon does not answer\n", "holds        nothing", "The policy is not held yet", "do this."}, "systemctl start"},
		{"crowded", fmt.Errorf("%w (queue)", control.ErrClosed), explain.File, locked,
			[]string{"  daemon       the daemon closed the connection without an answer (queue)\n", "do this."}, "not running"},
		{"forbidden", control.ErrNotAllowed, explain.Daemon, control.ErrNotAllowed,
			[]string{"Cache\n  error        not allowed\n", "is not known.", "\n  About the daemon: do this.\n"}, "not running"},
	} {
		w := fresh()
		w.asking, w.hint, w.from, w.heldIs = test.asking, "do this", test.from, test.heldIs
		out := textOf(t, w.gather(t, "a.test"))
		shows(t, out, test.want...)
		if strings.Contains(out, test.never) {
			t.Errorf("%s: there is %q in\n%s", test.name, test.never, out)
		}
	}
}

func TestTheNextStepFitsTheProblem(t *testing.T) {
	negative := &keeper.Negative{Result: policy.ResultFetch, Err: "it was down", Until: now.Add(time.Minute)}
	for _, test := range []struct {
		name   string
		world  *world
		change func(*world)
		reply  string // of map postfix
		next   string
	}{
		{"all is well", honest(), func(w *world) {}, "OK secure match=mx1.a.test", "All is well that -explain can see: mail goes only over verified TLS to hosts that the policy lists. It does not look at the hosts' certificates, for which mail may still wait: sts-tlsmap -probe a.test."},
		{"not held yet", fresh(), func(w *world) {}, "OK secure", "The policy is not held yet: the next lookup finds it"},
		{"no daemon", fresh(), func(w *world) { w.from = explain.File }, "OK secure", "The policy is not held yet: the next lookup finds it"},
		{"no record, none held", fresh(), func(w *world) { w.txt = nil }, "NOTFOUND", "Mail goes without MTA-STS: the domain does not publish it."},
		{"no record, one held", honest(), func(w *world) { w.txt = nil }, "OK secure", "-probe a.test. The domain's TXT record is gone, or somebody keeps it from us; the policy is in force until 2026-05-02"},
		{"a broken record", fresh(), func(w *world) { w.txt = []string{"v=STSv1; id=?;"} }, "NOTFOUND", "Mail goes without MTA-STS: its policy could not be fetched. The domain must correct its TXT record"},
		{"a broken record, one held", honest(), func(w *world) { w.txt = []string{"v=STSv1; id=?;"} }, "OK secure", "The policy held stays in force, since it cannot be fetched now. The domain must correct"},
		{"a resolver that fails", fresh(), func(w *world) { w.txtErr = errors.New("SERVFAIL") }, "NOTFOUND", "dig _mta-sts.a.test TXT"},
		{"a policy host that is down", fresh(), func(w *world) { w.fetch = policy.ErrConnect }, "NOTFOUND", "curl -v https://mta-sts.a.test/"},
		{"a policy host that is down, one held", honest(), func(w *world) { w.fetch = policy.ErrConnect }, "OK secure", "cannot be fetched now. Try: curl"},
		{"a clock in doubt", fresh(), func(w *world) { w.fetch = fmt.Errorf("%w; %w", policy.ErrCertExpired, policy.ErrClock) }, "TEMP this relay could not look", "Mail waits, since the policy could not be looked for. See whether the clock of this machine is right: sts-tlsmap -check"},
		{"a policy that is none", fresh(), func(w *world) { w.text = "version: STSv2\n" }, "NOTFOUND", "must correct its policy file"},
		{"another policy published", honest(), func(w *world) { w.text = strings.ReplaceAll(enforced, "enforce", "testing") }, "OK secure", "sts-tlsmap -refresh a.test"},
		{"another id published", honest(), func(w *world) { w.txt = []string{"v=STSv1; id=2;"} }, "OK secure", "sts-tlsmap -refresh a.test"},
		{"a failure remembered", fresh(), func(w *world) { w.held.Negative, w.heldIs = negative, nil }, "NOTFOUND", "an earlier failure is still remembered"},
		{"an expired policy held", honest(), func(w *world) { w.held.Entry.Expires, w.txt = now, nil }, "NOTFOUND", "does not publish it"},
		{"a policy within its first minute", honest(), func(w *world) {
			w.held.Entry.Fetched, w.held.Entry.Expires = now.Add(-59*time.Second), now.Add(-time.Second)
		}, "OK secure", "All is well"},
		{"a damaged policy", fresh(), func(w *world) {
			w.held.Damaged, w.heldIs, w.fetch = "its checksum is wrong", nil, policy.ErrConnect
		}, "TEMP", "The stored policy is damaged, and mail waits until it is fetched again: sts-tlsmap -refresh a.test. Try: curl"},
		{"a damaged policy, fetched again", fresh(), func(w *world) { w.held.Damaged, w.heldIs = "its checksum is wrong", nil }, "OK secure", "The policy is not held yet"},
		{"no host listed", honest(), func(w *world) { w.mx = []string{"10 evil.test."} }, "OK secure", "No MX host is listed by the policy: mail to a.test waits"},
		{"one host not listed", honest(), func(w *world) { w.mx = []string{"10 mx1.a.test.", "20 old.test."} }, "OK secure", "not to old.test"},
		{"MX hosts that cannot be looked up", honest(), func(w *world) { w.mxErr = errors.New("SERVFAIL") }, "OK secure", "dig a.test MX"},
		{"an exempt domain", honest(), func(w *world) {
			w.held.Exempt, w.held.ExemptBy = true, []exempt.Exemption{{Domain: "a.test"}}
		}, "NOTFOUND", "take a.test out of [exempt]"},
		{"testing, and no host listed", fresh(), func(w *world) {
			w.text, w.mx = strings.ReplaceAll(enforced, "enforce", "testing"), []string{"10 evil.test."}
		}, "NOTFOUND", "Mail goes with TLS or without: no map here enforces a policy with mode testing. The policy is not held yet"},
		{"another policy published, and no host listed by the one held", honest(), func(w *world) {
			w.text, w.mx = strings.ReplaceAll(enforced, "mx1.a", "new"), []string{"10 new.test."}
		}, "OK secure", "No MX host is listed by the policy: mail to a.test waits. The domain should correct its policy or its MX records. To send without protection meanwhile: sts-tlsmap -exempt a.test -for 4h. The domain publishes another policy than the one held. To follow it now: sts-tlsmap -refresh a.test"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.change(test.world)
			r := test.world.gather(t, "A.test.")
			if r.Domain != "a.test" {
				t.Errorf("got domain %q", r.Domain)
			}
			if !strings.Contains(r.Next, test.next) {
				t.Errorf("next: got %q, want %q", r.Next, test.next)
			}
			if len(r.Maps) != len(mta.Builtin()) || !strings.HasPrefix(r.Maps[0].Reply, test.reply) {
				t.Errorf("got %+v, want %s", r.Maps, test.reply)
			}
		})
	}
}

func TestAStoppedDaemonIsReportedFirst(t *testing.T) {
	const start = "The daemon is not running, and mail waits: start it with systemctl start sts-tlsmap. Once it runs: "
	for _, test := range []struct {
		name   string
		change func(*world)
		next   string // the whole of it; ends in "...": its beginning
	}{
		{"held", func(*world) {}, start + "All is well..."},
		{"not held", func(w *world) { *w = *fresh() }, start + "All is well..."},
		{"not held, and no host listed", func(w *world) { *w = *fresh(); w.mx = []string{"10 evil.test."} }, start + "No MX host is listed by the policy..."},
		{"no MTA-STS", func(w *world) { *w = *fresh(); w.txt = nil }, start + "Mail goes without MTA-STS: the domain does not publish it."},
		{"exempt", func(w *world) { w.held.ExemptBy = []exempt.Exemption{{Domain: "a.test"}} }, start + "The domain is exempt..."},
		{"another policy published", func(w *world) { w.txt = []string{"v=STSv1; id=2;"} }, start + "All is well..."},
		{"it runs, without a control socket", func(w *world) {
			*w = *fresh()
			w.heldIs = &cache.LockedError{}
		}, "Whether the daemon holds a policy is not known. If it holds none: All is well..."},
	} {
		w := honest()
		test.change(w)
		w.from, w.asking = explain.File, fmt.Errorf("%w (nothing listens)", control.ErrNoDaemon)
		next := w.gather(t, "a.test").Next
		begins, more := strings.CutSuffix(test.next, "...")
		if more && !strings.HasPrefix(next, begins) || !more && next != test.next {
			t.Errorf("%s: got %q, want %q", test.name, next, test.next)
		}
	}
}

func TestADaemonThatCannotStartIsReportedFirst(t *testing.T) {
	w := honest()
	w.from, w.asking = explain.Daemon, fmt.Errorf("ask: %w", &control.NotStartedError{Reason: "f.toml:3: oops"})
	w.heldIs = w.asking
	r := w.gather(t, "a.test")
	for _, m := range r.Maps {
		if m.Reply != "TEMP f.toml:3: oops" || m.Would != "" {
			t.Errorf("got %+v", m)
		}
	}
	shows(t, textOf(t, r), "What the maps reply\n  every map", "a.test\n  The daemon cannot start, and all mail waits: f.toml:3: oops. Once it runs: ")
}

func TestTheEntryThatExemptsIsNamed(t *testing.T) {
	until := func(entry string) exempt.Exemption {
		return exempt.Exemption{Domain: entry, Until: now.Add(time.Hour)}
	}
	for _, test := range []struct {
		name         string
		file, held   []exempt.Exemption
		next, reason string
		never        string
	}{
		{"its own, for a time", nil, []exempt.Exemption{until("a.test")}, "To end that: sts-tlsmap -exempt a.test -for 0", "exempt until 2026", "[exempt]"},
		{"all below, for a time", nil, []exempt.Exemption{until(".test")},
			"To end that: sts-tlsmap -exempt .test -for 0", "exempt by .test until 2026", "-exempt a.test"},
		{"all below, for good", []exempt.Exemption{{Domain: ".test"}}, nil, "take .test out of [exempt] and reload", "exempt by .test of [exempt]", "take a.test"},
		{"both", []exempt.Exemption{{Domain: "a.test"}}, []exempt.Exemption{until("a.test"), until(".test")},
			"To end that: take a.test out of [exempt] and reload; sts-tlsmap -exempt a.test -for 0; sts-tlsmap -exempt .test -for 0",
			"exempt by [exempt] in the configuration, and until 2026-05-01", "never"},
	} {
		w := honest()
		w.held.ExemptBy, w.held.Exempt, w.from, w.asking = append(test.file, test.held...), true, explain.File, control.ErrNoAnswer
		r := w.gather(t, "a.test")
		if !strings.Contains(r.Next, test.next) || strings.Contains(r.Next, test.never) {
			t.Errorf("%s: got %q, want %q", test.name, r.Next, test.next)
		}
		if m := r.Maps[0]; m.Reply != "NOTFOUND " || !strings.Contains(m.Why, test.reason) {
			t.Errorf("%s: got %+v, want %q", test.name, m, test.reason)
		}
	}
}

func TestAllIsWellIsSaidOnlyIfNoMailWaitsAndNothingToDoIsNeverSaid(t *testing.T) {
	tested := strings.ReplaceAll(enforced, "enforce", "testing")
	strict := func(name, format string, rehearsal bool) mta.Map {
		m := mta.New(name)
		m.Format, m.Testing, m.Enforce = format, true, !rehearsal
		return m
	}
	for _, test := range []struct {
		name   string
		policy string
		mx     []string
		maps   []mta.Map // beside those built in
		next   []string
	}{
		{"testing is enforced by no map", tested, []string{"10 evil.test."}, nil, []string{"Mail goes with TLS or without: no map here enforces a policy with mode testing."}},
		{"testing is enforced, and all is well", tested, []string{"10 mx1.a.test."},
			[]mta.Map{strict("strict", mta.FormatPostfix, false)}, []string{"All is well"}},
		{"testing is enforced for Postfix", tested, []string{"10 evil.test."}, []mta.Map{strict("strict", mta.FormatPostfix, false)},
			[]string{"No MX host is listed by the policy: mail to a.test waits in map strict, which enforces policies with mode testing", "-exempt a.test -for 4h"}},
		{"testing is enforced for Exim", tested, []string{"10 evil.test."}, []mta.Map{strict("strict", mta.FormatExim, false)},
			[]string{"waits in map strict,"}},
		{"testing is enforced in a rehearsal", tested, []string{"10 evil.test."}, []mta.Map{strict("trial", mta.FormatExim, true)},
			[]string{"would wait in map trial if that were no rehearsal"}},
		{"a pattern that is no host name", strings.ReplaceAll(enforced, "mx1.a.test", "hostname"), []string{"10 hostname."}, nil,
			[]string{"No MX host is listed by the policy: mail to a.test waits", "should correct its policy"}},
		{"a pattern that is no host name, and one that is", enforced + "mx: hostname\n", []string{"10 hostname."}, nil,
			[]string{"No MX host is listed by the policy: mail to a.test waits"}},
		{"a null MX", enforced, []string{"0 ."}, nil,
			[]string{"takes no mail (null MX, RFC 7505). But its policy is applied: in map exim its mail waits", "mode none", "dig a.test MX"}},
		{"a null MX where testing is enforced", tested, []string{"0 ."}, []mta.Map{strict("strict", mta.FormatExim, false)},
			[]string{"in map strict its mail waits"}},
		{"a null MX of a policy that is not applied", tested, []string{"0 ."}, nil, []string{"Mail goes with TLS or without: no map here enforces a policy with mode testing."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := honest()
			w.text, w.held.Entry.Policy, w.mx = test.policy, test.policy, test.mx
			w.maps = append(mta.Builtin(), test.maps...)
			r := w.gather(t, "a.test")
			for _, want := range test.next {
				if !strings.Contains(r.Next, want) {
					t.Errorf("got %q, want %q", r.Next, want)
				}
			}
			waits := false
			for _, m := range r.Maps {
				waits = waits || strings.HasPrefix(m.Reply, "TEMP") || strings.HasPrefix(m.Would, "TEMP")
			}
			if waits && strings.Contains(r.Next, "All is well") || strings.Contains(strings.ToLower(r.Next), "nothing to do") {
				t.Errorf("a map replies TEMP: %+v; %s", r.Maps, r.Next)
			}
		})
	}
}

func TestAnAddressInThePolicyIsSaidToListNoHost(t *testing.T) {
	for _, address := range []string{"212.114.86.56", "010.0.0.01", "2001:db8::1", "mx.123"} {
		w := honest()
		w.text = enforced + "mx: " + address + "\n"
		w.held.Entry.Policy = w.text
		shows(t, textOf(t, w.gather(t, "a.test")), "left out     no MTA takes such a name: "+address, "reply        OK secure match=mx1.a.test servername=hostname")

		w.text = strings.ReplaceAll(enforced, "mx1.a.test", address)
		w.held.Entry.Policy = w.text
		r := w.gather(t, "a.test")
		shows(t, textOf(t, r), "left out     no MTA takes such a name: "+address, "the MTA can use none of its mx patterns", "mx1.a.test, NOT listed by the policy")
		for _, m := range r.Maps {
			if !strings.HasPrefix(m.Reply, "TEMP ") {
				t.Errorf("%s: map %s: %q", address, m.Map, m.Reply)
			}
		}
	}
}

func TestMXHostsAreShownAsTheDNSHasThem(t *testing.T) {
	w := honest()
	w.mx = []string{"20 B.test.", "10 mx1.a.test."}
	r := w.gather(t, "a.test")
	if h := r.MX.Hosts; len(h) != 2 || h[0].Name != "mx1.a.test" || !*h[0].Listed || h[1].Name != "b.test" || *h[1].Listed {
		t.Errorf("got %+v", h)
	}
	for _, test := range []struct {
		mx   []string
		key  string
		note string
		n    int
	}{
		{[]string{"0 ."}, "a.test", "takes no mail", 0},
		{nil, "a.test", "its own mail host", 1},
		{[]string{"10 x.test."}, "[a.test]:25", "the name is the host", 1},
		{nil, "b.test", "its own mail host", 1},
	} {
		w.mx = test.mx
		r := w.gather(t, test.key)
		if !strings.Contains(r.MX.Note, test.note) || len(r.MX.Hosts) != test.n {
			t.Errorf("%v: got %+v", test, r.MX)
		}
	}
}

func TestAKeyWithoutAPolicyDomainIsExplainedWithoutTraffic(t *testing.T) {
	for key, want := range map[string]string{
		"[192.0.2.1]": "NOTFOUND ", "localhost": "NOTFOUND ", ".example.com": "NOTFOUND ", "a\x1b[31m b": "NOTFOUND ", "xn--a-\xff.test": "TEMP",
	} {
		r := (&world{}).gather(t, key)
		if r.Domain != "" || r.Record != nil || len(r.Maps) != 1 || r.Maps[0].Reply != want || r.Found() {
			t.Errorf("%q: got %+v", key, r)
		}
		var b bytes.Buffer
		if err := r.WriteText(&b); err != nil || strings.Contains(b.String(), "\x1b") {
			t.Errorf("%q: got %q, %v", key, b.String(), err)
		}
	}
}

func TestHostileTextReachesNoTerminal(t *testing.T) {
	evil := "\x1b[2J\u009b31m\u202e\r\n\x07\x7f\xff" + strings.Repeat("x", 5000)
	w := honest()
	w.txt = []string{"v=STSv1; id=1;", evil}
	w.txtErr = errors.New(evil)
	w.mxErr = errors.New(evil)
	w.held.Entry.Policy = enforced + evil
	w.held.Entry.ID, w.held.Entry.LastError, w.held.Entry.Failures = evil, evil, 3
	w.held.Entry.PendingID, w.held.Entry.Mode = evil, evil
	w.held.Damaged = evil
	w.held.Negative = &keeper.Negative{Result: policy.Result(evil), Err: evil, Until: now}
	var b bytes.Buffer
	if err := w.gather(t, "a.test").WriteText(&b); err != nil {
		t.Fatal(err)
	}
	w.txtErr, w.fetch = nil, errors.New(evil)
	w.txt = w.txt[:1]
	if err := w.gather(t, "a.test").WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if err := explain.WriteHeld(&b, &w.held, now); err != nil {
		t.Fatal(err)
	}
	l := explain.NewListing(&b, false, now)
	w.held.Entry.Domain = evil
	if err := errors.Join(l.Add(*w.held.Entry), l.Close()); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(b.String(), "\n") {
		for _, c := range line {
			if !unicode.IsPrint(c) {
				t.Fatalf("%q has %q", line, c)
			}
		}
	}
	if strings.Contains(b.String(), strings.Repeat("x", text.MaxPrinted+1)) {
		t.Error("a value was printed without a bound")
	}
}

func TestSentencesAreBrokenBeforeColumn80(t *testing.T) {
	w := honest()
	w.mx, w.asking, w.from = []string{"10 evil.test."}, control.ErrNoDaemon, explain.File
	for _, line := range strings.Split(textOf(t, w.gather(t, "a.test")), "\n") {
		if len(line) >= 80 && !strings.HasPrefix(line, "    reply ") { // as it stands, to be copied
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

func TestAListingIsAlignedWhateverTheLengthOfOneName(t *testing.T) {
	entries := []control.Entry{
		{Domain: "a.test", Mode: "enforce", ID: "1", Fetched: now.Add(-time.Hour), Expires: now.Add(time.Hour), Checked: now, Used: now},
		{Domain: strings.Repeat("long.", 10) + "test", Mode: "none", Fetched: now.Add(-48 * time.Hour), Expires: now.Add(-time.Hour), Used: now.Add(-49 * time.Hour), Failures: 4},
		{Domain: "damaged.test", Mode: "invalid", LastError: "x"},
		{Domain: "new.test", Mode: "enforce", Fetched: now.Add(-59*time.Minute - 59*time.Second), Expires: now.Add(30 * 24 * time.Hour), NotOnDisk: true},
	}
	var b bytes.Buffer
	l := explain.NewListing(&b, false, now)
	for _, e := range entries {
		if err := l.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := `DOMAIN                         MODE     FETCHED    EXPIRES    USED       FAILED
a.test                         enforce  1h ago     in 1h      0s ago     0
long.long.long.long.long.long.long.long.long.long.test none     2d ago     1h ago     2d1h ago   4
damaged.test                   invalid  never      never      never      0
new.test                       enforce  59m59s ago in 30d     never      0 (not on disk)

total 4: 2 enforce, 1 invalid, 1 none; 1 failing
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	if header, _, _ := strings.Cut(b.String(), "\n"); len(header) >= 80 {
		t.Errorf("the header has %d columns", len(header))
	}

	b.Reset()
	l = explain.NewListing(&b, true, now)
	if err := errors.Join(l.Add(entries[0]), l.Close()); err != nil {
		t.Fatal(err)
	}
	var e control.Entry
	if err := json.Unmarshal(b.Bytes(), &e); err != nil || e.Domain != "a.test" || !e.Fetched.Equal(entries[0].Fetched) {
		t.Errorf("got %s, %v", b.String(), err)
	}
}

func TestALongListingIsPrintedAsItComes(t *testing.T) {
	var b bytes.Buffer
	l := explain.NewListing(&b, false, now)
	for i := range 5000 {
		if err := l.Add(control.Entry{Domain: fmt.Sprintf("d%d.test", i), Mode: "none"}); err != nil {
			t.Fatal(err)
		}
		if printed := strings.Count(b.String(), "\n"); i-printed > 1000 {
			t.Fatalf("%d of %d rows are held back", i-printed, i)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(b.String(), "\n"); got != 5003 || strings.Count(b.String(), "DOMAIN") != 1 || l.Count() != 5000 {
		t.Errorf("got %d lines", got)
	}
}
