package enforce

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// losesDANE has a resolver that stops validating. Exim then sees no DANE and
// follows the policy: no host without a certificate that satisfies it gets
// mail, even if DANE vouched for the host.
func losesDANE(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{}) // without memory of failed hosts
	only, both := w.signed.domain(t, "match.signed.example"), w.signed.domain(t, "mismatch.signed.example")
	m := v.exim.Send(t, only.Name)
	check(t, m, m.Outcome(t), verified(only.Mail[0]), only.Mail...)

	w.signed.resolver.Restart(t, true)
	defer w.signed.resolver.Restart(t, false)
	m = v.exim.Send(t, only.Name)
	o := m.Outcome(t)
	check(t, m, o, deferred(badCert), only.Mail...)
	n := v.exim.Send(t, both.Name)
	check(t, n, n.Outcome(t), verified(both.Mail[0]), both.Mail...)

	w.signed.resolver.Restart(t, false)
	check(t, m, m.Retry(t, o), verified(only.Mail[0]), only.Mail...)
}
