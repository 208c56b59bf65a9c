package enforce

import (
	"regexp"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// partRule is the line above each part of -recipe exim.
var partRule = regexp.MustCompile(`(?m)^# -{60,}\n`)

// recipeText returns the introduction and the parts of -recipe exim, by the
// line that names their place.
func recipeText(t *testing.T, e *stage.Exim) (intro string, parts map[string]string) {
	t.Helper()
	sections := partRule.Split(e.Program(t, "-recipe", "exim"), -1)
	parts = make(map[string]string)
	for _, s := range sections[1:] {
		where, text, ok := strings.Cut(s, "\n\n")
		if !ok {
			t.Fatalf("an empty part of the recipe: %q", s)
		}
		parts[strings.TrimPrefix(where, "# ")] = text
	}
	return sections[0], parts
}

// unsplit uses Debian's other layout, a single template, with the lines of
// -recipe inserted.
func unsplit(t *testing.T, w *world) {
	settings := map[string]string{"dc_use_split_config": "false", "dc_relay_domains": backupDomain}
	bare := w.withExim(t, stage.EximOptions{Shipped: shippedFiles(t, true), Debian: settings})
	_, parts := recipeText(t, bare.exim)

	template := bare.exim.Read(t, "/etc/exim4/exim4.conf.template")
	insert := func(where, before, after string) {
		text := ""
		for place, part := range parts {
			if strings.HasPrefix(place, where) {
				text = part
			}
		}
		if text == "" || !strings.Contains(template, before+after) {
			t.Fatalf("part %q of the recipe is %q, or the template does not contain %q", where, text, before+after)
		}
		template = strings.Replace(template, before+after, before+text+after, 1)
	}
	insert("In /etc/exim4/exim4.conf.template", "", "\n### router/200_exim4-config_primary\n")
	insert(`In the same file, after "begin transports"`, "\nbegin transports\n", "")
	insert(`In the same file, after "begin retry"`, "\nbegin retry\n", "")

	v := w.withExim(t, stage.EximOptions{
		Shipped: shippedFiles(t, true),
		Debian:  settings,
		Files: map[string]string{
			"/etc/exim4/exim4.conf.template":    template,
			"/etc/exim4/exim4.conf.localmacros": parts["/etc/exim4/exim4.conf.localmacros:"],
		},
	})
	report(t, w.newAlias(t, "unsplit").fails(t, v))
	v.playSingleRows(t)
}

// recipeForNoMail has machines that do not deliver to MX hosts and so cannot be
// protected; their mail must not be deferred.
func recipeForNoMail(t *testing.T, w *world) {
	for _, c := range []struct {
		settings map[string]string
		warning  string
	}{
		{map[string]string{"dc_eximconfig_configtype": "local"}, "local delivery only"},
		{map[string]string{"dc_eximconfig_configtype": "smarthost", "dc_smarthost": "a.example;b.example"}, "not one host's name"},
	} {
		v := w.withExim(t, stage.EximOptions{Debian: c.settings})
		intro, parts := recipeText(t, v.exim)
		if intro = strings.ReplaceAll(intro, "\n#  ", ""); strings.Count(intro, "WARNING") != 1 || !strings.Contains(intro, c.warning) {
			t.Errorf("%v: %s", c.settings, intro)
		}
		if macros := parts["/etc/exim4/conf.d/main/10_sts-tlsmap:"]; !strings.Contains(macros, "STS_TLSMAP_DOMAINS = :\n") {
			t.Errorf("%v: %s", c.settings, macros)
		}
	}
}

// recipeSeesDaemon runs -recipe while the daemon is down.
func recipeSeesDaemon(t *testing.T, w *world) {
	w.daemon.Kill(t)
	intro, _ := recipeText(t, w.exim)
	w.daemon.Start(t)
	if intro = strings.ReplaceAll(intro, "\n#  ", ""); strings.Count(intro, "WARNING") != 1 || !strings.Contains(intro, "nobody answered") {
		t.Error(intro)
	}
}
