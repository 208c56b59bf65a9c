package enforce

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// Postfix's log texts for deliveries that DANE stops.
const (
	noMatch    = "no matching DANE TLSA records"
	tlsaFailed = "TLSA lookup error"
	mxFailed   = "type=MX: Host not found, try again"
	addrFailed = "type=A: Host not found, try again"
	nullMX     = "does not accept mail (nullMX)"
)

// Beginnings of the map's replies.
const (
	replyNothing = "NOTFOUND "
	replyDANE    = "OK dane-only"
	replySecure  = "OK secure match="
	replyWait    = "TEMP "
)

// alone is a domain without a policy: Postfix decides alone.
var alone = testlab.With{NoPolicy: true}

// onlyDANE is a domain with a policy whose host has a self-signed certificate,
// so that only DANE can verify it.
var onlyDANE = testlab.With{MailCert: testlab.CertSelfSigned}

// daneRows are the rows for Postfix with DANE. Domains in signed.example and
// attacker.example are signed.
var daneRows = []row{{
	name:    "a self-signed certificate that TLSA records match gets the mail",
	domain:  "match.signed.example",
	with:    onlyDANE,
	records: matchingTLSA,
	reply:   replyDANE,
	fate:    toTheFirst,
}, {
	name:    "TLSA records may name an authority that nobody else trusts",
	domain:  "authority.signed.example",
	with:    testlab.With{MailCert: testlab.CertOtherCA},
	records: authorityTLSA,
	reply:   replyDANE,
	fate:    toTheFirst,
}, {
	name:    "a valid and listed host gets nothing if TLSA records do not match its certificate",
	domain:  "mismatch.signed.example",
	records: otherTLSA,
	reply:   replyDANE,
	fate:    toNobody(noMatch),
}, {
	name:    "Postfix alone: TLSA records match",
	domain:  "alone.signed.example",
	with:    testlab.With{NoPolicy: true, MailCert: testlab.CertSelfSigned},
	records: matchingTLSA,
	reply:   replyNothing,
	fate:    toTheFirst,
}, {
	name:    "Postfix alone: TLSA records do not match",
	domain:  "alone-mismatch.signed.example",
	with:    alone,
	records: otherTLSA,
	reply:   replyNothing,
	fate:    toNobody(noMatch),
}, {
	name:    "a testing policy leaves DANE to Postfix: TLSA records match",
	domain:  "testing.signed.example",
	with:    testlab.With{Mode: "testing", MailCert: testlab.CertSelfSigned},
	records: matchingTLSA,
	reply:   replyNothing,
	fate:    toTheFirst,
}, {
	name:    "a testing policy leaves DANE to Postfix: TLSA records do not match",
	domain:  "testing-mismatch.signed.example",
	with:    testlab.With{Mode: "testing"},
	records: otherTLSA,
	reply:   replyNothing,
	fate:    toNobody(noMatch),
}, {
	// The purpose of MTA-STS. The next row is Postfix without it.
	name:    "an unsigned MX record forged to point at a host with fine TLSA records gets nothing",
	domain:  "forged-mx.test",
	hosts:   []string{"mx1.attacker.example"},
	with:    testlab.With{MX: []string{"mx1.forged-mx.test"}},
	bend:    presentSelfSigned,
	records: matchingTLSA,
	reply:   replySecure,
	fate:    toNobodyForged,
}, {
	name:    "Postfix alone: an unsigned MX record forged to point at a host with fine TLSA records gets the mail",
	domain:  "forged-alone.test",
	hosts:   []string{"mx2.attacker.example"},
	with:    alone,
	bend:    presentSelfSigned,
	records: matchingTLSA,
	reply:   replyNothing,
	fate:    toTheFirstTrusted,
}, {
	name:   "of hosts with and without TLSA records, those without get nothing",
	domain: "some.signed.example",
	hosts:  []string{"mx1.some.signed.example", "mx2.some.signed.example"},
	records: func(t *testing.T, d *testlab.Domain) []string {
		return []string{matching(t, d.Mail[1], at25(d.Mail[1].Name))}
	},
	reply: replyDANE,
	fate:  func(_ *world, d *testlab.Domain) fate { return verified(d.Mail[1]) },
}, {
	// Postfix takes one reply for the whole next-hop.
	name:    "when the hosts with TLSA records fail, those without get nothing",
	domain:  "some-fail.signed.example",
	hosts:   []string{"mx1.some-fail.signed.example", "mx2.some-fail.signed.example"},
	records: func(_ *testing.T, d *testlab.Domain) []string { return []string{other(at25(d.Mail[0].Name))} },
	reply:   replyDANE,
	fate:    toNobody(noMatch),
}, {
	name:    "Postfix alone: when the hosts with TLSA records fail, those without get the mail",
	domain:  "some-alone.signed.example",
	hosts:   []string{"mx1.some-alone.signed.example", "mx2.some-alone.signed.example"},
	with:    alone,
	records: func(_ *testing.T, d *testlab.Domain) []string { return []string{other(at25(d.Mail[0].Name))} },
	reply:   replyNothing,
	fate: func(_ *world, d *testlab.Domain) fate {
		return fate{status: "sent", host: d.Mail[1], tls: "Trusted"}
	},
}, {
	name:    "a host that the policy does not list gets nothing, although TLSA records match",
	domain:  "unlisted.signed.example",
	with:    testlab.With{MX: []string{"mx1.elsewhere.test"}, MailCert: testlab.CertSelfSigned},
	records: matchingTLSA,
	reply:   replySecure,
	fate:    toNobodyForged,
}, {
	name:    "a TLSA lookup that fails stops the mail",
	domain:  "tlsa-fails.signed.example",
	records: matchingTLSA,
	broken:  []string{"_25._tcp.mx1.tlsa-fails.signed.example TLSA"},
	reply:   replyDANE,
	fate:    toNobody(tlsaFailed),
}, {
	name:    "Postfix alone: a TLSA lookup that fails stops the mail",
	domain:  "tlsa-alone.signed.example",
	with:    alone,
	records: matchingTLSA,
	broken:  []string{"_25._tcp.mx1.tlsa-alone.signed.example TLSA"},
	reply:   replyNothing,
	fate:    toNobody(tlsaFailed),
}, {
	name:   "a signed MX record that was forged stops the mail",
	domain: "mx-bogus.signed.example",
	broken: []string{"mx-bogus.signed.example MX"},
	reply:  replyWait,
	fate:   toNobody(mxFailed),
}, {
	name:   "an MX lookup that fails stops the mail",
	domain: "mx-fails.test",
	broken: []string{"mx-fails.test MX"},
	reply:  replyWait,
	fate:   toNobody(mxFailed),
}, {
	name:   "when the address lookup of one host fails, the other one gets the mail by its TLSA records",
	domain: "address-fails.signed.example",
	hosts:  []string{"mx1.address-fails.signed.example", "mx2.address-fails.signed.example"},
	records: func(t *testing.T, d *testlab.Domain) []string {
		return []string{matching(t, d.Mail[1], at25(d.Mail[1].Name))}
	},
	broken: []string{"mx1.address-fails.signed.example A"},
	reply:  replyDANE,
	fate:   func(_ *world, d *testlab.Domain) fate { return verified(d.Mail[1]) },
}, {
	name:   "when the address lookup of one host fails, the other one gets the mail without TLSA records, too",
	domain: "address-fails-2.signed.example",
	hosts:  []string{"mx1.address-fails-2.signed.example", "mx2.address-fails-2.signed.example"},
	broken: []string{"mx1.address-fails-2.signed.example A"},
	reply:  replySecure,
	fate:   func(_ *world, d *testlab.Domain) fate { return verified(d.Mail[1]) },
}, {
	name:    "when the address lookups of one host fail, an unsigned host before it gets the mail",
	domain:  "hoster-1.signed.example",
	hosts:   []string{"ok.hoster-1.test", "bad.hoster-1.test"},
	broken:  []string{"bad.hoster-1.test A", "bad.hoster-1.test AAAA"},
	reply:   replySecure + "ok.hoster-1.test servername=hostname",
	byHosts: secureByHosts("hoster-1.signed.example", "ok.hoster-1.test"),
	fate:    toTheFirst,
}, {
	name:    "when the address lookups of one host fail, an unsigned host after it gets the mail",
	domain:  "hoster-2.signed.example",
	hosts:   []string{"bad.hoster-2.test", "ok.hoster-2.test"},
	broken:  []string{"bad.hoster-2.test A", "bad.hoster-2.test AAAA"},
	reply:   replySecure + "ok.hoster-2.test servername=hostname",
	byHosts: secureByHosts("hoster-2.signed.example", "ok.hoster-2.test"),
	fate:    func(_ *world, d *testlab.Domain) fate { return verified(d.Mail[1]) },
}, {
	name:   "a host that the policy does not list stops no mail when its address lookups fail",
	domain: "hoster-3.signed.example",
	hosts:  []string{"ok.hoster-3.test", "bad.hoster-3.test"},
	with:   testlab.With{MX: []string{"ok.hoster-3.test"}},
	broken: []string{"bad.hoster-3.test A", "bad.hoster-3.test AAAA"},
	reply:  replySecure + "ok.hoster-3.test servername=hostname",
	fate:   toTheFirst,
}, {
	name:    "a host that the policy does not list stops no mail when its TLSA lookup fails",
	domain:  "tlsa-unlisted.signed.example",
	hosts:   []string{"mx1.tlsa-unlisted.signed.example", "mx2.tlsa-unlisted.signed.example"},
	with:    testlab.With{MX: []string{"mx2.tlsa-unlisted.signed.example"}},
	records: matchingTLSA,
	broken:  []string{"_25._tcp.mx1.tlsa-unlisted.signed.example TLSA"},
	reply:   replySecure + "mx2.tlsa-unlisted.signed.example servername=hostname",
	fate:    func(_ *world, d *testlab.Domain) fate { return verified(d.Mail[1]) },
}, {
	// mx_host_pattern keeps Postfix from the host that may have DANE.
	name:    "when the TLSA lookup of one host fails, one without TLSA records gets the mail where Postfix can tell the hosts apart",
	domain:  "tlsa-some.signed.example",
	hosts:   []string{"mx1.tlsa-some.signed.example", "mx2.tlsa-some.signed.example"},
	with:    testlab.With{MX: []string{"*.tlsa-some.signed.example"}},
	records: matchingTLSA,
	broken:  []string{"_25._tcp.mx1.tlsa-some.signed.example TLSA"},
	reply:   replyDANE,
	byHosts: secureByHosts("tlsa-some.signed.example", "mx2.tlsa-some.signed.example") + "{ policy_string = version: STSv1 } { policy_string = mode: enforce } { policy_string = mx: *.tlsa-some.signed.example } ",
	fate: func(w *world, d *testlab.Domain) fate {
		if w.strict {
			return verified(d.Mail[1])
		}
		return deferred(tlsaFailed)
	},
}, {
	name:   "when lookups fail at every host, Postfix defers by itself",
	domain: "all-fail.signed.example",
	hosts:  []string{"mx1.all-fail.signed.example", "mx2.all-fail.signed.example"},
	broken: []string{"mx1.all-fail.signed.example A", "mx2.all-fail.signed.example A"},
	reply:  replyDANE,
	fate:   toNobody(addrFailed),
}, {
	name:   "an alias into an unsigned zone has its TLSA records at its own name: they match",
	domain: "alias.signed.example",
	hosts:  []string{"mx.outside-1.test"},
	with:   testlab.With{MX: []string{"leaves.alias.signed.example"}},
	bend:   presentSelfSigned,
	records: func(t *testing.T, d *testlab.Domain) []string {
		return append(throughAlias(d), matching(t, d.Mail[0], at25("leaves."+d.Name)))
	},
	reply: replyDANE,
	fate: func(_ *world, d *testlab.Domain) fate {
		f := verified(d.Mail[0])
		f.sni = "leaves." + d.Name
		return f
	},
}, {
	name:   "an alias into an unsigned zone has its TLSA records at its own name: they do not match",
	domain: "alias-mismatch.signed.example",
	hosts:  []string{"mx.outside-2.test"},
	with:   testlab.With{MX: []string{"leaves.alias-mismatch.signed.example"}},
	bend: func(d *testlab.Domain) error {
		return d.Mail[0].PresentFor(testlab.CertGood, "leaves."+d.Name)
	},
	records: func(t *testing.T, d *testlab.Domain) []string {
		return append(throughAlias(d), other(at25("leaves."+d.Name)))
	},
	reply: replyDANE,
	fate:  toNobody(noMatch),
}, {
	// Nobody asks for TLSA records of a host in an unsigned zone.
	name:   "a name server in an unsigned zone that fails on TLSA stops no mail",
	domain: "outside.signed.example",
	hosts:  []string{"mx.outside-3.test"},
	broken: []string{"_25._tcp.mx.outside-3.test TLSA"},
	reply:  replySecure,
	fate:   toTheFirst,
}, {
	name:   "a name server in an unsigned zone that fails on TLSA takes no protection away",
	domain: "outside-bad.signed.example",
	hosts:  []string{"mx.outside-5.test"},
	bend:   presentSelfSigned,
	broken: []string{"_25._tcp.mx.outside-5.test TLSA"},
	reply:  replySecure,
	fate:   toNobody(selfSigned),
}, {
	name:   "a name server of an unsigned domain that fails on TLSA stops no mail",
	domain: "old-server.test",
	broken: []string{"_25._tcp.mx1.old-server.test TLSA"},
	reply:  replySecure,
	fate:   toTheFirst,
}, {
	name:   "Postfix alone: a name server in an unsigned zone that fails on TLSA stops no mail",
	domain: "outside-alone.signed.example",
	hosts:  []string{"mx.outside-4.test"},
	with:   alone,
	broken: []string{"_25._tcp.mx.outside-4.test TLSA"},
	reply:  replyNothing,
	fate:   toTheFirstTrusted,
}, {
	name:   "a signed domain without TLSA records gets its mail by its policy",
	domain: "absent.signed.example",
	reply:  replySecure,
	fate:   toTheFirst,
}, {
	name:   "a signed domain without TLSA records gets nothing against its policy",
	domain: "absent-bad.signed.example",
	with:   onlyDANE,
	reply:  replySecure,
	fate:   toNobody(selfSigned),
}, {
	name:   "a domain whose TLSA records are unusable for SMTP follows its policy",
	domain: "unusable.signed.example",
	records: func(t *testing.T, d *testlab.Domain) []string {
		return []string{at25(d.Mail[0].Name) + ". 300 IN TLSA 1 1 1 " + otherDigest}
	},
	reply: replySecure,
	fate:  toTheFirst,
}, {
	name:   "a domain whose TLSA records are unusable for SMTP gets nothing against its policy",
	domain: "unusable-bad.signed.example",
	with:   onlyDANE,
	records: func(t *testing.T, d *testlab.Domain) []string {
		return []string{at25(d.Mail[0].Name) + ". 300 IN TLSA 1 1 1 " + otherDigest}
	},
	reply: replySecure,
	fate:  toNobody(selfSigned),
}, {
	name:    "a relay in brackets has its TLSA records at its port",
	domain:  "relay-587.signed.example",
	hosts:   []string{"relay-587.signed.example"},
	bend:    presentSelfSigned,
	nextHop: "[relay-587.signed.example]:587",
	records: func(t *testing.T, d *testlab.Domain) []string {
		return []string{matching(t, d.Mail[0], "_587._tcp."+d.Name)}
	},
	reply: replyDANE,
	fate:  toTheFirst,
}, {
	name:    "a relay in brackets gets nothing when the TLSA records at its port do not match",
	domain:  "relay-587-mismatch.signed.example",
	hosts:   []string{"relay-587-mismatch.signed.example"},
	nextHop: "[relay-587-mismatch.signed.example]:587",
	records: func(t *testing.T, d *testlab.Domain) []string {
		return []string{other("_587._tcp." + d.Name), matching(t, d.Mail[0], at25(d.Name))}
	},
	reply: replyDANE,
	fate:  toNobody(noMatch),
}, {
	name:    "TLSA records at port 25 do not apply to a relay in brackets at port 587",
	domain:  "relay-25.signed.example",
	hosts:   []string{"relay-25.signed.example"},
	nextHop: "[relay-25.signed.example]:587",
	// _tcp.relay-25 has its own record because unbound 1.17 cannot prove from
	// auth-zones that a name below an empty non-terminal does not exist.
	records: func(t *testing.T, d *testlab.Domain) []string {
		return []string{other(at25(d.Name)), "_tcp." + d.Name + ". 300 IN TXT not-empty"}
	},
	reply: replySecure,
	fate:  toTheFirst,
}, {
	name:    "mail to a domain with a null MX comes back",
	domain:  "null.signed.example",
	records: func(_ *testing.T, d *testlab.Domain) []string { return []string{d.Name + ". 300 IN MX 0 ."} },
	reply:   replySecure,
	fate:    func(*world, *testlab.Domain) fate { return bounced(nullMX) },
}}

// secureByHosts is the beginning of a reply that names one host on a map with the
// policy's attributes.
func secureByHosts(domain, host string) string {
	return fmt.Sprintf("%s%s servername=hostname policy_type=sts policy_domain=%s mx_host_pattern=%[2]s ", replySecure, host, domain)
}

// toNobodyForged is the fate of mail to a host that the policy does not list, with
// a certificate that only DANE vouches for.
func toNobodyForged(w *world, _ *testlab.Domain) fate {
	if w.strict {
		return deferred(notListed)
	}
	return deferred(selfSigned)
}

func presentSelfSigned(d *testlab.Domain) error { return d.Mail[0].Present(testlab.CertSelfSigned) }

// toTheFirstTrusted expects delivery over opportunistic TLS; the certificate
// happens to be good.
func toTheFirstTrusted(_ *world, d *testlab.Domain) fate {
	return fate{status: "sent", host: d.Mail[0], tls: "Trusted"}
}

// throughAlias makes the domain's MX leaves.DOMAIN, an alias of its host.
func throughAlias(d *testlab.Domain) []string {
	return []string{
		fmt.Sprintf("%s. 300 IN MX 10 leaves.%[1]s.", d.Name),
		fmt.Sprintf("leaves.%s. 300 IN CNAME %s.", d.Name, d.Mail[0].Name),
	}
}

// at25 returns the owner of a host's TLSA records at port 25.
func at25(host string) string { return "_25._tcp." + host }

func matchingTLSA(t *testing.T, d *testlab.Domain) []string {
	return []string{matching(t, d.Mail[0], at25(d.Mail[0].Name))}
}

func otherTLSA(_ *testing.T, d *testlab.Domain) []string {
	return []string{other(at25(d.Mail[0].Name))}
}

func authorityTLSA(t *testing.T, d *testlab.Domain) []string {
	record, err := d.Mail[0].TLSA(2, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	return []string{record}
}

// matching returns a TLSA record at owner for the host's certificate.
func matching(t *testing.T, m *testlab.MailHost, owner string) string {
	t.Helper()
	record, err := m.TLSA(3, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(record, at25(m.Name), owner, 1)
}

// otherDigest is not the digest of any certificate.
const otherDigest = "0202020202020202020202020202020202020202020202020202020202020202"

// other returns a TLSA record at owner that matches no certificate.
func other(owner string) string { return owner + ". 300 IN TLSA 3 1 1 " + otherDigest }
