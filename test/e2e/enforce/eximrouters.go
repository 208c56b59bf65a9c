package enforce

import (
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// ownData is a router of a site that comes before ours and has a use of its own
// for $address_data, which ours use as well. Its condition is for Exim 4.100,
// which takes two routers without a name between them for one.
const ownData = `own_data:
  driver = redirect
  domains = backup.test : probe.test
  condition = ${if !eq{$domain}{probe-unlisted.test}}
  address_data = OK mx.nowhere.test
  data = ${if eq{a}{b}{x}}
`

// withOwnData puts that router into a single configuration.
func withOwnData(config string) string {
	return strings.Replace(config, "begin routers\n", "begin routers\n"+ownData, 1)
}

// questionFails tells of a lookup that a site has put into a macro, and that
// fails: there is no answer then, and no mail is lost, returned, or sent.
func questionFails(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{Files: map[string]string{
		"/etc/exim4/conf.d/main/11_local": "STS_TLSMAP_KEY == ${lookup{$domain}lsearch{/nosuch}}\n",
	}})
	d := w.lab.Domain("question-fails.test", testlab.With{})
	m := v.exim.Send(t, d.Name)
	check(t, m, m.Outcome(t), deferred("failed in sts_tlsmap_ask router"), d.Mail...)
}
