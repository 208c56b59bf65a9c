package dane

import (
	"strings"
	"testing"
)

func TestRFC7672_2_2_1_AnInsecureMXRRsetProtectsNothing(t *testing.T) {
	perfect := func(mx reply) *fake {
		return newFake().set("example.com", "MX", mx).set("mx.example.org", "A", secure("192.0.2.1")).
			set(port25+"mx.example.org", "TLSA", secure(usableTLSA...))
	}
	f := perfect(insecure("10 mx.example.org."))
	if got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != UnsignedMX || got.State.protects() {
		t.Errorf("insecure: %v; %s", got.State, got.Why)
	}
	if f.count("mx.example.org", "A") != 0 || f.count(port25+"mx.example.org", "TLSA") != 0 {
		t.Error("the hosts of an insecure MX RRset were asked for")
	}
	f = perfect(secure("10 mx.example.org."))
	if got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
		t.Errorf("secure: %v; %s", got.State, got.Why)
	}
}

func TestRFC7672_2_1_3_TLSAIsLookedForAtBothEndsOfACNAME(t *testing.T) {
	aliases := 0
	for _, h := range hostKinds {
		if !strings.Contains(h.name, "alias") {
			continue
		}
		aliases++
		f := newFake().set("example.com", "MX", secure("10 mx.example.com."))
		h.setUp(f, "mx.example.com")
		if got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != expected(h.want) {
			t.Errorf("%s: %v, want %v; %s", h.name, got.State, expected(h.want), got.Why)
		}
	}
	if aliases < 8 {
		t.Errorf("%d kinds of alias", aliases)
	}
	// The order: first where the CNAME leads to, then at the name itself.
	f := newFake().set("example.com", "MX", secure("10 mx.example.com.")).
		set("mx.example.com", "A", aliasTo(Secure, "end.example", "192.0.2.1")("mx.example.com")).
		set(port25+"end.example", "TLSA", secure(usableTLSA...))
	checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
	if f.count(port25+"end.example", "TLSA") != 1 || f.count(port25+"mx.example.com", "TLSA") != 0 {
		t.Error("records at the final name count alone")
	}
}
