package enforce

import (
	"fmt"
	"slices"
	"testing"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// single is a complete configuration in one file, modelled on Exim's default,
// that includes the shipped files. The router for address literals comes after
// ours; the %s are for macros and routers before ours.
const single = `.include /usr/share/sts-tlsmap/exim/macros
%s
primary_hostname = relay.test
domainlist local_domains = relay.test : local.test
domainlist relay_to_domains = backup.test
log_selector = +tls_certificate_verified
keep_environment =
queue_run_in_order = true
acl_smtp_rcpt = acl_test
begin acl
acl_test:
  require verify = sender
  accept
begin routers
.include /usr/share/sts-tlsmap/exim/routers
%s
dnslookup:
  driver = dnslookup
  domains = ! +local_domains
  transport = remote_smtp
  ignore_target_hosts = 0.0.0.0 : 127.0.0.0/8
literals:
  driver = ipliteral
  domains = ! +local_domains
  transport = remote_smtp
begin transports
.include /usr/share/sts-tlsmap/exim/transport
remote_smtp:
  driver = smtp
to_smart_host:
  driver = smtp
  port = 587
  hosts_avoid_tls = *
begin retry
.include /usr/share/sts-tlsmap/exim/retry
* * F,4d,15m
`

// singleRows are the rows to play with a single file: one of each kind.
var singleRows = []string{
	"honest.test", "clear.test", "wrong-name.test", "unlisted.test", "two.test", "testing.test", "plain.test", "gone.test", "opportunistic.test",
	"match.signed.example", "mismatch.signed.example", "forged-mx.test",
}

// singleFile plays rows with a single configuration file.
func singleFile(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{Single: fmt.Sprintf(single, "", "")})
	v.playSingleRows(t)
	toLiteral(t, v)
}

// playSingleRows plays singleRows once more.
func (w *world) playSingleRows(t *testing.T) {
	t.Helper()
	for _, r := range slices.Concat(rows, eximRows, daneRows) {
		if slices.Contains(singleRows, r.domain) {
			d := w.played[r.domain]
			if d == nil {
				d = w.domain(t, r)
			}
			m := w.exim.Send(t, r.domain)
			check(t, m, m.Outcome(t), w.fateOf(r, d), d.Mail...)
		}
	}
}

// withExim returns the same world with another Exim.
func (w *world) withExim(t *testing.T, o stage.EximOptions) *world {
	t.Helper()
	v := *w
	if o.Shipped == nil {
		o.Shipped = shipped
	}
	v.startExim(t, w.root, o)
	return &v
}

// relays are smart hosts and a domain beyond them. The domain's own policy
// lists other hosts and does not apply (RFC 8461, 3.4).
type relays struct {
	sound, bad, plain, beyond *testlab.Domain
	match, mismatch, at25     *testlab.Domain // in a signed zone
}

// hosts returns the mail hosts of all of them.
func (r relays) hosts() (all []*testlab.MailHost) {
	for _, d := range []*testlab.Domain{r.sound, r.bad, r.plain, r.beyond, r.match, r.mismatch, r.at25} {
		all = append(all, d.Mail...)
	}
	return all
}

func (w *world) relays(t *testing.T) relays {
	t.Helper()
	relay := func(name string, with testlab.With) *testlab.Domain {
		host := w.lab.MailHost(name, "")
		alsoAt587(t, host)
		with.Mail = []*testlab.MailHost{host}
		d := w.lab.Domain(name, with)
		w.lab.DNS.Remove(name, dns.TypeMX) // a smart host needs no MX records
		return d
	}
	r := relays{
		sound:  relay("smart.test", testlab.With{}),
		bad:    relay("smart-bad.test", testlab.With{}),
		plain:  relay("smart-plain.test", testlab.With{NoPolicy: true}),
		beyond: w.lab.Domain("beyond.test", testlab.With{}),

		match:    w.signed.domain(t, "relay-587.signed.example"),
		mismatch: w.signed.domain(t, "relay-587-mismatch.signed.example"),
		at25:     w.signed.domain(t, "relay-25.signed.example"),
	}
	for _, d := range []*testlab.Domain{r.bad, r.plain} {
		if err := d.Mail[0].Present(testlab.CertSelfSigned); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// smartHosts sends everything to one host, with Debian's configuration and with
// a route_list in a single file.
func smartHosts(t *testing.T, w *world) {
	r := w.relays(t)
	// Unprotected mail goes in clear: Debian's transport falls back when it
	// cannot verify, and the single file's does not try TLS.
	for _, c := range []struct {
		name  string
		relay *testlab.Domain
		key   bool // the policy domain is set
		want  fate
	}{
		{"sound", r.sound, true, verified(r.sound.Mail[0])},
		{"bad", r.bad, true, deferred(badCert)},
		{"plain", r.plain, true, inClear(r.plain.Mail[0])},
		{"not set", r.bad, false, inClear(r.bad.Mail[0])},
		// DANE applies to the port: records at 25 do not apply to 587.
		{"TLSA at 587 that matches", r.match, true, verified(r.match.Mail[0])},
		{"TLSA at 587 that does not match", r.mismatch, true, deferred(badTLSA)},
		{"TLSA at 25 only, that does not match", r.at25, true, verified(r.at25.Mail[0])},
	} {
		settings := ""
		if c.key {
			settings = "STS_TLSMAP_DOMAINS == ! +local_domains\nSTS_TLSMAP_KEY == [" + c.relay.Name + "]\n"
		}
		debian := stage.EximOptions{
			Debian: map[string]string{"dc_eximconfig_configtype": "smarthost", "dc_smarthost": c.relay.Name + "::587"},
			Files:  map[string]string{ownFile: "  port = 587\n", "/etc/exim4/conf.d/main/11_local": settings},
		}
		t.Run("Debian, "+c.name, func(t *testing.T) { w.relayed(t, debian, c.want, r) })
		if !c.key {
			continue
		}
		router := "smart_host:\n  driver = manualroute\n  domains = ! +local_domains\n  transport = to_smart_host\n  route_list = * " + c.relay.Name + "\n"
		file := stage.EximOptions{
			Single: fmt.Sprintf(single, settings, router),
			Files:  map[string]string{ownFile: "  port = 587\n"},
		}
		t.Run("single file, "+c.name, func(t *testing.T) { w.relayed(t, file, c.want, r) })
	}
}

// relayed sends a message to two domains through a smart host.
func (w *world) relayed(t *testing.T, o stage.EximOptions, want fate, r relays) {
	v := w.withExim(t, o)
	for _, m := range v.exim.Submit(t, []string{r.beyond.Name, "nowhere.test"}, foreground) {
		check(t, m, m.Outcome(t), want, r.hosts()...)
	}
}
