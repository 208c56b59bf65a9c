package stage

import (
	"slices"
	"strings"
	"testing"
)

func TestOutcomesOfEximAreThoseOfTheMessage(t *testing.T) {
	log := strings.Split(`2026-11-23 17:30:54 1xVXsU-00005u-2F <= s@relay.test U=root P=local S=292
2026-11-23 17:30:55 1xVXsV-00005y-1J <= s@relay.test U=root P=local S=291
2026-11-23 17:30:55 1xVXsU-00005u-2F H=mx1.two.test [198.18.0.5]: a TLS session is required, but the server did not offer TLS support
2026-11-23 17:30:56 1xVXsV-00005y-1J => b@other.test R=r T=t H=mx.other.test [198.18.0.9] X=TLS1.3:x:128 CV=no C="250 ok"
2026-11-23 17:30:56 1xVXsU-00005u-2F == a@two.test R=sts_tlsmap T=sts_tlsmap_smtp defer (-38) H=mx1.two.test [198.18.0.5]: a TLS session is required
2026-11-23 17:31:56 1xVXsU-00005u-2F => a@two.test R=sts_tlsmap T=sts_tlsmap_smtp H=mx2.two.test [198.18.0.6] X=TLS1.3:x:128 CV=dane C="250 ok"
2026-11-23 17:31:56 1xVXsU-00005u-2F -> c@two.test R=sts_tlsmap T=sts_tlsmap_smtp H=mx2.two.test [198.18.0.6]* X=TLS1.3:x:128 CV=no C="250 ok"
2026-11-23 17:31:57 1xVXsU-00005u-2F ** d@local.test: Unrouteable address
2026-11-23 17:31:58 1xVXsV-00005z-1J => f@[ipv6:2001:db8::3] R=r T=t H=[2001:db8::3] C="250 ok"`, "\n")

	for recipient, want := range map[string][]Outcome{
		"a@two.test": {
			{QueueID: "1xVXsU-00005u-2F", Status: "deferred", Relay: "mx1.two.test[198.18.0.5]"},
			{QueueID: "1xVXsU-00005u-2F", Status: "sent", Relay: "mx2.two.test[198.18.0.6]", TLS: "Verified"},
		},
		"b@other.test":         {{QueueID: "1xVXsV-00005y-1J", Status: "sent", Relay: "mx.other.test[198.18.0.9]", TLS: "Untrusted"}},
		"c@two.test":           {{QueueID: "1xVXsU-00005u-2F", Status: "sent", Relay: "mx2.two.test[198.18.0.6]", TLS: "Kept"}},
		"d@local.test":         {{QueueID: "1xVXsU-00005u-2F", Status: "bounced", Relay: "none"}},
		"f@[ipv6:2001:db8::3]": {{QueueID: "1xVXsV-00005z-1J", Status: "sent", Relay: "none"}},
		"e@nobody":             nil,
	} {
		got := eximOutcomes(log, recipient)
		for i := range got {
			if i == 0 && recipient == "a@two.test" && !strings.Contains(got[0].Log, "did not offer TLS") {
				t.Errorf("the log of the first attempt is %q", got[0].Log)
			}
			got[i].Log, got[i].Reason = "", ""
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", recipient, got, want)
		}
	}
}
