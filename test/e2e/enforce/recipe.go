package enforce

import (
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// followsRecipe sets up a Postfix with nothing but the output of -recipe.
func followsRecipe(t *testing.T, w *world) {
	w.postfix.Write(t, systemRoots, string(w.lab.CA.PEM()))
	w.postfix.Unset(t, "smtp_tls_policy_maps", "smtp_tls_CAfile")
	text := w.postfix.Program(t, "-recipe", "postfix")
	t.Logf("the recipe:\n%s", text)
	for _, line := range []string{
		"smtp_tls_policy_maps = socketmap:inet:" + stage.Endpoint + ":" + w.mapName,
		"smtp_tls_CAfile = " + systemRoots,
	} {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			t.Errorf("the recipe lacks: %s", line)
		}
	}
	w.postfix.Configure(t, text)

	honest := w.lab.Domain("recipe-honest.test", testlab.With{})
	m := w.mta.Send(t, honest.Name)
	check(t, m, m.Outcome(t), verified(honest.Mail[0]), honest.Mail...)
	bad := w.lab.Domain("recipe-bad.test", testlab.With{MailCert: testlab.CertSelfSigned})
	m = w.mta.Send(t, bad.Name)
	check(t, m, m.Outcome(t), deferred(selfSigned), bad.Mail...)
}

// asksByAliases has a Postfix that was set up for another policy server and
// uses its map names.
func asksByAliases(t *testing.T, w *world) {
	honest := w.lab.Domain("alias-honest.test", testlab.With{})
	signed := w.signed.domain(t, "match.signed.example")
	secure := "secure match=" + honest.Mail[0].Name + " servername=hostname"
	for _, test := range []struct{ alias, domain, want string }{
		{"QUERY", honest.Name, secure},
		{"QUERY", signed.Name, "dane-only"},
		{"QUERY", "alone.signed.example", ""},
		{"QUERYwithTLSRPT", honest.Name, secure + " policy_type=sts policy_domain=" + honest.Name + " mx_host_pattern=" + honest.Mail[0].Name + " "},
		{"QUERYwithTLSRPT", signed.Name, "dane-only"},
	} {
		got := w.postfix.Postmap(t, test.domain, "socketmap:inet:"+stage.Endpoint+":"+test.alias)
		if got != test.want && !(strings.HasSuffix(test.want, " ") && strings.HasPrefix(got, test.want)) {
			t.Errorf("postmap -q %s in %s: %q, want %q", test.domain, test.alias, got, test.want)
		}
	}
}
