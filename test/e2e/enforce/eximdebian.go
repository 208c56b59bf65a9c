package enforce

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// macrosFile is where a site changes a macro (docs/exim.md).
const macrosFile = "/etc/exim4/conf.d/main/11_local"

// debianFiles are the files to copy into Debian's split configuration.
var debianFiles = []string{"conf.d/main/10_sts-tlsmap", "conf.d/router/180_sts-tlsmap", "conf.d/transport/30_sts-tlsmap", "conf.d/retry/20_sts-tlsmap"}

// shippedFiles returns packaging/exim, or only the copies that remain when the
// package has been removed.
func shippedFiles(t *testing.T, copiesOnly bool) fstest.MapFS {
	t.Helper()
	names := debianFiles
	if !copiesOnly {
		names = append(names[:len(names):len(names)], recipeFiles...)
	}
	return readShipped(t, names...)
}

func readShipped(t *testing.T, names ...string) fstest.MapFS {
	t.Helper()
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

// replaced returns files with another text of one of them.
func replaced(files fstest.MapFS, name, text string) fstest.MapFS {
	files = maps.Clone(files)
	files[name] = &fstest.MapFile{Data: []byte(text)}
	return files
}

// mattered reports whether the files fail without something, and fails the test
// if they do not.
func mattered(t *testing.T, name, without string, found []string) bool {
	t.Helper()
	if len(found) == 0 {
		t.Errorf("%s: nothing fails without %q", name, without)
		return false
	}
	first, _, _ := strings.Cut(found[0], "\n")
	t.Logf("%s: without %q: %s", name, without, first)
	return true
}

// packageRemoved has a machine without the package whose Exim configuration
// still has the copies and a macro.
func packageRemoved(t *testing.T, w *world) {
	d := w.lab.Domain("removed.test", testlab.With{MailCert: testlab.CertSelfSigned})
	own := map[string]string{macrosFile: ".ifdef STS_TLSMAP_SERVER\nSTS_TLSMAP_TIMEOUT == 40s\n.endif\n"}

	installed := w.withExim(t, stage.EximOptions{Files: own})
	m := installed.exim.Submit(t, []string{d.Name}, foreground, noServer)[0]
	check(t, m, m.Outcome(t), deferred("MTA-STS: removed.test: "+noAnswer), d.Mail...)

	removed := w.withExim(t, stage.EximOptions{Shipped: shippedFiles(t, true), Files: own})
	m = removed.exim.Send(t, d.Name)
	check(t, m, m.Outcome(t), fate{status: "sent", host: d.Mail[0], tls: "Trusted"}, d.Mail...)

	for script, removal := range map[string]string{"../../../packaging/debian/sts-tlsmap.prerm": "remove", "../../../packaging/rpm/preun": "0"} {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		out := removed.exim.Shell(t, string(text), removal)
		for _, name := range debianFiles {
			if !strings.Contains(out, "/etc/exim4/"+name+"\n") || !strings.Contains(out, "protects no mail") {
				t.Errorf("%s does not warn that %s remains: %s", script, name, out)
			}
		}
		if out := w.withExim(t, stage.EximOptions{Shipped: make(fstest.MapFS)}).exim.Shell(t, string(text), removal); out != "" {
			t.Errorf("%s warns although Exim has none of our files: %s", script, out)
		}
	}
}

// A debian is a forwarding relay, and a domain beyond it whose host has a bad
// certificate.
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

// debianTypes tries Debian's kinds of machines. Our files act only on the one
// that delivers to MX hosts.
func debianTypes(t *testing.T, w *world) {
	report(t, w.newDebian("debian-types").try(t, w, shippedFiles(t, false)))
}

// try returns the failures with each kind of machine.
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
		ours  bool // our retry rule applies
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
			return []string{"Exim rejects its configuration: " + strings.ReplaceAll(err.Error(), "\n", " ")}
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

// brokenDebian removes each line of the files for Debian in turn.
func brokenDebian(t *testing.T, w *world) {
	d := w.newDebian("debian-broken")
	files := shippedFiles(t, false)
	mustMatter := func(name, what, text string) {
		t.Helper()
		mattered(t, name, what, d.try(t, w, replaced(files, name, text)))
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
