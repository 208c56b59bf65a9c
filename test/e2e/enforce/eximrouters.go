package enforce

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// ownData is a site's router before ours that also uses $address_data. The
// condition is for Exim 4.100, which would otherwise treat the two routers as
// one.
const ownData = `own_data:
  driver = redirect
  domains = backup.test : probe.test
  condition = ${if !eq{$domain}{probe-unlisted.test}}
  address_data = OK mx.nowhere.test
  data = ${if eq{a}{b}{x}}
`

// withOwnData adds ownData to a single configuration file.
func withOwnData(config string) string {
	return strings.Replace(config, "begin routers\n", "begin routers\n"+ownData, 1)
}

// questionFails has a site's macro with a lookup that fails: mail is deferred,
// not lost, bounced or sent.
func questionFails(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{Files: map[string]string{
		"/etc/exim4/conf.d/main/11_local": "STS_TLSMAP_KEY == ${lookup{$domain}lsearch{/nosuch}}\n",
	}})
	d := w.lab.Domain("question-fails.test", testlab.With{})
	m := v.exim.Send(t, d.Name)
	check(t, m, m.Outcome(t), deferred("failed in sts_tlsmap_ask router"), d.Mail...)
}

// newLoop creates a domain whose host has an address of this machine.
func (w *world) newLoop(t *testing.T, name string) *testlab.Domain {
	t.Helper()
	const here = "203.0.113.9"
	stage.AddAddress(t, here+"/32")
	d := w.lab.Domain(name, testlab.With{})
	w.lab.Set(fmt.Sprintf("%s. 300 IN A %s", d.Mail[0].Name, here))
	return d
}

// loops returns the failures of mail to such a domain. It must be deferred
// until the domain corrects its records, and not frozen.
func (w *world) loops(t *testing.T, d *testlab.Domain) []string {
	t.Helper()
	m := w.exim.Send(t, d.Name)
	o := m.Outcome(t)
	found := differences(m, o, deferred("remote host address is the local host"), d.Mail...)
	if log := strings.Join(w.exim.Log(t), "\n"); strings.Contains(log, o.QueueID+" Frozen") {
		found = append(found, "mail is frozen")
	}
	return found
}

func leadsHere(t *testing.T, w *world) {
	v := w.withExim(t, stage.EximOptions{Debian: map[string]string{"dc_local_interfaces": ""}})
	report(t, v.loops(t, v.newLoop(t, "leads-here.test")))
}

func (p *probe) looped(t *testing.T, v *world) []string { return v.loops(t, p.loop) }
