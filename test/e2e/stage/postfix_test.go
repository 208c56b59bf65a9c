package stage

import (
	"slices"
	"strings"
	"testing"
)

func TestOutcomesAreThoseOfTheMessageAndItsProcess(t *testing.T) {
	log := strings.Split(`Nov 23 16:41:24 relay postfix/qmgr[7]: A1: from=<s@relay.test>, size=273, nrcpt=1 (queue active)
Nov 23 16:41:24 relay postfix/smtp[8]: Untrusted TLS connection established to mx1.two.test[127.1.0.17]:25: TLSv1.3
Nov 23 16:41:24 relay postfix/smtp[9]: Verified TLS connection established to mx.other.test[127.1.0.9]:25: TLSv1.3
Nov 23 16:41:24 relay postfix/smtp[8]: A1: Server certificate not verified
Nov 23 16:41:24 relay postfix/smtp[8]: Verified TLS connection established to mx2.two.test[127.1.0.18]:25: TLSv1.3
Nov 23 16:41:24 relay postfix/smtp[9]: A2: to=<b@other.test>, relay=mx.other.test[127.1.0.9]:25, delay=0.1, dsn=2.0.0, status=sent (250 2.0.0 accepted)
Nov 23 16:41:24 relay postfix/smtp[8]: A1: to=<a@two.test>, relay=mx2.two.test[127.1.0.18]:25, delay=0.1, dsn=4.5.0, status=deferred (host said: 451 (not now))
Nov 23 16:41:25 relay postfix/smtp[8]: A1: to=<a@two.test>, relay=none, delay=1, dsn=4.4.1, status=deferred (connect to mx2.two.test[127.1.0.18]:25: Connection refused)`, "\n")

	got := outcomes(log, "a@two.test")
	for i := range got {
		if i == 0 && !strings.Contains(got[0].Log, "A1: Server certificate not verified") {
			t.Errorf("the log of the first attempt is %q", got[0].Log)
		}
		got[i].Log = ""
	}
	want := []Outcome{
		{QueueID: "A1", Status: "deferred", Relay: "mx2.two.test[127.1.0.18]:25", Reason: "host said: 451 (not now)", TLS: "Verified"},
		{QueueID: "A1", Status: "deferred", Relay: "none", Reason: "connect to mx2.two.test[127.1.0.18]:25: Connection refused"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestVersionsAreComparedByNumber(t *testing.T) {
	for _, c := range []struct {
		version, least string
		want           bool
	}{
		{"3.7.11", "3.10.5", false},
		{"3.10.4", "3.10.5", false},
		{"3.10.5", "3.10.5", true},
		{"3.10.13", "3.10.5", true},
		{"3.11.0", "3.10.5", true},
	} {
		p := &Postfix{Version: c.version}
		if got := p.AtLeast(c.least); got != c.want {
			t.Errorf("%s at least %s: %v", c.version, c.least, got)
		}
	}
}
