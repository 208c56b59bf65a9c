package tlsmap_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// What the package says of itself: a line is written again after an hour, and 50
// of one kind at once.
const (
	logAgain     = time.Hour
	lineBurst    = 50
	maxRehearsed = 2000
)

func TestADeferralIsLoggedOnceAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		l.hops.mxErr = &resolver.Error{Name: "enforce.example", Type: resolver.TypeMX, Kind: resolver.KindServFail, Server: "192.0.2.53:53"}
		for range 10 {
			l.ask("exim", "Enforce.Example.")
		}
		const want = `level=WARN msg="mail is deferred" domain=enforce.example map=exim ` +
			`reason="MTA-STS: enforce.example: its MX hosts could not be looked up: SERVFAIL" err="DNS MX enforce.example: SERVFAIL (server 192.0.2.53:53)"`
		if n := l.lines(want); n != 1 {
			t.Errorf("%d lines:\n%s", n, &l.log)
		}
		time.Sleep(logAgain)
		l.ask("exim", "enforce.example")
		if n := l.lines(want); n != 2 {
			t.Errorf("%d lines an hour later:\n%s", n, &l.log)
		}
	})
}

func TestDroppedLogLinesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		for i := range 10 * lineBurst {
			l.ask("postfix", fmt.Sprintf("%d.b\xfccher.example", i))
		}
		if n := l.lines(""); n < lineBurst/2 || n > lineBurst {
			t.Errorf("%d lines at once", n)
		}
		l.ask("postfix", "unreadable.example") // for which there is no room
		time.Sleep(time.Minute)
		for range 2 {
			l.ask("postfix", "unreadable.example")
		}
		if n := l.lines("domain=unreadable.example"); n != 1 || l.lines("not_logged=") != 1 {
			t.Errorf("%d lines:\n%s", n, &l.log)
		}
	})
}

func TestARehearsalLogsItsReplyOnceAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		for range 10 {
			l.ask("rehearsal", "enforce.example")
			l.ask("rehearsal", "none.example")
			l.ask("postfix", "enforce.example")
		}
		const want = `msg="rehearsal: answered NOTFOUND, would have answered otherwise" map=rehearsal key=enforce.example ` +
			`reply="OK secure match=mx.enforce.example:.example.net servername=hostname"`
		if l.lines(want) != 1 || l.lines("") != 1 {
			t.Fatalf("log:\n%s", &l.log)
		}
		time.Sleep(logAgain)
		l.ask("rehearsal", "enforce.example")
		if l.lines(want) != 2 {
			t.Errorf("%d lines an hour later, want 2", l.lines(want))
		}
	})
}

func TestTheLogShowsLongKeysCutOff(t *testing.T) {
	l := newLab(t, 0)
	l.ask("rehearsal", strings.Repeat("x", 10_000)+"\xff")
	if n := l.log.Len(); n == 0 || n > 2000 {
		t.Errorf("a line of %d bytes", n)
	}
}

func TestShuffledHostsAreTheSameRehearsal(t *testing.T) {
	l := eximLab(t, mxSet("10 a.example.com", "10 b.example.com", "10 c.example.com"), nil, "*.example.com")
	for range 100 {
		l.ask("exim-rehearsal", "example.com")
	}
	if n := l.lines("map=exim-rehearsal"); n != 1 {
		t.Errorf("%d lines:\n%s", n, &l.log)
	}
}

func TestARehearsalRemembersItsReplies(t *testing.T) {
	l := newLab(t, 0)
	for range 3 {
		l.ask("rehearsal", "enforce.example")
	}
	l.ask("rehearsal", "unreadable.example")
	l.ask("rehearsal", "b\xfccher.example")
	l.ask("rehearsal", "unknown.example") // NOTFOUND in any case
	l.ask("postfix", "stored.example")    // no rehearsal

	list := l.Rehearsed("")
	var got []string
	for _, r := range list {
		got = append(got, fmt.Sprintf("%q %s %t %d", r.Domain, r.Map, r.Deferred, r.Count))
	}
	want := `"b\xfccher.example" rehearsal true 1
"unreadable.example" rehearsal true 1
"enforce.example" rehearsal false 3`
	if strings.Join(got, "\n") != want {
		t.Fatalf("%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	if would := l.ask("postfix", "enforce.example"); list[2].Reply != would {
		t.Errorf("reply %q, want %q", list[2].Reply, would)
	}
	if one := l.Rehearsed("unreadable.example"); len(one) != 1 || one[0].Last.Before(one[0].First) {
		t.Errorf("of one domain: %+v", one)
	}
}

func TestRehearsedRepliesAreBoundedAndTEMPIsKept(t *testing.T) {
	l := newLab(t, 0)
	l.ask("rehearsal", "unreadable.example")
	p := enforced(longPolicy(100).MX...)
	for i := range maxRehearsed + 10 {
		domain := fmt.Sprintf("d%d.example", i)
		l.policies.held[domain] = p
		l.ask("rehearsal", domain)
	}
	list := l.Rehearsed("")
	if len(list) != maxRehearsed+1 || list[0].Domain != "unreadable.example" || len(list[1].Reply) > 600 {
		t.Errorf("%d remembered, the first is %+v", len(list), list[0])
	}
}
