package tlsmap

import (
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestRFC8461_4_2_TheReplyDemandsACertificateThatVerifiesForAListedHost(t *testing.T) {
	// The certificate is Postfix's to check. At level "secure" it demands a
	// trusted chain, within its dates, and a name out of match (postconf(5),
	// smtp_tls_policy_maps): no other level does, and no name but the listed
	// ones may be in match.
	for _, m := range mta.Builtin() {
		if m.DANE {
			continue // where DANE protects the domain, the certificate is checked by TLSA
		}
		reply := render(t, m, "example.com", policyOf("mx1.example.com", "*.example.net", "hostname"))
		value, ok := strings.CutPrefix(reply, "OK ")
		if !ok {
			t.Fatalf("map %s: %q", m.Name, reply)
		}
		p, err := parsePostfixPolicy(value)
		if err != nil {
			t.Fatal(err)
		}
		if p.level != "secure" {
			t.Errorf("map %s: level %q", m.Name, p.level)
		}
		if got := p.values("match"); !slices.Equal(got, []string{"mx1.example.com:.example.net"}) {
			t.Errorf("map %s: match=%q", m.Name, got)
		}
	}
}
