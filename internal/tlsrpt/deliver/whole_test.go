package deliver_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// All is real: the store, and on loopback DNS, the MTA and the web server.
func TestADaysReportsReachTheMTAAndTheWebServer(t *testing.T) {
	posted := make(chan []byte, 10)
	r := newReceiver(t, "reports.good.test", func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		posted <- body
	})
	dns := r.lab.DNS
	const rua = "v=TLSRPTv1; rua=mailto:tls@good.test"
	dns.SetTXT("_smtp._tls.good.test", 60, "v=TLSRPTv1; a="+strings.Repeat("x", 300)+"; rua=mailto:tls@good.test,https://reports.good.test/")
	dns.SetTXT("_smtp._tls.two.test", 60, rua, rua)
	r.lab.Set("_smtp._tls.alias.test. 60 IN CNAME _smtp._tls.good.test.",
		"_smtp._tls.loop.test. 60 IN CNAME a.loop.test.", "a.loop.test. 60 IN CNAME _smtp._tls.loop.test.")

	day := tlsrpt.DayOf(time.Now().AddDate(0, 0, -2))
	clock := day.Begin().Add(12 * time.Hour)
	st, err := store.Open(filepath.Join(t.TempDir(), "reports.db"), store.Options{Now: func() time.Time { return clock }})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var batch store.Batch
	batch.Reset(day)
	for _, domain := range []string{"good.test", "two.test", "alias.test", "loop.test", "none.test"} {
		batch.Add(&tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: domain}})
	}
	if err := st.Write(&batch); err != nil {
		t.Fatal(err)
	}
	clock = day.End().Add(11 * time.Minute)
	for range 2 { // the first merges the log, the second closes the day
		if err := st.Upkeep(); err != nil {
			t.Fatal(err)
		}
	}
	own := func(domain string) tlsrpt.Delivery {
		v, err := st.Delivery(day, domain)
		if err != nil || len(v.To) == 0 {
			t.Fatalf("%s: %+v, %v", domain, v, err)
		}
		return v
	}
	asker, err := resolver.New(resolver.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort(dns.Addr)}})
	if err != nil {
		t.Fatal(err)
	}
	reporter, err := report.New(report.Config{Organization: "Test", Contact: "tls@reporter.test"})
	if err != nil {
		t.Fatal(err)
	}
	mta := r.lab.MailHost("mail.reporter.test", "")
	address, _ := r.lab.Real(mta.Addr.String() + ":25")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		deliver.New(deliver.Config{
			Store: st, Resolver: asker, Reporter: reporter, MaxPerDestination: 1000, Log: slog.New(slog.DiscardHandler),
			Mail: deliver.SMTP(address, "mail.reporter.test"), Post: r.poster(t, true, true),
		}).Run(ctx)
	}()
	if err := r.lab.Await(ctx, func() bool { return len(mta.Messages()) == 2 && len(posted) == 2 }); err != nil {
		t.Fatalf("%v: %d mails, %d posts", err, len(mta.Messages()), len(posted))
	}
	cancel()
	<-done
	mails := mta.Messages()
	for _, domain := range []string{"good.test", "alias.test"} {
		id := own(domain).ReportID
		subject := fmt.Sprintf("Subject: Report Domain: %s\r\n Submitter: reporter.test\r\n Report-ID: <%s>\r\n", domain, id)
		if !bytes.Contains(mails[0].Data, []byte(subject)) && !bytes.Contains(mails[1].Data, []byte(subject)) {
			t.Errorf("no mail has %q", subject)
		}
	}
	for domain, kind := range map[string]tlsrpt.StateKind{"two.test": tlsrpt.Suppressed, "none.test": tlsrpt.Suppressed, "loop.test": tlsrpt.Planned} {
		if row := own(domain); row.To[0].Kind != kind {
			t.Errorf("%s is %+v; want %s", domain, row, kind)
		}
	}
	if a, b := <-posted, <-posted; bytes.Equal(a, b) {
		t.Errorf("the same was posted for both domains")
	}
	if bytes.Contains(mails[0].Data, []byte("\r\nDKIM-Signature:")) {
		t.Errorf("signed without a key")
	}
}
