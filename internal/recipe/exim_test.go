package recipe_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/packaging/exim"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
)

// The files in testdata named exim-RELEASE are what Debian's Exim prints for
// the configuration that the package comes with, cut down to what counts here.
func readExim(t *testing.T, release string) recipe.EximConf {
	t.Helper()
	out := testdata(t, "exim-"+release, "bV", "routers", "transports", "config", "retry", "retry")
	c, err := recipe.ParseExim([7]string(append(out, "9:NOTFOUND ,\n")))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An eximKitchen is a machine on which nothing is wrong; each test spoils it.
type eximKitchen struct {
	c    recipe.EximConf
	root fstest.MapFS
	d    recipe.Daemon
}

func newEximKitchen(t *testing.T, release string) *eximKitchen {
	return &eximKitchen{
		c: readExim(t, release),
		root: fstest.MapFS{
			debianCA:                           {},
			"etc/resolv.conf":                  {Data: []byte("nameserver 127.0.0.1\noptions trust-ad\n")},
			"etc/exim4/update-exim4.conf.conf": {Data: []byte("dc_use_split_config='true'\n")},
		},
		d: recipe.Daemon{
			Listen:        []string{"unix:/run/x.sock", "inet:127.0.0.1:8461"},
			Maps:          []mta.Map{{Name: "exim", Format: "exim", Enforce: true}},
			LookupTimeout: 20 * time.Second,
		},
	}
}

func named(all []recipe.Instance, name string) *recipe.Instance {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

func (k *eximKitchen) cook(t *testing.T) recipe.Recipe {
	t.Helper()
	r, err := recipe.Exim(k.c, k.root, k.d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// router returns one of the kitchen's routers, to be spoilt.
func (k *eximKitchen) router(t *testing.T, name string) map[string]string {
	t.Helper()
	r := named(k.c.Routers, name)
	if r == nil {
		t.Fatalf("no router %s", name)
	}
	return r.Options
}

// install puts our routers, our transport and our retry rule where they belong.
func (k *eximKitchen) install() (transport map[string]string) {
	at := slices.IndexFunc(k.c.Routers, func(r recipe.Instance) bool { return r.Name == "dnslookup" })
	k.c.Routers = slices.Insert(k.c.Routers, at,
		recipe.Instance{"sts_tlsmap_ask", map[string]string{"driver": "redirect", "address_data": "${readsocket{x}{y}{30s:cache=yes}}"}},
		recipe.Instance{"sts_tlsmap", map[string]string{"driver": "manualroute", "transport": "sts_tlsmap_smtp"}})
	transport = map[string]string{"driver": "smtp", "hosts_require_tls": "*", "tls_verify_hosts": "*", "tls_verify_cert_hostnames": "*",
		"tls_verify_certificates": "system", "tls_sni": "$host", "hosts_try_dane": "*", "interface": "<; 0.0.0.0 ; ::0", "multi_domain": "false", "hosts_nopass_tls": "*"}
	k.c.Transports = append(k.c.Transports, recipe.Instance{"sts_tlsmap_smtp", transport})
	k.c.TLSRule = "*  *  F,4d,1s;"
	return transport
}

func TestDebiansEximGetsTheShippedFilesWithoutAWarning(t *testing.T) {
	for _, release := range []string{"bookworm", "trixie", "forky"} {
		k := newEximKitchen(t, release)
		r := k.cook(t)
		if len(r.Warnings) > 0 {
			t.Errorf("%s: %q", release, r.Warnings)
		}
		want := []recipe.Part{
			{Where: "/etc/exim4/conf.d/main/10_sts-tlsmap:", Text: exim.Macros},
			{Where: "/etc/exim4/conf.d/router/180_sts-tlsmap:", Text: exim.Routers},
			{Where: "/etc/exim4/conf.d/transport/30_sts-tlsmap:", Text: exim.Transport},
			{Where: "/etc/exim4/conf.d/retry/20_sts-tlsmap:", Text: exim.Retry},
		}
		if !slices.Equal(r.Parts, want) {
			t.Errorf("%s: %+v", release, r.Parts)
		}
		for _, line := range []string{"hosts_require_tls = *", "/etc/exim4/conf.d/router/180_sts-tlsmap:", "Nothing has been changed"} {
			if !strings.Contains(r.String(), line) {
				t.Errorf("%s: the text has no %q", release, line)
			}
		}
	}
}

func TestTheSplitConfigurationIsToldWhatItHasAlready(t *testing.T) {
	const copies = "cp -r /usr/share/sts-tlsmap/exim/conf.d /etc/exim4/"
	k := newEximKitchen(t, "trixie")
	already := func() (n int) { return strings.Count(k.cook(t).String(), "\n# already so\n") }
	if text := k.cook(t).String(); already() != 0 || !strings.Contains(text, copies) {
		t.Errorf("nothing is there, and the recipe says otherwise:\n%s", text)
	}
	shipped := os.DirFS("../../packaging/exim/conf.d")
	put := func(name string, text string) { k.root["etc/exim4/conf.d/"+name] = &fstest.MapFile{Data: []byte(text)} }
	for i, name := range []string{"main/10_sts-tlsmap", "router/180_sts-tlsmap", "transport/30_sts-tlsmap", "retry/20_sts-tlsmap"} {
		text, err := fs.ReadFile(shipped, name)
		if err != nil {
			t.Fatal(err)
		}
		if put(name, string(text)); already() != i+1 {
			t.Errorf("with the shipped %s, %d parts are there, want %d", name, already(), i+1)
		}
	}
	if text := k.cook(t).String(); strings.Contains(text, copies) {
		t.Errorf("all is there:\n%s", text)
	}
	put("router/180_sts-tlsmap", exim.Routers)
	if already() != 4 {
		t.Error("the text of the recipe is not taken for itself")
	}
	put("router/180_sts-tlsmap", strings.Replace(exim.Routers, "allow_defer", "", 1))
	if text := k.cook(t).String(); already() != 3 || !strings.Contains(text, copies) {
		t.Errorf("a router has changed:\n%s", text)
	}
	k.d.LookupTimeout = time.Minute // the shipped macros do not fit
	if text := k.cook(t).String(); already() != 2 || strings.Contains(text, copies) {
		t.Errorf("the shipped macros do not fit:\n%s", text)
	}
}

func TestEachLayoutIsToldItsPlaces(t *testing.T) {
	k := newEximKitchen(t, "trixie")
	k.root["etc/exim4/update-exim4.conf.conf"] = &fstest.MapFile{Data: []byte("dc_use_split_config='false'\n")}
	r := k.cook(t)
	if !strings.Contains(r.Parts[1].Where, "exim4.conf.template") || !strings.Contains(r.Parts[3].Where, `"begin retry"`) {
		t.Errorf("%v", r.Parts)
	}
	k.c.File = "/etc/exim/exim.conf"
	r = k.cook(t)
	if !strings.Contains(r.Parts[0].Where, "/etc/exim/exim.conf") || !strings.Contains(r.Parts[3].Where, `"begin retry"`) {
		t.Errorf("%v", r.Parts)
	}
}

func TestEximsTimeExceedsThatOfALookup(t *testing.T) {
	for lookup, want := range map[time.Duration]string{
		time.Second: "30s", 20 * time.Second: "30s", 45 * time.Second: "55s", 20500 * time.Millisecond: "31s",
	} {
		k := newEximKitchen(t, "trixie")
		k.d.LookupTimeout = lookup
		r := k.cook(t)
		if !strings.Contains(r.Parts[0].Text, "\nSTS_TLSMAP_TIMEOUT = "+want+"\n") {
			t.Errorf("%s: %s", lookup, r.Parts[0].Text)
		}
	}
}

// A message has two events in a session, so a daemon that hangs delays it by two seconds.
func TestAnEventOfEximWaitsForTheDaemonOneSecondAtMost(t *testing.T) {
	macros, err := os.ReadFile(filepath.FromSlash("../../packaging/exim/macros"))
	if err != nil {
		t.Fatal(err)
	}
	_, event, _ := strings.Cut(string(macros), "${readsocket{STS_TLSMAP_REPORT_SOCKET}")
	event, _, _ = strings.Cut(event, "\n\n")
	if !strings.HasSuffix(event, "{1s}{}{}}}{}{}{}}}}") { // and no answer or failure becomes a result
		t.Errorf("the event ends otherwise: %q", event)
	}
}

func TestEximIsToldWhereTheDaemonListens(t *testing.T) {
	for listen, want := range map[string]string{
		"inet:127.0.0.1:9000":       "inet:127.0.0.1:9000",
		"inet:[::1]:8461":           "inet:[::1]:8461",
		"unix:/run/sts-tlsmap/sock": "/run/sts-tlsmap/sock",
		"inet:192.0.2.1:8461":       "inet:192.0.2.1:8461",
	} {
		k := newEximKitchen(t, "trixie")
		k.d.Listen = []string{listen}
		r := k.cook(t)
		if !strings.Contains(r.Parts[0].Text, "\nSTS_TLSMAP_SERVER = "+want+"\n") {
			t.Errorf("%s: %s", listen, r.Parts[0].Text)
		}
		if warned := len(r.Warnings) > 0; warned != (listen == "inet:192.0.2.1:8461") {
			t.Errorf("%s: %q", listen, r.Warnings)
		}
	}
}

// What a relay without a smart host that can be protected gets, is nothing:
// its mail is not to wait for the policies of domains whose hosts it does not
// send to.
func TestTheLastRouterToOtherHostsNamesTheSmartHost(t *testing.T) {
	const nothing = "STS_TLSMAP_DOMAINS = :\n"
	for _, c := range []struct {
		option, value, want string
	}{
		{"route_list", "* smtp.provider.example", "STS_TLSMAP_KEY = [smtp.provider.example]\n"},
		{"route_list", "!+local_domains smtp.provider.example byname", "STS_TLSMAP_KEY = [smtp.provider.example]\n"},
		{"route_list", `* "smtp.provider.example::587"`, "STS_TLSMAP_KEY = [smtp.provider.example]\n"},
		{"route_list", "*\tprovider.example/MX", "STS_TLSMAP_KEY = provider.example\n"},
		{"route_data", "smtp.provider.example", "STS_TLSMAP_KEY = [smtp.provider.example]\n"},
		{"route_data", "smtp.provider.example::587 byname", "STS_TLSMAP_KEY = [smtp.provider.example]\n"},
		{"route_data", "${lookup{$sender}lsearch{/etc/smart}}", nothing},
		{"route_list", "*.partner.example mail.partner.example", nothing},
		{"route_list", "* a.example:b.example byname", nothing},
		{"route_list", "* a.example; *.x.example b.example", nothing},
		{"route_list", `* "a.example : b.example"`, nothing},
		{"route_list", "* 192.0.2.1", nothing},
		{"route_list", "* a.example/lmtp", nothing},
		{"route_list", "*", nothing},
	} {
		k := newEximKitchen(t, "trixie")
		r := k.router(t, "dnslookup")
		clear(r)
		r["driver"], r["transport"], r[c.option] = "manualroute", "remote_smtp", c.value
		got := k.cook(t)
		text := got.Parts[0].Text
		if !strings.Contains(text, "\n"+c.want) || c.want != nothing && !strings.Contains(text, "STS_TLSMAP_DOMAINS = ! +local_domains\n") {
			t.Errorf("%s = %s: no %q in %s", c.option, c.value, c.want, text)
		}
		if n := len(got.Warnings); n > 1 || n > 0 != (c.want == nothing) {
			t.Errorf("%s = %s: %q", c.option, c.value, got.Warnings)
		}
	}
}

func TestARouteForSomeDomainsIsNoSmartHost(t *testing.T) {
	k := newEximKitchen(t, "trixie")
	k.c.Routers = slices.Insert(k.c.Routers, 0, recipe.Instance{"partner", map[string]string{
		"driver": "manualroute", "transport": "remote_smtp", "route_list": "*.partner.example mail.partner.example"}})
	r := k.cook(t)
	if r.Parts[0].Text != exim.Macros || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "router partner comes first") {
		t.Errorf("%s, %q", r.Parts[0].Text, r.Warnings)
	}
}

func TestThePortOfASmartHostIsWrittenOnce(t *testing.T) {
	k := newEximKitchen(t, "trixie")
	r := k.router(t, "dnslookup")
	clear(r)
	r["driver"], r["transport"], r["route_list"] = "manualroute", "remote_smtp", "* smtp.provider.example::587"
	named(k.c.Transports, "remote_smtp").Options["port"] = "2525"
	got := k.cook(t)
	if got.Parts[3].Text != "  port = 587\n" {
		t.Errorf("%+v", got.Parts[3])
	}
}

func TestOptionsOfTheSitesTransportAreKept(t *testing.T) {
	k := newEximKitchen(t, "trixie")
	own := named(k.c.Transports, "remote_smtp").Options
	own["dkim_domain"], own["helo_data"] = "relay.example", "$primary_hostname"
	r := k.cook(t)
	if last := r.Parts[len(r.Parts)-1]; last.Text != "  dkim_domain = relay.example\n" {
		t.Errorf("%+v", last)
	}
}

func TestFilterProxyAndImplicitTLSAreKept(t *testing.T) {
	for option, value := range map[string]string{
		"transport_filter": "/usr/local/bin/encrypt", "socks_proxy": "192.0.2.1", "protocol": "smtps",
		"hosts_require_dane": "*.partner.example", "hosts_require_ocsp": "*", "authenticated_sender_force": "true",
	} {
		k := newEximKitchen(t, "trixie")
		own := named(k.c.Transports, "remote_smtp").Options
		own["protocol"] = "" // the default of 4.100; smtp before
		own[option] = value
		r := k.cook(t)
		if last, want := r.Parts[len(r.Parts)-1], "  "+option+" = "+value+"\n"; last.Text != want {
			t.Errorf("%s: %+v, want %q", option, last, want)
		}
	}
}

// Exim's key for a host that fails has the interface and, if it is asked to,
// the address: one of the two has to differ.
func TestFailedHostsAreRememberedForEachTransport(t *testing.T) {
	for _, c := range []struct {
		ownInterface, ownIncludes string
		wantInterface, wantOwn    string
	}{
		{"", "true", "<; 0.0.0.0 ; ::0", ""},
		{"", "false", "<; 0.0.0.0 ; ::0", ""},
		{"192.0.2.5", "true", "192.0.2.5", "  retry_include_ip_address = false\n"},
		{"192.0.2.5", "false", "192.0.2.5", ""},
	} {
		k := newEximKitchen(t, "trixie")
		own := named(k.c.Transports, "remote_smtp").Options
		own["interface"], own["retry_include_ip_address"] = c.ownInterface, c.ownIncludes
		r := k.cook(t)
		if line := "\nSTS_TLSMAP_INTERFACE = " + c.wantInterface + "\n"; !strings.Contains(r.Parts[0].Text, line) {
			t.Errorf("%+v: no %q in %s", c, line, r.Parts[0].Text)
		}
		options := ""
		if len(r.Parts) > 4 {
			options = r.Parts[4].Text
		}
		if options != c.wantOwn || len(r.Warnings) > 0 {
			t.Errorf("%+v: %q, warnings %q", c, options, r.Warnings)
		}
	}
}

func TestSettingsThatUndoTheProtectionAreWarnedOf(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, k *eximKitchen)
		want  string
	}{
		"an earlier router": {func(t *testing.T, k *eximKitchen) {
			k.c.Routers = slices.Insert(k.c.Routers, 0, recipe.Instance{"partners", map[string]string{"driver": "manualroute", "transport": "remote_smtp", "domains": "a.example"}})
		}, "router partners comes first"},
		"an earlier router, installed": {func(t *testing.T, k *eximKitchen) {
			k.install()
			at := slices.IndexFunc(k.c.Routers, func(r recipe.Instance) bool { return r.Name == "sts_tlsmap_ask" })
			k.c.Routers = slices.Insert(k.c.Routers, at, recipe.Instance{"all", map[string]string{"driver": "dnslookup", "transport": "remote_smtp"}})
		}, "router all comes first"},
		"Debian's hubbed_hosts in use": {func(t *testing.T, k *eximKitchen) {
			k.root["etc/exim4/hubbed_hosts"] = &fstest.MapFile{}
		}, "router hubbed_hosts comes first"},
		"no trust-ad": {func(t *testing.T, k *eximKitchen) {
			k.root["etc/resolv.conf"] = &fstest.MapFile{Data: []byte("nameserver 127.0.0.1\n")}
		}, "trust-ad"},
		"a resolver elsewhere": {func(t *testing.T, k *eximKitchen) {
			k.root["etc/resolv.conf"] = &fstest.MapFile{Data: []byte("nameserver 192.0.2.53\noptions trust-ad\n")}
		}, "on another machine"},
		"DNSSEC switched off": {func(t *testing.T, k *eximKitchen) {
			k.c.Text = strings.Replace(k.c.Text, "dns_dnssec_ok = 1", "dns_dnssec_ok = 0", 1)
		}, "dns_dnssec_ok = 0"},
		"built without DANE": {func(t *testing.T, k *eximKitchen) {
			k.c.Support = []string{"GnuTLS"}
		}, "without DANE"},
		"no retry rule":    {func(t *testing.T, k *eximKitchen) { k.c.RetryRule = "" }, "no retry rule"},
		"an impatient one": {func(t *testing.T, k *eximKitchen) { k.c.RetryRule = "* * F,2h,15m; G,6h,1h,1.5" }, "gives up after 6h"},
		"no named list": {func(t *testing.T, k *eximKitchen) {
			k.c.Text = strings.Replace(k.c.Text, "domainlist relay_to_domains", "domainlist others", 1)
		}, "no domainlist relay_to_domains"},
		"no authorities":                     {func(t *testing.T, k *eximKitchen) { delete(k.root, debianCA) }, "certificate authorities"},
		"TLS not required":                   {func(t *testing.T, k *eximKitchen) { k.install()["hosts_require_tls"] = "" }, "hosts_require_tls"},
		"several domains on a connection":    {func(t *testing.T, k *eximKitchen) { k.install()["multi_domain"] = "true" }, "multi_domain"},
		"several messages on a connection":   {func(t *testing.T, k *eximKitchen) { k.install()["hosts_nopass_tls"] = "" }, "hosts_nopass_tls"},
		"TLS avoided":                        {func(t *testing.T, k *eximKitchen) { k.install()["hosts_avoid_tls"] = "*" }, "hosts_avoid_tls"},
		"hosts that fail remembered for all": {func(t *testing.T, k *eximKitchen) { k.install()["interface"] = "" }, "stops all mail"},
		"the own interface installed": {func(t *testing.T, k *eximKitchen) {
			k.install()["interface"] = "192.0.2.5"
			named(k.c.Transports, "remote_smtp").Options["interface"] = "192.0.2.5"
		}, "stops all mail"},
		"mail put off where TLS failed": {func(t *testing.T, k *eximKitchen) {
			k.install()
			k.c.TLSRule = k.c.RetryRule
		}, "before all others"},
		"nothing verified": {func(t *testing.T, k *eximKitchen) { k.install()["tls_verify_certificates"] = "" }, "tls_verify_certificates"},
		"Exim too hasty": {func(t *testing.T, k *eximKitchen) {
			k.install()
			k.d.LookupTimeout = 40 * time.Second
		}, "Exim waits for 30s"},
		"Exim too hasty, in minutes": {func(t *testing.T, k *eximKitchen) {
			k.install()
			k.router(t, "sts_tlsmap_ask")["address_data"] = "${readsocket{x}{y}{1m:cache=yes}}"
			k.d.LookupTimeout = time.Minute
		}, "Exim waits for 1m0s"},
		"mail that is sent on while it comes in": {func(t *testing.T, k *eximKitchen) {
			k.c.Text += "\nwarn control = cutthrough_delivery\n"
		}, "cutthrough_delivery"},
		"a daemon that is down": {func(t *testing.T, k *eximKitchen) {
			k.c.Readsocket = "allowed"
		}, "nobody answered"},
		"somebody else at its place": {func(t *testing.T, k *eximKitchen) {
			k.c.Readsocket = "220 mail.example ESMTP"
		}, "not the daemon's"},
		"a socket that Exim's user cannot write to": {func(t *testing.T, k *eximKitchen) {
			k.d.Listen = k.d.Listen[:1]
			k.root["run/x.sock"] = &fstest.MapFile{Mode: 0o660}
		}, "mode 0660"},
		"local delivery only": {func(t *testing.T, k *eximKitchen) {
			k.root["etc/exim4/update-exim4.conf.conf"] = &fstest.MapFile{Data: []byte("dc_eximconfig_configtype='local'\ndc_use_split_config='true'\n")}
			k.c.Routers = slices.DeleteFunc(k.c.Routers, func(r recipe.Instance) bool { return strings.HasPrefix(r.Name, "dnslookup") })
		}, "local delivery only"},
		"a rehearsal": {func(t *testing.T, k *eximKitchen) { k.d.Maps[0].Enforce = false }, "rehearsal"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newEximKitchen(t, "trixie")
			c.spoil(t, k)
			r := k.cook(t)
			if all := strings.Join(r.Warnings, "\n"); !strings.Contains(all, c.want) || len(r.Warnings) != 1 {
				t.Errorf("warnings %q, want one with %q", r.Warnings, c.want)
			}
		})
	}
}

// At a smart host there is no other domain to be harmed, and the rule would have
// all that waits tried in every queue run.
func TestASmartHostNeedsNoRetryRule(t *testing.T) {
	k := newEximKitchen(t, "trixie")
	k.install()
	k.c.TLSRule = k.c.RetryRule
	dnslookup := k.router(t, "dnslookup")
	clear(dnslookup)
	dnslookup["driver"], dnslookup["transport"], dnslookup["route_list"] = "manualroute", "remote_smtp", "* smtp.provider.example"
	r := k.cook(t)
	if len(r.Warnings) > 0 || slices.ContainsFunc(r.Parts, func(p recipe.Part) bool { return p.Text == exim.Retry }) {
		t.Errorf("%+v", r)
	}
}

func TestQueueRunInOrderIsWarnedOf(t *testing.T) {
	for line, want := range map[string]bool{"": false, "queue_run_in_order": true, "queue_run_in_order = true": true, "queue_run_in_order = false": false} {
		k := newEximKitchen(t, "trixie")
		k.c.Text += "\n" + line + "\n"
		r := k.cook(t)
		if strings.Contains(strings.Join(r.Notes, "\n"), "queue_run_in_order") != want {
			t.Errorf("%q: %q", line, r.Notes)
		}
	}
}

func TestAnEximThatCannotAskGetsNoRecipe(t *testing.T) {
	for want, spoil := range map[string]func(k *eximKitchen){
		"4.96 or later": func(k *eximKitchen) { k.c.Version = recipe.Version{4, 94, 2} },
		"without TLS":   func(k *eximKitchen) { k.c.Support = []string{"DANE"} },
		"readsocket":    func(k *eximKitchen) { k.c.Readsocket = "Failed: not permitted" },
		"no map exim":   func(k *eximKitchen) { k.d.Maps = nil },
		"set listen":    func(k *eximKitchen) { k.d.Listen = nil },
	} {
		k := newEximKitchen(t, "trixie")
		spoil(k)
		if _, err := recipe.Exim(k.c, k.root, k.d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestTheShippedFilesCauseNoWarnings(t *testing.T) {
	k := newEximKitchen(t, "trixie")
	k.install()
	if r := k.cook(t); len(r.Warnings) > 0 {
		t.Errorf("%q", r.Warnings)
	}
}

func TestEximIsRunAndOnlyAsked(t *testing.T) {
	asked := filepath.Join(t.TempDir(), "asked")
	path := fakeMTA(t, `echo "$@" >>`+asked+`
case "$1 $2" in
"-bV "*) echo "Exim version 4.98.2 #2 built"; echo "Support for: GnuTLS DANE"; echo "Configuration file is /etc/exim/exim.conf";;
"-bP routers") printf '\nfirst router:\ndriver = dnslookup\nno_more\nunseen\n';;
"-brt "*) echo "Retry rule: *  *  F,4d,15m;";;
"-be "*) echo allowed;;
esac
`)
	c, err := recipe.ReadExim(context.Background(), path, recipe.Daemon{Listen: []string{"unix:/run/x.sock"}})
	if err != nil {
		t.Fatal(err)
	}
	r := named(c.Routers, "first")
	if c.Version != (recipe.Version{4, 98, 2}) || c.File != "/etc/exim/exim.conf" || r == nil || r.Options["more"] != "false" ||
		r.Options["unseen"] != "true" || r.Options["driver"] != "dnslookup" || c.RetryRule != "*  *  F,4d,15m;" || c.Readsocket != "allowed" {
		t.Errorf("%+v", c)
	}
	text, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "${readsocket{/run/x.sock}{14:exim localhost,}") {
		t.Errorf("Exim was not had ask the daemon: %s", text)
	}
	for line := range strings.Lines(string(text)) {
		if option, _, _ := strings.Cut(line, " "); !slices.Contains([]string{"-bV", "-bV\n", "-bP", "-brt", "-be"}, option) {
			t.Errorf("Exim was run with %q", line)
		}
	}
}

func TestEximTellsOfItsSessionsWhereTheDaemonTakesThem(t *testing.T) {
	k := newEximKitchen(t, "trixie")
	k.d.EximSessions, k.d.ReportSender = "/run/x.sock", "noreply@example.com"
	own := named(k.c.Transports, "remote_smtp").Options
	part := func(event string) recipe.Part {
		own["event_action"] = event
		parts := k.cook(t).Parts
		return parts[len(parts)-1]
	}
	text := k.cook(t).String()
	for _, want := range []string{"\nSTS_TLSMAP_REPORT_SOCKET = /run/x.sock\n", "\nSTS_TLSMAP_REPORT_SENDER = noreply@example.com\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if p := part(""); p.Text != "  event_action = STS_TLSMAP_EVENT\n" || !strings.Contains(p.Where, "remote_smtp") || len(k.cook(t).Warnings) > 0 {
		t.Errorf("%+v, %q", p, k.cook(t).Warnings)
	}
	if p := part("${if eq{${readsocket{/run/x.sock}{y}}}{}{}}"); p.Why != "already so" || p.Text != "" {
		t.Errorf("%+v", p)
	}
	if part("${run{x}}"); !strings.Contains(strings.Join(k.cook(t).Warnings, "\n"), "an event_action of its own") {
		t.Errorf("%q", k.cook(t).Warnings)
	}
	own["event_action"] = ""
	ours := k.install()
	if got := strings.Join(k.cook(t).Warnings, "\n"); !strings.Contains(got, "does not tell the daemon of its TLS sessions at /run/x.sock") {
		t.Errorf("%q", got)
	}
	ours["event_action"] = "${readsocket{/run/x.sock}{y}}"
	if got := strings.Join(k.cook(t).Warnings, "\n"); strings.Contains(got, "does not tell the daemon") {
		t.Errorf("%q", got)
	}
}
