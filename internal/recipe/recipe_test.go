package recipe_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
)

// The files in testdata named after Debian's releases are what postconf -x
// (cut down to the settings of TLS and DNS), -Px and -M print there for the
// configuration that the package comes with.
var releases = []string{"bookworm", "trixie", "forky"}

var update = flag.Bool("update", false, "write the recipes in testdata anew")

func readRelease(t *testing.T, name string) recipe.Postconf {
	t.Helper()
	out := testdata(t, name, "settings", "overrides", "services")
	p, err := recipe.ParsePostconf(out[0], out[1], out[2])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// testdata reads the files of a release.
func testdata(t *testing.T, release string, kinds ...string) (out []string) {
	t.Helper()
	for _, kind := range kinds {
		text, err := os.ReadFile(filepath.Join("testdata", release+"."+kind))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(text))
	}
	return out
}

// allMaps are the builtin maps once DANE is there.
var allMaps = []mta.Map{
	{Name: "rehearsal", Format: "postfix", Servername: true},
	{Name: "strict", Format: "postfix", Servername: true, Enforce: true, Testing: true},
	{Name: "nosni", Format: "postfix", Enforce: true},
	{Name: "exim", Format: "exim", Servername: true, Enforce: true},
	{Name: "postfix", Format: "postfix", Servername: true, Enforce: true},
	{Name: "postfix-tlsrpt", Format: "postfix", Servername: true, Enforce: true, TLSRPT: true},
	{Name: "postfix-dane", Format: "postfix", Servername: true, Enforce: true, DANE: true},
	{Name: "postfix-dane-tlsrpt", Format: "postfix", Servername: true, Enforce: true, TLSRPT: true, DANE: true},
}

// A kitchen is a machine on which a recipe is wanted; each test spoils it in
// its way.
type kitchen struct {
	p    recipe.Postconf
	root fstest.MapFS
	d    recipe.Daemon
}

const debianCA = "etc/ssl/certs/ca-certificates.crt"

// newKitchen is a Postfix of that version without DANE, on which nothing is wrong.
func newKitchen(version recipe.Version) *kitchen {
	k := &kitchen{
		p: recipe.Postconf{Version: version, Settings: map[string]string{
			"config_directory": "/etc/postfix", "queue_directory": "/var/spool/postfix",
			"smtp_tls_security_level": "may", "smtp_tls_CAfile": "/" + debianCA, "smtp_host_lookup": "dns",
			"ignore_mx_lookup_error": "no", "disable_dns_lookups": "no",
		}},
		root: fstest.MapFS{debianCA: {}},
		d:    recipe.Daemon{Listen: []string{"inet:127.0.0.1:8461"}, Maps: allMaps},
	}
	if version.AtLeast(3, 10, 0) {
		k.p.Settings["tls_required_enable"] = "no"
	}
	if version.AtLeast(3, 10, 5) {
		k.p.Settings["smtp_tls_enforce_sts_mx_patterns"] = "yes"
	}
	return k
}

// withDANE makes Postfix do DANE.
func (k *kitchen) withDANE() *kitchen {
	k.p.Settings["smtp_tls_security_level"] = "dane"
	k.p.Settings["smtp_dns_support_level"] = "dnssec"
	k.root["etc/resolv.conf"] = &fstest.MapFile{Data: []byte("nameserver 127.0.0.1\noptions edns0 trust-ad\n")}
	return k
}

func (k *kitchen) cook(t *testing.T) cooked {
	t.Helper()
	r, err := recipe.Postfix(k.p, k.root, k.d)
	if err != nil {
		t.Fatal(err)
	}
	return cooked{r}
}

type cooked struct{ recipe.Recipe }

// value returns what the recipe sets.
func (r cooked) value(name string) string {
	for _, p := range r.Parts {
		if value, ok := strings.CutPrefix(p.Text, name+" = "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (r cooked) warns(words string) bool {
	for _, w := range r.Warnings {
		if strings.Contains(w, words) {
			return true
		}
	}
	return false
}

func TestTheRecipesForDebiansPostfixes(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			k := newKitchen(recipe.Version{})
			k.p = readRelease(t, release)
			got := k.cook(t).String()
			golden := filepath.Join("testdata", release+".recipe")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestARecipeIsValidInMainCF(t *testing.T) {
	k := newKitchen(recipe.Version{3, 10, 0})
	k.p.Settings["smtp_tls_policy_maps"] = "hash:/etc/postfix/\x1b[2Jtls, socketmap:inet:a:1:x"
	k.p.Settings["relayhost"] = "[a]\rb = c" + strings.Repeat(" word", 100)
	k.p.Overrides = []recipe.Override{{"smtp/unix", "smtp_tls_policy_maps", "x\x00y"}}
	for line := range strings.SplitSeq(k.cook(t).String(), "\n") {
		name, _, isSetting := strings.Cut(line, " = ")
		switch {
		case line == "", strings.HasPrefix(line, "# "):
			if len(line) > 2*76 {
				t.Errorf("a long comment: %q", line)
			}
		case !isSetting || name != "smtp_tls_policy_maps" && name != "smtp_tls_loglevel":
			t.Errorf("neither a comment nor a setting: %q", line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' }) {
			t.Errorf("a control character in %q", line)
		}
	}
}

func TestTheMapFitsTheVersionAndItsDANE(t *testing.T) {
	for _, tt := range []struct {
		version recipe.Version
		dane    bool
		want    string
	}{
		{recipe.Version{3, 4, 0}, false, "postfix"},
		{recipe.Version{3, 7, 11}, false, "postfix"},
		{recipe.Version{3, 9, 99}, false, "postfix"},
		{recipe.Version{3, 10, 0}, false, "postfix-tlsrpt"},
		{recipe.Version{3, 11, 7}, false, "postfix-tlsrpt"},
		{recipe.Version{4, 0, 0}, false, "postfix-tlsrpt"},
		{recipe.Version{3, 7, 11}, true, "postfix-dane"},
		{recipe.Version{3, 10, 5}, true, "postfix-dane-tlsrpt"},
	} {
		k := newKitchen(tt.version)
		if tt.dane {
			k.withDANE()
		}
		r := k.cook(t)
		if got, want := r.value("smtp_tls_policy_maps"), "socketmap:inet:127.0.0.1:8461:"+tt.want; got != want {
			t.Errorf("Postfix %s, DANE %t: %s, want %s", tt.version, tt.dane, got, want)
		}
		if len(r.Warnings) != 0 {
			t.Errorf("Postfix %s, DANE %t, nothing wrong: %q", tt.version, tt.dane, r.Warnings)
		}
	}
}

func TestAPostfixThatDoesNotKnowServernameIsRefused(t *testing.T) {
	k := newKitchen(recipe.Version{3, 3, 22})
	if _, err := recipe.Postfix(k.p, k.root, k.d); err == nil || !strings.Contains(err.Error(), "Postfix 3.4 or later is needed") {
		t.Errorf("error %v", err)
	}
}

func TestADaemonWithoutTheRightMap(t *testing.T) {
	keep := func(names ...string) []mta.Map {
		var maps []mta.Map
		for _, m := range allMaps {
			for _, name := range names {
				if m.Name == name {
					maps = append(maps, m)
				}
			}
		}
		return maps
	}
	k := newKitchen(recipe.Version{3, 10, 5}).withDANE()
	k.d.Maps = keep("postfix", "postfix-tlsrpt")
	if r := k.cook(t); !r.warns("overrides DANE") || !strings.HasSuffix(r.value("smtp_tls_policy_maps"), ":postfix-tlsrpt") {
		t.Errorf("no map with DANE: %s", r)
	}
	k.d.Maps = keep("postfix-dane")
	if r := k.cook(t); !r.warns("tlsrpt = true") || !strings.HasSuffix(r.value("smtp_tls_policy_maps"), ":postfix-dane") {
		t.Errorf("no map with TLSRPT: %s", r)
	}
	k.d.Maps = keep("rehearsal", "strict", "nosni", "exim")
	if _, err := recipe.Postfix(k.p, k.root, k.d); err == nil || !strings.Contains(err.Error(), "no map for Postfix") {
		t.Errorf("only maps that do not fit: %v", err)
	}
}

func TestPostfixTellsTheDaemonOfItsTLSSessionsWhereItCan(t *testing.T) {
	for version, want := range map[recipe.Version][3]string{
		{3, 9, 1}:   {},
		{3, 10, 13}: {"yes", "sts-tlsmap-tlsrpt/tlsrpt.sock", ""},
		{3, 11, 7}:  {"yes", "sts-tlsmap-tlsrpt/tlsrpt.sock", "no"},
	} {
		k := newKitchen(version)
		lines := func() [3]string {
			r := k.cook(t)
			return [3]string{r.value("smtp_tlsrpt_enable"), r.value("smtp_tlsrpt_socket_name"), r.value("smtp_tlsrpt_skip_reused_handshakes")}
		}
		if got := lines(); got != [3]string{} {
			t.Errorf("%s: reports are off, got %q", version, got)
		}
		k.d.Sessions = "/var/spool/postfix/sts-tlsmap-tlsrpt/tlsrpt.sock"
		if got := lines(); got != want {
			t.Errorf("%s: got %q, want %q", version, got, want)
		}
	}
	k := newKitchen(recipe.Version{3, 10, 13})
	k.d.Sessions = "/run/tlsrpt.sock"
	if !k.cook(t).warns("/run/tlsrpt.sock is not below queue_directory") {
		t.Error("a socket that Postfix does not reach causes no warning")
	}
}

func TestReportsHaveAServiceThatDeliversInSpiteOfBrokenTLS(t *testing.T) {
	const name, ours = "sender_dependent_default_transport_maps", "inline:{{noreply@example.com = sts-tlsmap-reports:}}"
	k := newKitchen(recipe.Version{3, 10, 13})
	if got := k.cook(t).value(name); got != "" {
		t.Errorf("reports are off, got %q", got)
	}
	k.d.ReportSender = "noreply@example.com"
	for there, want := range map[string]string{"": ours, ours: ours, "hash:/a, " + ours: ours + ", hash:/a"} {
		k.p.Settings[name] = there
		r := k.cook(t)
		if got := r.value(name); got != want || !strings.Contains(r.String(), "\n# postconf -M 'sts-tlsmap-reports/unix=") {
			t.Errorf("with %q: got %q, want %q, in\n%s", there, got, want, r)
		}
	}
	k.p.Settings["relayhost"] = "[smart.test]"
	if got := k.cook(t).value(name); got != "" {
		t.Errorf("with a relayhost: got %q", got)
	}
}
