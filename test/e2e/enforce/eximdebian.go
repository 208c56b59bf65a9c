package enforce

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// macrosFile is where a site changes a macro, as docs/exim.md has it.
const macrosFile = "/etc/exim4/conf.d/main/11_local"

// debianFiles are the files that are copied into Debian's split configuration.
var debianFiles = []string{"conf.d/main/10_sts-tlsmap", "conf.d/router/180_sts-tlsmap", "conf.d/transport/30_sts-tlsmap", "conf.d/retry/20_sts-tlsmap"}

// shippedFiles returns packaging/exim, or those copies alone: what is left of it
// when the package has been removed.
func shippedFiles(t *testing.T, copiesOnly bool) fstest.MapFS {
	t.Helper()
	names := debianFiles
	if !copiesOnly {
		names = append(names[:len(names):len(names)], recipeFiles...)
	}
	files := make(fstest.MapFS)
	for _, name := range names {
		text, err := fs.ReadFile(shipped, name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	return files
}

// packageRemoved tells of a machine from which the package was removed, and
// that still has the copies in Exim's configuration, and a macro of its own.
func packageRemoved(t *testing.T, w *world) {
	d := w.lab.Domain("removed.test", testlab.With{MailCert: testlab.CertSelfSigned})
	own := map[string]string{macrosFile: ".ifdef STS_TLSMAP_SERVER\nSTS_TLSMAP_TIMEOUT == 40s\n.endif\n"}

	installed := w.withExim(t, stage.EximOptions{Files: own})
	m := installed.exim.Submit(t, []string{d.Name}, foreground, noServer)[0]
	check(t, m, m.Outcome(t), deferred("MTA-STS: removed.test: "+noAnswer), d.Mail...)

	removed := w.withExim(t, stage.EximOptions{Shipped: shippedFiles(t, true), Files: own})
	m = removed.exim.Send(t, d.Name)
	check(t, m, m.Outcome(t), fate{status: "sent", host: d.Mail[0], tls: "Trusted"}, d.Mail...)

	for script, removal := range map[string]string{"../../../packaging/deb/prerm": "remove", "../../../packaging/rpm/preun": "0"} {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		out := removed.exim.Shell(t, string(text), removal)
		for _, name := range debianFiles {
			if !strings.Contains(out, "/etc/exim4/"+name+"\n") || !strings.Contains(out, "protects no mail") {
				t.Errorf("%s does not say that %s stays: %s", script, name, out)
			}
		}
		if out := w.withExim(t, stage.EximOptions{Shipped: make(fstest.MapFS)}).exim.Shell(t, string(text), removal); out != "" {
			t.Errorf("%s says, where Exim has nothing of ours: %s", script, out)
		}
	}
}

// A debian is a relay that forwards, and a domain beyond it whose host shows a
// bad certificate.
type debian struct {
	relay  *testlab.MailHost
	beyond *testlab.Domain
}

func (w *world) newDebian(name string) debian {
	d := debian{
		relay:  w.lab.MailHost("relay."+name+".test", ""),
		beyond: w.lab.Domain(name+".test", testlab.With{MailCert: testlab.CertSelfSigned}),
	}
	d.relay.Behave(testlab.NoSTARTTLS)
	return d
}

// debianTypes tells of the kinds of machine that Debian knows: ours act on the
// one that sends mail to the hosts of its domain.
func debianTypes(t *testing.T, w *world) {
	report(t, w.newDebian("debian-types").try(t, w, shippedFiles(t, false)))
}

// try returns what goes wrong with each kind of machine.
func (d debian) try(t *testing.T, w *world, files fstest.MapFS) []string {
	t.Helper()
	copies := make(fstest.MapFS)
	for _, name := range debianFiles {
		copies[name] = files[name]
	}
	for _, c := range []struct {
		kind  string
		files fstest.MapFS
		want  fate
		ours  bool // the retry rule is
	}{
		{"internet", files, deferred(badCert), true},
		{"internet", copies, fate{status: "sent", host: d.beyond.Mail[0], tls: "Trusted"}, false},
		{"smarthost", files, inClear(d.relay), false},
		{"satellite", files, inClear(d.relay), false},
		{"local", files, bounced("Mailing to remote domains not supported"), false},
	} {
		e, err := w.tryExim(t, stage.EximOptions{
			Shipped: c.files,
			Debian:  map[string]string{"dc_eximconfig_configtype": c.kind, "dc_smarthost": d.relay.Name},
		})
		if err != nil {
			return []string{"Exim does not take it: " + strings.ReplaceAll(err.Error(), "\n", " ")}
		}
		m := e.Send(t, d.beyond.Name)
		for _, f := range differences(m, m.Outcome(t), c.want, d.relay, d.beyond.Mail[0]) {
			return []string{fmt.Sprintf("%s: %s", c.kind, f)}
		}
		if rule := e.Run(t, "-brt", d.beyond.Name, "tls_required"); strings.HasSuffix(rule, "F,4d,1s; \n") != c.ours {
			return []string{fmt.Sprintf("%s: %s", c.kind, rule)}
		}
	}
	return nil
}

// brokenDebian breaks the files for Debian in one place after the other.
func brokenDebian(t *testing.T, w *world) {
	d := w.newDebian("debian-broken")
	files := shippedFiles(t, false)
	mustMatter := func(name, what, text string) {
		t.Helper()
		broken := make(fstest.MapFS)
		for n, f := range files {
			broken[n] = f
		}
		broken[name] = &fstest.MapFile{Data: []byte(text)}
		found := d.try(t, w, broken)
		if len(found) == 0 {
			t.Errorf("%s: nothing changes without %q", name, what)
			return
		}
		first, _, _ := strings.Cut(found[0], "\n")
		t.Logf("%s: without %q: %s", name, what, first)
	}
	for _, name := range debianFiles {
		before, after := "", string(files[name].Data)
		for _, line := range logicalLines(after) {
			head, tail, _ := strings.Cut(after, line)
			before += head
			mustMatter(name, line, before+tail)
			before, after = before+line, tail
		}
	}
	for _, name := range []string{debianFiles[0], debianFiles[3]} {
		text := string(files[name].Data)
		for _, kind := range []string{" DCconfig_smarthost", " DCconfig_satellite", " DCconfig_local"} {
			mustMatter(name, kind, strings.Replace(text, kind, "", 1))
		}
	}
}
