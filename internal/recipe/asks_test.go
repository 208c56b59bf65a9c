package recipe_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
)

// ourListeners are those of the packages.
var ourListeners = []string{"inet:127.0.0.1:8461", "unix:/var/spool/postfix/sts-tlsmap/socketmap.sock"}

func TestWhetherPostfixAsksTheDaemon(t *testing.T) {
	for _, tt := range []struct {
		maps   string
		listen []string
		asks   bool
		dane   bool
		what   string
	}{
		{"", ourListeners, false, false, "smtp_tls_policy_maps does not ask the daemon: no policy protects its mail"},
		{"hash:/etc/postfix/policy", ourListeners, false, false, "does not ask the daemon"},
		{"hash:/etc/postfix/policy, socketmap:inet:127.0.0.1:8461:postfix", ourListeners, true, false, "asks socketmap:inet:127.0.0.1:8461:postfix"},
		{"socketmap:inet:localhost:8461:postfix-dane", ourListeners, true, true, "asks"},
		{"socketmap:unix:sts-tlsmap/socketmap.sock:query", ourListeners, true, true, "asks"},
		{"socketmap:unix:/sts-tlsmap/socketmap.sock:postfix", ourListeners, true, false, "asks"}, // in a chroot
		{"socketmap:unix:/var/spool/postfix/sts-tlsmap/socketmap.sock:postfix", ourListeners, true, false, "asks"},
		{"socketmap:inet:192.0.2.7:8461:postfix", []string{"inet:0.0.0.0:8461"}, true, false, "asks"},
		{"socketmap:inet:127.0.0.1:8461:rehearsal", ourListeners, true, false, "asks socketmap:inet:127.0.0.1:8461:rehearsal, a rehearsal that protects nothing"},
		// All mail waits.
		{"socketmap:inet:127.0.0.1:8461:posfix", ourListeners, false, false, "the daemon has no such map for Postfix: mail waits"},
		{"socketmap:inet:127.0.0.1:8461:exim", ourListeners, false, false, "no such map for Postfix"},
		// Another server, which answers first.
		{"socketmap:inet:127.0.0.1:8462:postfix", ourListeners, false, false, "where this daemon does not listen; it listens at inet:127.0.0.1:8461, unix:/var"},
		{"socketmap:unix:/run/x.sock:QUERY socketmap:inet:127.0.0.1:8461:postfix", ourListeners, false, false, "has socketmap:unix:/run/x.sock:QUERY, where"},
		{"socketmap:inet:192.0.2.7:8461:postfix", ourListeners, false, false, "does not listen"},
		{"socketmap:nonsense", ourListeners, false, false, "has socketmap:nonsense, where"},
		// Nobody knows where a daemon that does not run would listen.
		{"socketmap:inet:127.0.0.1:8462:postfix", nil, true, false, "asks"},
	} {
		p := readRelease(t, "trixie")
		p.Settings["smtp_tls_policy_maps"] = tt.maps
		a := p.Asking(recipe.Daemon{Listen: tt.listen, Maps: append(mta.Builtin(), mta.Map{Name: "rehearsal", Format: mta.FormatPostfix})})
		if a.Asks != tt.asks || a.DANE != tt.dane || !strings.Contains(a.What, tt.what) || !strings.HasPrefix(a.MTA, "Postfix 3.10.") {
			t.Errorf("%q: %+v, want %q", tt.maps, a, tt.what)
		}
	}
	p := readRelease(t, "trixie")
	p.Overrides = append(p.Overrides, recipe.Override{Service: "relay/unix", Name: "smtp_tls_policy_maps", Value: "socketmap:inet:127.0.0.1:8461:postfix"})
	if a := p.Asking(recipe.Daemon{Listen: ourListeners, Maps: mta.Builtin()}); !a.Asks {
		t.Errorf("a service of master.cf asks: %+v", a)
	}
}

func TestWhetherEximAsksTheDaemon(t *testing.T) {
	routers := testdata(t, "exim-bookworm", "routers")[0]
	ask := func(server string) string {
		return routers + "sts_tlsmap_ask router:\naddress_data = ${sg{${readsocket{" + server + "}\t{16:exim $domain,}{30s:cache=yes}{}{}}}{x}{y}}\ndriver = redirect\n\n"
	}
	local := "system_aliases router:\ndriver = redirect\n\n"
	for _, tt := range []struct {
		name, routers string
		asks          bool
		what          string
	}{
		{"Debian's own", routers, false, "no router asks the daemon: no policy protects its mail"},
		{"with the recipe", ask("inet:127.0.0.1:8461"), true, "router sts_tlsmap_ask asks inet:127.0.0.1:8461"},
		{"over a unix socket", ask("/var/spool/postfix/sts-tlsmap/socketmap.sock"), true, "asks /var"},
		{"elsewhere", ask("inet:127.0.0.1:8462"), false, "router sts_tlsmap_ask asks inet:127.0.0.1:8462, where this daemon does not listen"},
		{"for local mail only", local, true, "sends no mail to other hosts"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			script := "#!/bin/sh\n[ \"$*\" = '-bP routers' ] && cat <<'EOF'\n" + tt.routers + "EOF\n"
			if err := os.WriteFile(filepath.Join(dir, "exim4"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":/bin")
			all := recipe.Askings(t.Context(), recipe.Daemon{Listen: ourListeners, Maps: mta.Builtin()})
			if len(all) != 1 || all[0].MTA != "Exim" || all[0].Asks != tt.asks || !strings.Contains(all[0].What, tt.what) {
				t.Errorf("%+v, want %q", all, tt.what)
			}
		})
	}
}
