//go:build e2e

package delivery

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	// Where Postfix looks for the socket, and the package's systemd unit makes it.
	postfixSocket = "/var/spool/postfix/sts-tlsmap-tlsrpt/tlsrpt.sock"
	systemRoots   = "/etc/ssl/certs/ca-certificates.crt"

	both = "mailto:reports@" + byPolicy + ",mailto:reports@" + byDANE
)

func TestReportsReachReceiversWithBrokenTLSThroughPostfix(t *testing.T) {
	lab := newLab(t)
	r := startReceiver(t, lab)
	relay := stage.StartPostfix(t, "postfix-trixie", map[string]string{systemRoots: string(lab.CA.PEM())},
		"master_service_disable =", "inet_interfaces = 127.0.0.1", "smtp_tls_security_level = dane", "smtp_dns_support_level = dnssec")
	w := newWorld(t, lab, relay.Root(), on(2))
	w.daemon.Start(t)
	recipe, _ := w.daemon.Run(t, "-recipe", "postfix")
	service := regexp.MustCompile(`(?m)^# (postconf -M .*)\n`).FindStringSubmatch(recipe)
	ours := regexp.MustCompile(`(?m)^sender_dependent_default_transport_maps = .*\n`).FindString(recipe)
	if service == nil || ours == "" {
		t.Fatalf("the recipe has no service for reports:\n%s", recipe)
	}
	relay.Configure(t, strings.Replace(recipe, ours, "", 1))
	first := lab.Domain("first.test", testlab.With{})
	asks(lab, first.Name, both)
	wantTold(t, w, relay, first)
	wantHeld(t, relay)
	// By default, Postfix honours "TLS-Required: No" of any sender.
	w.night(t, on(1))
	wantReport(t, w, r, first.Name, dayOf(on(2)), enforced(first))

	second := lab.Domain("second.test", testlab.With{})
	asks(lab, second.Name, both)
	wantTold(t, w, relay, second)
	if out, err := relay.Root().Command("/bin/sh", "-c", service[1]).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", service[1], err, out)
	}
	relay.Configure(t, "tls_required_enable = no\n"+ours)
	asks(lab, byPolicy, both)
	w.edit(t, "[tlsrpt]", "[tlsrpt]\nsubmit = \"sendmail:/usr/sbin/sendmail\"")
	w.night(t, on(0))
	wantReport(t, w, r, second.Name, dayOf(on(1)), enforced(second))
	w.feed(t, "after.test", true) // behind what Postfix has told
	if n := w.count(t, byPolicy); n != 0 {
		t.Errorf("Postfix told of %d sessions with reports", n)
	}
}

func TestReportsReachReceiversWithBrokenTLSThroughExim(t *testing.T) {
	lab := newLab(t)
	r := startReceiver(t, lab)
	relay := stage.StartExim(t, "exim-trixie", stage.EximOptions{Shipped: os.DirFS("../../../packaging/exim"), Files: map[string]string{
		systemRoots:                         string(lab.CA.PEM()),
		"/etc/exim4/conf.d/main/11_reports": "STS_TLSMAP_REPORT_SENDER = " + sender + "\n",
	}})
	listen := relay.Root().Command("/usr/sbin/exim4", "-bdf", "-oX", "127.0.0.1.25")
	if err := listen.Start(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, lab, relay.Root(), on(1))
	w.daemon.Start(t)
	wantHeld(t, relay)
	asks(lab, target, both)
	w.feed(t, target, true)
	w.feed(t, target, false)
	w.night(t, on(0))
	wantReport(t, w, r, target, dayOf(on(1)), report.Result{
		Policy:  tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: target, Strings: []string{}},
		Summary: report.Summary{Successful: 1, Failed: 1},
		Details: []tlsrpt.Detail{{Sessions: 1, Failure: tlsrpt.Failure{Result: tlsrpt.CertificateExpired, SendingIP: netip.MustParseAddr("192.0.2.1"),
			MXHost: "mx." + target, HELO: "mx." + target, ReceivingIP: netip.MustParseAddr("192.0.2.2")}}},
	})
}

// enforced is the result of one good session with a domain of the lab.
func enforced(d *testlab.Domain) report.Result {
	return report.Result{
		Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: d.Name, MXHosts: []string{"mx1." + d.Name},
			Strings: []string{"version: STSv1", "mode: enforce", "mx: mx1." + d.Name, "max_age: 604800"}},
		Summary: report.Summary{Successful: 1}, Details: []tlsrpt.Detail{},
	}
}

// wantTold has Postfix deliver a mail and tell the daemon of its TLS session.
func wantTold(t *testing.T, w *world, relay *stage.Postfix, d *testlab.Domain) {
	t.Helper()
	if o := relay.Send(t, d.Name).Outcome(t); o.Status != "sent" || o.TLS != "Verified" {
		t.Errorf("mail to %s: %s", d.Name, o)
	}
	w.await(t, func() bool { return w.count(t, d.Name) == 1 })
}

// wantHeld checks that the MTA does not deliver ordinary mail to the receiver.
func wantHeld(t *testing.T, relay stage.MTA) {
	t.Helper()
	for _, domain := range []string{byPolicy, byDANE} {
		if o := relay.Send(t, domain).Outcome(t); o.Status != "deferred" {
			t.Errorf("ordinary mail to %s: %s", domain, o)
		}
	}
}

// wantReport checks the mails with a domain's report: one to each of the receiver's domains.
func wantReport(t *testing.T, w *world, r *receiver, domain string, day tlsrpt.Day, result report.Result) {
	t.Helper()
	var mails []string
	w.await(t, func() bool {
		mails = slices.DeleteFunc(r.mails(t), func(mail string) bool { return !strings.Contains(mail, "\nTLS-Report-Domain: "+domain+"\n") })
		return len(mails) >= 2
	})
	var to []string
	for _, mail := range mails {
		got := read(t, mail)
		to = append(to, got.Headers["To"])
		id := got.Report.ID
		want := reading{
			Defects: []string{}, Schema: []string{}, Signed: true, Signer: reporter,
			Type: "multipart/report tlsrpt", Part: "application/tlsrpt+gzip",
			File: fmt.Sprintf("%s!%s!%d!%d.json.gz", reporter, domain, day.Begin().Unix(), day.Begin().Add(24*time.Hour).Unix()-1),
			Headers: map[string]string{
				"From": sender, "To": got.Headers["To"], "Return-Path": "<" + sender + ">",
				"Subject":           "Report Domain: " + domain + " Submitter: " + reporter + " Report-ID: <" + id + ">",
				"TLS-Report-Domain": domain, "TLS-Report-Submitter": reporter, "TLS-Required": "No", "Auto-Submitted": "auto-generated",
			},
			Report: report.Report{
				Organization: "Company-X", Contact: contact, ID: id,
				DateRange: report.DateRange{Start: day.Begin(), End: day.Begin().Add(24*time.Hour - time.Second)},
				Policies:  []report.Result{result},
			},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if !strings.HasPrefix(id, strings.ReplaceAll(string(day), "-", "")+"."+domain+".") {
			t.Errorf("the report's id is %s", id)
		}
	}
	if slices.Sort(to); !slices.Equal(to, []string{"reports@" + byDANE, "reports@" + byPolicy}) {
		t.Errorf("the report went to %q", to)
	}
}
