package enforce

import (
	"fmt"

	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// eximRows are rows for mistakes in routers and transports.
var eximRows = []row{{
	name:   "a host that refuses STARTTLS gets nothing",
	domain: "refused.test",
	with:   testlab.With{MailFault: testlab.STARTTLSRefused},
	fate:   toNobody(refusedTLS),
}, {
	name:   "a host that hangs up at STARTTLS gets nothing",
	domain: "hang-up.test",
	with:   testlab.With{MailFault: testlab.STARTTLSHangUp},
	fate:   toNobody(brokenTLS),
}, {
	name:   "when the first host has no address, the second one gets the mail",
	domain: "gone.test",
	hosts:  []string{"mx2.gone.test"},
	with:   testlab.With{MX: []string{"mx1.gone.test", "mx2.gone.test"}},
	records: func(_ *testing.T, d *testlab.Domain) []string {
		return []string{"gone.test. 300 IN MX 10 mx1.gone.test.", "gone.test. 300 IN MX 20 mx2.gone.test."}
	},
	fate: toTheFirst,
}, {
	name:   "when no host has an address, mail waits",
	domain: "all-gone.test",
	hosts:  []string{"mx2.all-gone.test"},
	with:   testlab.With{MX: []string{"mx1.all-gone.test"}},
	records: func(_ *testing.T, d *testlab.Domain) []string {
		return []string{"all-gone.test. 300 IN MX 10 mx1.all-gone.test."}
	},
	fate: toNobody(allIgnored),
}, {
	// Exim would freeze it as a mail loop.
	name:   "a listed host at this machine's own loopback address makes mail wait",
	domain: "loopback.test",
	hosts:  []string{"mx1.loopback.test"},
	records: func(_ *testing.T, d *testlab.Domain) []string {
		return []string{"mx1.loopback.test. 300 IN A 127.0.0.1"}
	},
	fate: toNobody(allIgnored),
}, {
	// Exim verifies the listed name but sends the alias's target as server
	// name.
	name:   "a listed host that is an alias gets the mail when its certificate has the listed name",
	domain: "alias.test",
	hosts:  []string{"mx.hosted.test"},
	with:   testlab.With{MX: []string{"mx.alias.test"}},
	bend:   func(d *testlab.Domain) error { return d.Mail[0].PresentFor(testlab.CertGood, "mx.alias.test") },
	records: func(_ *testing.T, d *testlab.Domain) []string {
		return []string{"alias.test. 300 IN MX 10 mx.alias.test.", "mx.alias.test. 300 IN CNAME mx.hosted.test."}
	},
	fate: toTheFirst,
}, {
	name:   "a listed host that is an alias gets nothing when its certificate has the other name",
	domain: "alias-other.test",
	hosts:  []string{"mx.hosted-other.test"},
	with:   testlab.With{MX: []string{"mx.alias-other.test"}},
	records: func(_ *testing.T, d *testlab.Domain) []string {
		return []string{"alias-other.test. 300 IN MX 10 mx.alias-other.test.", "mx.alias-other.test. 300 IN CNAME mx.hosted-other.test."}
	},
	fate: toNobody(badCert),
}, {
	name:   "a host with a bad certificate gets its mail where no policy is enforced",
	domain: "opportunistic.test",
	with:   testlab.With{NoPolicy: true, MailCert: testlab.CertSelfSigned},
	fate: func(_ *world, d *testlab.Domain) fate {
		return fate{status: "sent", host: d.Mail[0], tls: "Untrusted"}
	},
}, {
	// This relay is an MX of the domain and delivers its mail as before.
	name:   "a domain for which the relay is a backup MX gets its mail as before",
	domain: backupDomain,
	with:   testlab.With{MailFault: testlab.NoSTARTTLS},
	records: func(_ *testing.T, d *testlab.Domain) []string {
		return []string{
			fmt.Sprintf("%s. 300 IN MX 10 %s.", d.Name, d.Mail[0].Name),
			fmt.Sprintf("%s. 300 IN MX 20 relay.test.", d.Name),
			"relay.test. 300 IN A 127.0.0.1",
		}
	},
	fate: toTheFirstInClear,
}}

// backupDomain is the domain for which the relay is a backup MX.
const backupDomain = "backup.test"
