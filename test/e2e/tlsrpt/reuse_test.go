//go:build e2e

package tlsrpt

import (
	"os"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// resumes sends two messages to a host that resumes TLS sessions. Postfix tells of a
// resumed session since 3.11, with the setting in the recipe.
func resumes(t *testing.T, w *world) {
	d := w.domain(t, row{domain: "resumed.test"})
	d.Mail[0].Resume()
	kind, sessions := "btree", uint64(1)
	if w.postfix.AtLeast("3.11.0") {
		kind, sessions = "lmdb", 2
	}
	w.set(t, "smtp_tls_session_cache_database = "+kind+":${data_directory}/smtp_scache")
	for range 2 {
		if o := w.postfix.Send(t, d.Name).Outcome(t); o.TLS != "Verified" {
			t.Errorf("%s\n%s", o, o.Log)
		}
	}
	await(t, "both sessions have ended", func() bool { return len(d.Mail[0].Sessions()) == 2 })
	if s := d.Mail[0].Sessions(); s[0].Resumed || !s[1].Resumed {
		t.Fatalf("the sessions at the host: %+v", s)
	}
	w.flush(t, "after-resumed.test")
	want := stsSucceeded(d)
	want[0].Summary.Successful = sessions
	w.expect(t, d, want)
	w.checkSessions(t)
}

// reuses has tlsproxy(8) keep TLS sessions, over which smtp(8) sends further messages:
// one session, told once. It tells of failures too.
func reuses(t *testing.T, w *world) {
	good, bad := w.domain(t, row{domain: "reused.test"}), w.domain(t, row{domain: "reused-bad.test", with: testlab.With{MailCert: testlab.CertExpired}})
	services, err := os.ReadFile(w.postfix.Root().Path("/etc/postfix/master.cf")) // Debian's has no tlsproxy
	if err != nil {
		t.Fatal(err)
	}
	w.postfix.Write(t, "/etc/postfix/master.cf", string(services)+"tlsproxy unix - - y - 0 tlsproxy\n")
	w.set(t, "smtp_tls_connection_reuse = yes", "smtp_connection_cache_destinations = reused.test")
	for range 2 {
		if o := w.postfix.Send(t, good.Name).Outcome(t); o.Status != "sent" {
			t.Errorf("%s\n%s", o, o.Log)
		}
	}
	if n := good.Mail[0].Connections(); n != 1 || len(good.Mail[0].Messages()) != 2 {
		t.Fatalf("%d messages over %d connections", len(good.Mail[0].Messages()), n)
	}
	if o := w.postfix.Send(t, bad.Name).Outcome(t); o.Status != deferred {
		t.Errorf("%s\n%s", o, o.Log)
	}
	// The next-hop is an address: no domain to report to.
	if o := w.postfix.Send(t, "["+good.Mail[0].Addr.String()+"]").Outcome(t); o.Status != "sent" {
		t.Errorf("%s\n%s", o, o.Log)
	}
	w.flush(t, "after-reused.test")
	w.expect(t, good, stsSucceeded(good))
	w.expect(t, bad, stsFailed(tlsrpt.CertificateExpired, "")(bad))
	w.checkSessions(t)
	w.set(t, "smtp_tls_connection_reuse = no", "smtp_connection_cache_destinations =")
}

// expect compares a domain's report, and counts its sessions.
func (w *world) expect(t *testing.T, d *testlab.Domain, want []report.Result) {
	t.Helper()
	for _, p := range want {
		w.sessions += int(p.Summary.Successful + p.Summary.Failed)
	}
	w.midnight(t)
	if got := w.report(t, d.Name); asText(got) != asText(want) {
		t.Errorf("%s, the report of %s:\n%swant:\n%s", w.postfix.Name(), d.Name, asText(got), asText(want))
	}
}
