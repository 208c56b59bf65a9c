//go:build e2e

package tlsrpt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/unbound"
)

const (
	organization = "Relay Ltd."
	contact      = "tls-reports@relay.test"

	socket  = "/var/spool/postfix/sts-tlsmap-tlsrpt/tlsrpt.sock"        // on Postfix's machine
	roots   = "/etc/ssl/certs/ca-certificates.crt"                      // likewise; the recipe finds it
	reports = "reports"                                                 // folder of the store, see stage.Path
	lost    = "Could not report TLS handshake result to tlsrpt library" // in Postfix's log

	// nameServer is the lab's DNS if unbound is the resolver.
	nameServer = "127.0.0.54"

	// patience limits each wait: whatever is awaited comes in seconds.
	patience = 3 * time.Minute

	// queueLength is net.unix.max_dgram_qlen as systemd sets it at boot.
	queueLength = 512
)

// A world is a small internet, a Postfix in it, and the daemon, which collects its TLS
// sessions.
type world struct {
	lab      *testlab.T
	net      string // the lab's
	mta      stage.MTA
	postfix  *stage.Postfix // nil: the MTA is Exim
	daemon   *stage.Daemon
	dane     bool
	sessions int        // that Postfix must have told of
	day      tlsrpt.Day // when the test began
}

// newWorld makes the domains of the rows and starts all. Postfix has nothing but Debian's
// configuration and the lines of the recipe.
func newWorld(t *testing.T, root string, dane bool, rows []row) (*world, []*testlab.Domain) {
	t.Helper()
	setQueueLength(t, queueLength)
	w := &world{net: "127.1.0.0/16", dane: dane, day: tlsrpt.DayOf(time.Now())}
	domains, settings := w.enterLab(t, rows)
	if err := os.Mkdir(stage.Path(reports), 0o700); err != nil {
		t.Fatal(err)
	}
	ca := stage.WriteCA(t, w.lab)
	t.Setenv("SSL_CERT_FILE", ca) // the authorities of probes are the system's
	w.daemon = stage.NewDaemon(t, testlab.DaemonConfig{
		CA: ca,
		Tables: fmt.Sprintf("[tlsrpt]\norganization = %q\ncontact = %q\nsender = %q\npath = %q\npostfix_socket = %q\n",
			organization, contact, contact, stage.Path(reports+"/reports.db"), "unix:"+socket),
	})
	w.postfix = stage.StartPostfix(t, root, map[string]string{roots: string(w.lab.CA.PEM())}, settings...)
	w.mta = w.postfix
	w.daemon.In(t, w.postfix.Root())
	w.start(t)
	recipe, code := w.daemon.Run(t, "-recipe", "postfix")
	t.Logf("%s, the recipe:\n%s", w.postfix.Name(), recipe)
	if code != 0 || !strings.Contains(recipe, "\nsmtp_tlsrpt_enable = yes\n") {
		t.Fatalf("-recipe exits with %d", code)
	}
	mapName := map[bool]string{false: ":postfix-tlsrpt\n", true: ":postfix-dane-tlsrpt\n"}[dane]
	if !strings.Contains(recipe, mapName) {
		t.Fatalf("the recipe does not use map %s", mapName)
	}
	w.postfix.Configure(t, recipe)
	return w, domains
}

// enterLab starts the lab, and a validating resolver for DANE. It returns the domains of
// the rows, and settings for Postfix.
func (w *world) enterLab(t *testing.T, rows []row) (domains []*testlab.Domain, settings []string) {
	t.Helper()
	address := stage.Resolver
	if w.dane {
		address = nameServer
	}
	w.lab = testlab.NewWith(t, testlab.Options{
		DNS: address + ":53", Net: netip.MustParsePrefix(w.net), PolicyPort: 443, MailPort: 25,
	})
	for _, r := range rows {
		domains = append(domains, w.domain(t, r))
	}
	settings = []string{
		"minimal_backoff_time = 1h", "queue_run_delay = 1h", // one attempt for each message
		"transport_maps = inline:{ {behind.test = smtp:smarthost.test} }",
	}
	if !w.dane {
		return domains, settings
	}
	o := unbound.Options{
		Dir: t.TempDir(), Addr: netip.MustParseAddrPort(stage.Resolver + ":53"), Forward: netip.MustParseAddrPort(nameServer + ":53"),
		Zones: []*unbound.Zone{}, // the root first: the daemon asks for it when it probes the resolver
	}
	o.Zones = append(o.Zones, unbound.WriteZone(t, o.Dir, ".", ""))
	for _, name := range []string{"signed.example", "com", "org"} {
		var records strings.Builder
		for _, rr := range w.lab.DNS.Below(name) {
			fmt.Fprintln(&records, rr)
		}
		z := unbound.WriteZone(t, o.Dir, name, records.String())
		z.Sign(t)
		for _, r := range rows {
			if broken, rtype, ok := strings.Cut(r.broken, " "); ok && dns.IsSubDomain(dns.Fqdn(name), dns.Fqdn(broken)) {
				z.Unsign(t, broken, rtype)
			}
		}
		o.Zones = append(o.Zones, z)
	}
	unbound.Start(t, o)
	return domains, append(settings, "smtp_tls_security_level = dane", "smtp_dns_support_level = dnssec")
}

// start starts the daemon and waits for its socket, which does not keep it from answering.
func (w *world) start(t *testing.T) {
	t.Helper()
	w.daemon.Start(t)
	await(t, "the daemon listens for TLS sessions", func() bool {
		c, err := net.Dial("unixgram", w.postfix.Root().Path(socket))
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

// set replaces settings of Postfix, "name = value", and restarts it.
func (w *world) set(t *testing.T, settings ...string) {
	t.Helper()
	for _, s := range settings {
		name, _, _ := strings.Cut(s, " =")
		w.postfix.Unset(t, name)
	}
	w.postfix.Configure(t, strings.Join(settings, "\n")+"\n")
}

// domain sets up the domain of a row. It asks for TLS reports.
func (w *world) domain(t *testing.T, r row) *testlab.Domain {
	t.Helper()
	for _, name := range r.hosts {
		r.with.Mail = append(r.with.Mail, w.lab.MailHost(name, ""))
	}
	d := w.lab.Domain(r.domain, r.with)
	if r.bend != nil {
		if err := r.bend(d); err != nil {
			t.Fatal(err)
		}
	}
	if r.tlsa != nil {
		w.lab.Set(r.tlsa(d)...)
	}
	if !r.noReports {
		w.lab.DNS.SetTXT("_smtp._tls."+d.Name, 300, "v=TLSRPTv1; rua=mailto:reports@"+d.Name)
	}
	return d
}

// report returns the policies of today's report of a domain, by the product's own command;
// nil if there is no report.
func (w *world) report(t *testing.T, domain string) []report.Result {
	t.Helper()
	out, complaint, code, err := w.daemon.Daemon.Run(t.Context(), "-report", domain, "today")
	if err != nil {
		t.Fatal(err)
	}
	if code != 0 {
		if !strings.Contains(complaint, "no TLS session of that day is known") {
			t.Fatalf("-report %s today: exit code %d\n%s", domain, code, complaint)
		}
		return nil
	}
	var r report.Report
	strict := json.NewDecoder(strings.NewReader(out))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&r); err != nil {
		t.Fatalf("-report %s today: %v\n%s", domain, err, out)
	}
	want := report.Report{
		Organization: organization, Contact: contact, ID: r.ID, Policies: r.Policies,
		DateRange: report.DateRange{Start: w.day.Begin(), End: w.day.End().Add(-time.Second)},
	}
	prefix := strings.ReplaceAll(string(w.day), "-", "") + "." + domain + "."
	if asText(r) != asText(want) || !strings.HasPrefix(r.ID, prefix) || !strings.HasSuffix(r.ID, "@relay.test") {
		t.Errorf("the head of the report of %s is\n%s", domain, out)
	}
	return r.Policies
}

// await waits for a condition.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := stage.Await(ctx, cond); err != nil {
		t.Fatalf("not within %s: %s", patience, what)
	}
}

// flush returns when all sessions up to now are in the reports. They arrive in order: it
// is when that of one more message is there.
func (w *world) flush(t *testing.T, name string) {
	t.Helper()
	d := w.domain(t, row{domain: name, with: testlab.With{NoPolicy: true}})
	if o := w.mta.Send(t, name).Outcome(t); o.Status != "sent" {
		t.Fatalf("the message to %s: %s", name, o)
	}
	w.sessions++
	await(t, "the last message is in a report", func() bool { return w.report(t, d.Name) != nil })
}

// checkSessions checks how many sessions Postfix told of since the daemon started, and
// that none was dropped.
func (w *world) checkSessions(t *testing.T) {
	t.Helper()
	if got, dropped := w.metric(t, "tls_sessions_total"), w.metric(t, "tls_sessions_dropped_total"); got != w.sessions || dropped != 0 {
		t.Errorf("Postfix told of %d sessions, want %d; %d were dropped", got, w.sessions, dropped)
	}
}

// metric returns the sum of a metric's values.
func (w *world) metric(t *testing.T, name string) (sum int) {
	t.Helper()
	text, err := w.daemon.Get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	values := regexp.MustCompile(`(?m)^sts_tlsmap_`+name+`(?:\{.*\})? (\d+)$`).FindAllSubmatch(text, -1)
	if values == nil {
		t.Fatalf("the daemon has no metric %s", name)
	}
	for _, v := range values {
		n, _ := strconv.Atoi(string(v[1]))
		sum += n
	}
	return sum
}

// midnight ends a test whose sessions are of two days.
func (w *world) midnight(t *testing.T) {
	t.Helper()
	if tlsrpt.DayOf(time.Now()) != w.day {
		t.Skip("midnight of UTC has passed during the test: its sessions are in the reports of two days")
	}
}

func asText(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return b.String()
}
