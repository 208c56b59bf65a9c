package recipe_test

import (
	"io/fs"
	"net"
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
	other := listen(t)
	for _, tt := range []struct {
		maps   string
		listen []string
		state  recipe.AskingState
		dane   bool
		what   string
	}{
		{"", ourListeners, recipe.Silent, false, "smtp_tls_policy_maps does not ask the daemon: no policy protects its mail"},
		{"hash:/etc/postfix/policy", ourListeners, recipe.Silent, false, "does not ask the daemon"},
		{"hash:/etc/postfix/policy, socketmap:inet:127.0.0.1:8461:postfix", ourListeners, recipe.Asks, false, "asks socketmap:inet:127.0.0.1:8461:postfix"},
		{"proxy:socketmap:inet:127.0.0.1:8461:postfix", ourListeners, recipe.Asks, false, "asks proxy:socketmap:inet:127.0.0.1:8461:postfix"},
		{"socketmap:inet:localhost:8461:postfix-dane", ourListeners, recipe.Asks, true, "asks"},
		{"socketmap:unix:sts-tlsmap/socketmap.sock:query", ourListeners, recipe.Asks, true, "asks"},
		{"socketmap:unix:/sts-tlsmap/socketmap.sock:postfix", ourListeners, recipe.Asks, false, "asks"}, // in a chroot
		{"socketmap:unix:/var/spool/postfix/sts-tlsmap/socketmap.sock:postfix", ourListeners, recipe.Asks, false, "asks"},
		{"socketmap:inet:192.0.2.7:8461:postfix", []string{"inet:0.0.0.0:8461"}, recipe.Asks, false, "asks"},
		{"socketmap:inet:127.0.0.1:8461:rehearsal", ourListeners, recipe.Asks, false, "asks socketmap:inet:127.0.0.1:8461:rehearsal, a rehearsal that protects nothing"},
		// All mail waits.
		{"socketmap:inet:127.0.0.1:8461:posfix", ourListeners, recipe.Fails, false, "the daemon has no such map for Postfix: mail waits"},
		{"socketmap:inet:127.0.0.1:8461:exim", ourListeners, recipe.Fails, false, "no such map for Postfix"},
		{"socketmap:inet:127.0.0.1:9:postfix", ourListeners, recipe.Fails, false, "where this daemon does not listen; it listens at inet:127.0.0.1:8461, unix:/var"},
		{"socketmap:unix:/run/nowhere.sock:QUERY", ourListeners, recipe.Fails, false, "nobody answers there, and mail waits: dial unix /run/nowhere.sock"},
		{"socketmap:nonsense", ourListeners, recipe.Fails, false, "has socketmap:nonsense, where"},
		// Another server.
		{"socketmap:" + other + ":QUERY", ourListeners, recipe.Silent, false, "has socketmap:" + other + ":QUERY, where this daemon does not listen; it listens at inet:127.0.0.1:8461, unix:/var"},
		// Nobody knows where a daemon that does not run would listen.
		{"socketmap:inet:127.0.0.1:8462:postfix", nil, recipe.Asks, false, "asks"},
	} {
		k := newKitchen(recipe.Version{3, 10, 5})
		k.d.Listen = tt.listen
		k.d.Maps = append(mta.Builtin(), mta.Map{Name: "rehearsal", Format: mta.FormatPostfix})
		k.p.Settings["smtp_tls_policy_maps"] = tt.maps
		all := k.p.Askings(t.Context(), k.root, k.d)
		if len(all) != 1 || all[0].State != tt.state || all[0].DANE != tt.dane || !strings.Contains(all[0].What, tt.what) ||
			all[0].MTA != "Postfix 3.10.5" || (all[0].Next == "") != (tt.state == recipe.Asks) {
			t.Errorf("%q: %+v, want %q", tt.maps, all, tt.what)
		}
	}
}

// listen returns a place where a server listens that is not the daemon.
func listen(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "inet:" + l.Addr().String()
}

// Postfix asks every table until one has an entry, and defers the mail when one fails.
// Each service of master.cf counts for itself.
func TestEachServiceAndTableOfPostfixIsChecked(t *testing.T) {
	const ours = "socketmap:inet:127.0.0.1:8461:postfix"
	type line struct {
		state recipe.AskingState
		what  string
	}
	asks := line{recipe.Asks, "asks " + ours}
	silent := "smtp_tls_policy_maps does not ask the daemon"
	other := "socketmap:" + listen(t) + ":QUERY"
	for _, tt := range []struct {
		name  string
		spoil func(*kitchen)
		want  []line
	}{
		{"one table for all services", func(*kitchen) {}, []line{asks}},
		{"a dead server after ours", func(k *kitchen) {
			k.p.Settings["smtp_tls_policy_maps"] = ours + ", socketmap:inet:127.0.0.1:9:QUERY"
		}, []line{asks, {recipe.Fails, "nobody answers there, and mail waits: dial tcp 127.0.0.1:9"}}},
		{"another server before ours", func(k *kitchen) { k.p.Settings["smtp_tls_policy_maps"] = other + " " + ours },
			[]line{asks, {recipe.Odd, "the first table that has an entry counts"}}},
		{"an unknown map for relay", func(k *kitchen) { k.override("relay/unix", "socketmap:inet:127.0.0.1:8461:posfix") },
			[]line{asks, {recipe.Fails, "relay/unix in master.cf: smtp_tls_policy_maps has socketmap:inet:127.0.0.1:8461:posfix, but the daemon has no such map"}}},
		{"none for the default transport", func(k *kitchen) { k.override("smtp/unix", "") },
			[]line{{recipe.Fails, "smtp/unix in master.cf: " + silent}, {recipe.Asks, "relay/unix in master.cf: asks"}}},
		{"for relay only", func(k *kitchen) {
			k.p.Settings["smtp_tls_policy_maps"] = ""
			k.override("relay/unix", ours)
		}, []line{{recipe.Fails, silent}, {recipe.Asks, "relay/unix in master.cf: asks"}}},
		{"none for relay", func(k *kitchen) { k.override("relay/unix", "") }, []line{asks, {recipe.Fails, "relay/unix in master.cf: " + silent}}},
		{"none for a transport to some hosts", func(k *kitchen) { k.override("slow/unix", "") }, []line{asks, {recipe.Odd, "slow/unix in master.cf: " + silent}}},
		{"another default transport", func(k *kitchen) {
			k.p.Settings["default_transport"] = "slow:"
			k.override("slow/unix", "")
		}, []line{{recipe.Fails, "slow/unix in master.cf: " + silent}, {recipe.Asks, "smtp/unix in master.cf: asks"}}},
		{"no authorities", func(k *kitchen) { k.p.Settings["smtp_tls_CAfile"] = "" },
			[]line{asks, {recipe.Fails, "smtp_tls_CAfile = , smtp_tls_CApath = : no certificate can be verified, and mail to domains with an enforced policy waits"}}},
		{"DANE is overridden", func(k *kitchen) { k.withDANE() },
			[]line{asks, {recipe.Fails, "smtp_tls_security_level = dane, but map postfix has no DANE: an enforced MTA-STS policy overrides DANE"}}},
		{"a sender switches policies off", func(k *kitchen) { k.p.Settings["tls_required_enable"] = "yes" },
			[]line{asks, {recipe.Odd, "tls_required_enable = yes: "}}},
	} {
		k := newKitchen(recipe.Version{3, 10, 5})
		k.p.Settings["smtp_tls_policy_maps"] = ours
		k.p.Services = []string{"smtp/unix", "relay/unix", "slow/unix"}
		tt.spoil(k)
		var got []line
		fits := true
		for i, a := range k.p.Askings(t.Context(), k.root, k.d) {
			got = append(got, line{a.State, a.What})
			fits = fits && i < len(tt.want) && a.State == tt.want[i].state && strings.Contains(a.What, tt.want[i].what)
		}
		if !fits || len(got) != len(tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// closed is a file system in which a user may look at nothing.
type closed struct{}

func (closed) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
}

func TestAuthoritiesThatAUserMayNotLookAtAreNotMissing(t *testing.T) {
	k := newKitchen(recipe.Version{3, 10, 5})
	k.p.Settings["smtp_tls_policy_maps"] = "socketmap:inet:127.0.0.1:8461:postfix"
	if all := k.p.Askings(t.Context(), closed{}, k.d); len(all) != 1 || all[0].State != recipe.Asks {
		t.Errorf("%+v", all)
	}
}

func (k *kitchen) override(service, policyMaps string) {
	k.p.Overrides = append(k.p.Overrides, recipe.Override{Service: service, Name: "smtp_tls_policy_maps", Value: policyMaps})
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
			all := recipe.Askings(t.Context(), os.DirFS("/"), recipe.Daemon{Listen: ourListeners, Maps: mta.Builtin()})
			if len(all) != 1 || all[0].MTA != "Exim" || (all[0].State == recipe.Asks) != tt.asks || !strings.Contains(all[0].What, tt.what) {
				t.Errorf("%+v, want %q", all, tt.what)
			}
		})
	}
}
