package tlsrpt_test

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

func TestRFC8460_1_1_ThePolicyDomainIsTheRecipientDomainAndUnderDANETheMXHost(t *testing.T) {
	for _, test := range []struct {
		policy tlsrpt.Policy
		want   string
	}{
		{tlsrpt.Policy{Type: tlsrpt.TypeSTS}, "example.com"},
		{tlsrpt.Policy{Type: tlsrpt.TypeNone}, "example.com"},
		{tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "smarthost.example"}, "smarthost.example"},
		{tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: "MX.example.net."}, "mx.example.net"},
	} {
		e := tlsrpt.Event{Domain: "Example.com", Policy: test.policy}
		if !e.Normalize() || e.Domain != "example.com" || e.Policy.Domain != test.want {
			t.Errorf("%+v: got %+v", test.policy, e)
		}
	}
}
