package recipe_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
)

func TestEachSettingThatUndoesTheProtectionIsWarnedOf(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*kitchen)
		want  string
	}{
		{"any sender switches policies off", func(k *kitchen) { k.p.Settings["tls_required_enable"] = "yes" }, "tls_required_enable = no"},
		{"patterns are not enforced", func(k *kitchen) { k.p.Settings["smtp_tls_enforce_sts_mx_patterns"] = "no" }, "smtp_tls_enforce_sts_mx_patterns = yes"},
		{"a table in front", func(k *kitchen) { k.p.Settings["smtp_tls_policy_maps"] = "hash:/etc/postfix/tls" }, "hash:/etc/postfix/tls is asked first"},
		{"another policy server", func(k *kitchen) { k.p.Settings["smtp_tls_policy_maps"] = "socketmap:inet:127.0.0.1:8642:QUERY" }, "socketmap:inet:127.0.0.1:8642:QUERY is in smtp_tls_policy_maps now, and removed below"},
		{"another one through proxymap", func(k *kitchen) { k.p.Settings["smtp_tls_policy_maps"] = "proxy:tcp:127.0.0.1:1" }, "proxy:tcp:127.0.0.1:1 is in"},
		{"no authorities anywhere", func(k *kitchen) { k.p.Settings["smtp_tls_CAfile"] = ""; k.root = fstest.MapFS{} }, "ca-certificates"},
		{"a CA file that is not there", func(k *kitchen) { k.p.Settings["smtp_tls_CAfile"] = "/nowhere.pem" }, "/nowhere.pem is not there"},
		{"MX errors are ignored", func(k *kitchen) { k.p.Settings["ignore_mx_lookup_error"] = "yes" }, "ignore_mx_lookup_error = no"},
		{"no MX lookups", func(k *kitchen) { k.p.Settings["disable_dns_lookups"] = "yes" }, "disable_dns_lookups"},
		{"a table of old", func(k *kitchen) { k.p.Settings["smtp_tls_per_site"] = "hash:/etc/postfix/sites" }, "smtp_tls_per_site = hash:/etc/postfix/sites"},
		{"a way around policies", func(k *kitchen) { k.p.Settings["smtp_fallback_relay"] = "[relay.example]:2525" }, "smtp_fallback_relay = [relay.example]:2525"},
		{"such a way in master.cf", func(k *kitchen) {
			k.p.Overrides = []recipe.Override{{"smtp/unix", "smtp_fallback_relay", "relay.example"}, {"relay/unix", "smtp_fallback_relay", ""}}
		}, `"-o smtp_fallback_relay=relay.example" for smtp/unix`},
		{"an option in master.cf", func(k *kitchen) {
			k.p.Overrides = []recipe.Override{{"relay/unix", "smtp_tls_policy_maps", ""}, {"smtp/unix", "syslog_name", "x"}}
		}, `"-o smtp_tls_policy_maps=" for relay/unix`},
		{"replies cross a network", func(k *kitchen) { k.d.Listen = []string{"inet:192.0.2.1:8461"} }, "not a loopback address"},
		{"a socket out of the chroot's reach", func(k *kitchen) {
			k.d.Listen = []string{"unix:/run/sts-tlsmap.sock"}
			k.p.Chroot = true
		}, "out of reach"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKitchen(recipe.Version{3, 10, 5})
			tt.spoil(k)
			r := k.cook(t)
			if len(r.Warnings) != 1 || !r.warns(tt.want) {
				t.Errorf("warnings %q, want one with %q", r.Warnings, tt.want)
			}
		})
	}
}

func TestMandatoryTLSStaysMandatory(t *testing.T) {
	for _, tt := range []struct{ level, enforce, peername, want string }{
		{"", "no", "yes", "may"},
		{"none", "yes", "yes", "may"}, // a level goes before the old settings
		{"", "yes", "yes", "verify"},
		{"", "YES", "no", "encrypt"},
		{"encrypt", "yes", "yes", ""},
	} {
		k := newKitchen(recipe.Version{3, 7, 11})
		k.p.Settings["smtp_tls_security_level"] = tt.level
		k.p.Settings["smtp_enforce_tls"], k.p.Settings["smtp_tls_enforce_peername"] = tt.enforce, tt.peername
		if got := k.cook(t).value("smtp_tls_security_level"); got != tt.want {
			t.Errorf("%+v: smtp_tls_security_level = %q", tt, got)
		}
	}
}

func TestPostfixValuesAreReadInAnyCase(t *testing.T) {
	for setting, want := range map[string]string{
		"tls_required_enable = Yes":             "tls_required_enable = no",
		"smtp_tls_enforce_sts_mx_patterns = NO": "smtp_tls_enforce_sts_mx_patterns = yes",
		"ignore_mx_lookup_error = YES":          "ignore_mx_lookup_error = no",
		"disable_dns_lookups = yEs":             "disable_dns_lookups",
		"smtp_dns_support_level = DNSSEC":       "",
		"smtp_tls_security_level = DANE":        "",
		"tls_append_default_CA = YES":           "",
	} {
		name, value, _ := strings.Cut(setting, " = ")
		k := newKitchen(recipe.Version{3, 10, 5}).withDANE()
		k.p.Settings[name] = value
		if name == "tls_append_default_CA" {
			k.p.Settings["smtp_tls_CAfile"] = ""
		}
		r := k.cook(t)
		if want == "" && len(r.Warnings) > 0 || want != "" && !r.warns(want) {
			t.Errorf("%s: warnings %q, want %q", setting, r.Warnings, want)
		}
		impossible := name == "ignore_mx_lookup_error"
		if got := r.value("smtp_tls_policy_maps"); strings.Contains(got, "dane") == impossible {
			t.Errorf("%s: the map is %s", setting, got)
		}
		if name == "tls_append_default_CA" && r.value("smtp_tls_CAfile") != "" {
			t.Errorf("%s: a file is set all the same", setting)
		}
	}
}

func TestDANEInMasterCFAloneIsOverriddenAndTheRecipeSaysSo(t *testing.T) {
	k := newKitchen(recipe.Version{3, 10, 5})
	k.p.Overrides = []recipe.Override{{"relay/unix", "smtp_tls_security_level", "dane"}}
	if r := k.cook(t); len(r.Warnings) != 1 || !r.warns("for relay/unix") || !r.warns("overrides DANE") {
		t.Errorf("warnings %q", r.Warnings)
	}
	k = newKitchen(recipe.Version{3, 10, 5}).withDANE()
	k.p.Overrides = []recipe.Override{{"relay/unix", "smtp_tls_security_level", "dane-only"}}
	if r := k.cook(t); len(r.Warnings) != 1 || r.warns("overrides DANE") {
		t.Errorf("with a map with DANE: warnings %q", r.Warnings)
	}
}

func TestACAFilePathMayContainDotDot(t *testing.T) {
	k := newKitchen(recipe.Version{3, 10, 5})
	k.p.Settings["smtp_tls_CAfile"] = "/etc/postfix/.." + strings.TrimPrefix(k.p.Settings["smtp_tls_CAfile"], "/etc")
	if r := k.cook(t); len(r.Warnings) != 0 {
		t.Errorf("warnings %q", r.Warnings)
	}
}

func TestImpossibleDANEIsWarnedOfAndGetsAPlainMap(t *testing.T) {
	resolvConf := func(text string) func(*kitchen) {
		return func(k *kitchen) { k.root["etc/resolv.conf"] = &fstest.MapFile{Data: []byte(text)} }
	}
	old := func(spoil func(*kitchen)) func(*kitchen) {
		return func(k *kitchen) { k.p.Version = recipe.Version{3, 5, 0}; spoil(k) }
	}
	tests := []struct {
		name  string
		spoil func(*kitchen)
		want  string
	}{
		{"dnssec off", func(k *kitchen) { k.p.Settings["smtp_dns_support_level"] = "" }, "smtp_dns_support_level = dnssec"},
		{"dnssec not asked for", func(k *kitchen) { k.p.Settings["smtp_dns_support_level"] = "enabled" }, "smtp_dns_support_level = dnssec"},
		{"no DNS", func(k *kitchen) { k.p.Settings["smtp_host_lookup"] = "native" }, "smtp_host_lookup = dns"},
		{"MX errors are ignored", func(k *kitchen) { k.p.Settings["ignore_mx_lookup_error"] = "yes" }, "ignore_mx_lookup_error = no"},
		{"resolver defaults", func(k *kitchen) { k.p.Settings["smtp_dns_resolver_options"] = "res_defnames" }, "res_defnames"},
		{"resolver search", func(k *kitchen) { k.p.Settings["smtp_dns_resolver_options"] = "RES_DNSRCH" }, "res_dnsrch"},
		{"no trust-ad", old(resolvConf("nameserver 127.0.0.1\noptions edns0\n")), "/etc/resolv.conf has no \"options trust-ad\""},
		{"trust-ad in a comment", old(resolvConf("nameserver 127.0.0.1\n#options trust-ad\n")), "trust-ad"},
		{"no resolv.conf", old(func(k *kitchen) { delete(k.root, "etc/resolv.conf") }), "trust-ad"},
		{"no trust-ad in the chroot", func(k *kitchen) {
			k.p.Version = recipe.Version{3, 5, 0}
			k.p.Chroot = true
			k.root["var/spool/postfix/etc/resolv.conf"] = &fstest.MapFile{Data: []byte("nameserver 127.0.0.1\n")}
		}, "/var/spool/postfix/etc/resolv.conf has no"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKitchen(recipe.Version{3, 10, 5}).withDANE()
			tt.spoil(k)
			r := k.cook(t)
			if !r.warns(tt.want) || !r.warns("DANE is impossible") {
				t.Errorf("warnings %q, want one with %q", r.Warnings, tt.want)
			}
			if got := r.value("smtp_tls_policy_maps"); !strings.HasPrefix(got, "socketmap:inet:127.0.0.1:8461:postfix") || strings.Contains(got, "dane") {
				t.Errorf("the map is %s: dane-only would stop the mail", got)
			}
		})
	}
}

func TestAResolverAcrossANetworkIsWarnedOf(t *testing.T) {
	k := newKitchen(recipe.Version{3, 10, 5}).withDANE()
	k.root["etc/resolv.conf"] = &fstest.MapFile{Data: []byte("nameserver 192.0.2.53\nnameserver ::1\noptions trust-ad\n")}
	r := k.cook(t)
	if len(r.Warnings) != 1 || !r.warns("192.0.2.53 in /etc/resolv.conf") {
		t.Errorf("warnings %q", r.Warnings)
	}
	if got := r.value("smtp_tls_policy_maps"); !strings.HasSuffix(got, ":postfix-dane-tlsrpt") {
		t.Errorf("the map is %s", got)
	}
}

func TestDifferentTrustInTheResolverIsWarnedOf(t *testing.T) {
	for text, want := range map[string][]string{
		"nameserver 127.0.0.1\n": nil,
		"":                       nil, // libc asks this machine
		"nameserver 192.0.2.53\noptions trust-ad\n":     {"Postfix trusts it"},
		"nameserver 192.0.2.53\n# options trust-ad\n":   {"Postfix trusts it", "sts-tlsmap does not"},
		"nameserver ::1\nnameserver 2001:db8::53 # x\n": {"Postfix trusts it", "sts-tlsmap does not"},
	} {
		k := newKitchen(recipe.Version{3, 7, 0}).withDANE()
		k.root["etc/resolv.conf"] = &fstest.MapFile{Data: []byte(text)}
		r := k.cook(t)
		if len(r.Warnings) != len(want) {
			t.Errorf("%q: warnings %q", text, r.Warnings)
		}
		for _, w := range want {
			if !r.warns(w) {
				t.Errorf("%q: warnings %q, want one with %q", text, r.Warnings, w)
			}
		}
		if got := r.value("smtp_tls_policy_maps"); !strings.HasSuffix(got, ":postfix-dane") {
			t.Errorf("%q: the map is %s", text, got)
		}
	}
}

func TestExistingTablesKeepTheirPlace(t *testing.T) {
	const ours = "socketmap:inet:127.0.0.1:8461:postfix-tlsrpt"
	for before, want := range map[string]string{
		"":                                     ours,
		ours:                                   ours,
		"hash:/a":                              "hash:/a, " + ours,
		"hash:/a, " + ours:                     "hash:/a, " + ours,
		ours + " hash:/a":                      ours + ", hash:/a",
		"hash:/a\tcdb:/b,texthash:/c":          "hash:/a, cdb:/b, texthash:/c, " + ours,
		"socketmap:inet:127.0.0.1:8461:QUERY":  ours,
		"hash:/a socketmap:unix:/x:y, cdb:/b":  "hash:/a, " + ours + ", cdb:/b",
		"inline:{ {example.com=none}, b=may }": "inline:{ {example.com=none}, b=may }, " + ours,
		"socketmap:inet:a:1:x, " + ours:        ours,
	} {
		k := newKitchen(recipe.Version{3, 10, 5})
		k.p.Settings["smtp_tls_policy_maps"] = before
		r := k.cook(t)
		if got := r.value("smtp_tls_policy_maps"); got != want {
			t.Errorf("from %q: %q, want %q", before, got, want)
		}
		if (r.Parts[0].Why == "(already set)") != (before == want) {
			t.Errorf("from %q: %q", before, r.Parts[0].Why)
		}
	}
}

func TestOurOwnTableUnderAnotherNameIsNoWarning(t *testing.T) {
	k := newKitchen(recipe.Version{3, 10, 5})
	k.p.Settings["smtp_tls_policy_maps"] = "socketmap:inet:127.0.0.1:8461:postfix"
	if r := k.cook(t); len(r.Warnings) != 0 || !strings.Contains(r.String(), "8461:postfix is replaced") {
		t.Errorf("%s", r)
	}
}

func TestTheSecurityLevelIsRaisedWhereThereIsNone(t *testing.T) {
	for level, want := range map[string]string{"": "may", "none": "may", "None": "may", "may": "", "encrypt": "", "dane": "", "secure": ""} {
		k := newKitchen(recipe.Version{3, 7, 0})
		k.p.Settings["smtp_tls_security_level"] = level
		if got := k.cook(t).value("smtp_tls_security_level"); got != want {
			t.Errorf("level %q: set to %q, want %q", level, got, want)
		}
	}
}

func TestACAFileIsFoundWhereNoneIsSet(t *testing.T) {
	for _, tt := range []struct {
		name           string
		file, path, ok string
		have           []string
		want           string
		chroot         bool
	}{
		{"Debian", "", "", "no", []string{debianCA}, "/" + debianCA, false},
		{"Fedora", "", "", "no", []string{"etc/pki/tls/certs/ca-bundle.crt"}, "/etc/pki/tls/certs/ca-bundle.crt", false},
		{"one is set", "/x.pem", "", "no", []string{"x.pem", debianCA}, "", false},
		{"the one that is set is not there", "/x.pem", "", "no", []string{debianCA}, "/" + debianCA, false},
		{"a folder is set", "", "/etc/ssl/certs", "no", []string{debianCA}, "", false},
		{"a folder that is not in the chroot", "", "/etc/ssl/certs", "no", []string{debianCA}, "/" + debianCA, true},
		{"a folder that is in the chroot", "", "/etc/ssl/certs", "no", []string{debianCA, "var/spool/postfix/etc/ssl/certs/x.0"}, "", true},
		{"OpenSSL's own are used", "", "", "yes", []string{debianCA}, "", false},
	} {
		k := newKitchen(recipe.Version{3, 7, 0})
		k.p.Settings["smtp_tls_CAfile"], k.p.Settings["smtp_tls_CApath"], k.p.Settings["tls_append_default_CA"] = tt.file, tt.path, tt.ok
		k.p.Chroot = tt.chroot
		k.root = fstest.MapFS{}
		for _, name := range tt.have {
			k.root[name] = &fstest.MapFile{}
		}
		if got := k.cook(t).value("smtp_tls_CAfile"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestTheEndpointIsOneThatPostfixReaches(t *testing.T) {
	for _, tt := range []struct {
		listen string
		chroot bool
		want   string
	}{
		{"inet:127.0.0.1:8461", false, "inet:127.0.0.1:8461"},
		{"inet:localhost:8461", false, "inet:localhost:8461"},
		{"inet:[::1]:8461", false, "inet:[::1]:8461"},
		{"inet:0.0.0.0:8461", false, "inet:127.0.0.1:8461"},
		{"inet:[::]:8461", false, "inet:[::1]:8461"},
		{"inet:127.9.9.9:1", false, "inet:127.9.9.9:1"},
		{"unix:/run/s.sock inet:127.0.0.1:8461", false, "inet:127.0.0.1:8461"},
		{"unix:/run/s.sock", false, "unix:/run/s.sock"},
		{"unix:/var/spool/postfix/sts-tlsmap/s.sock", true, "unix:sts-tlsmap/s.sock"},
		{"unix:/run/s.sock unix:/var/spool/postfix/s.sock", true, "unix:s.sock"},
		{"unix:/run/s.sock inet:192.0.2.1:1", true, "inet:192.0.2.1:1"},
		{"unix:/run/s.sock inet:192.0.2.1:1", false, "unix:/run/s.sock"},
		{"unix:/var/spool/postfix2/s.sock", false, "unix:/var/spool/postfix2/s.sock"},
	} {
		k := newKitchen(recipe.Version{3, 7, 0})
		k.d.Listen, k.p.Chroot = strings.Fields(tt.listen), tt.chroot
		if got, want := k.cook(t).value("smtp_tls_policy_maps"), "socketmap:"+tt.want+":postfix"; got != want {
			t.Errorf("listen %s: %s, want %s", tt.listen, got, want)
		}
	}
	k := newKitchen(recipe.Version{3, 7, 0})
	k.d.Listen = nil
	if _, err := recipe.Postfix(k.p, k.root, k.d); err == nil {
		t.Error("no endpoint at all, and no error")
	}
}

func TestRFC8461_3_4_ARelayhostIsAskedForByItsName(t *testing.T) {
	k := newKitchen(recipe.Version{3, 7, 0})
	k.p.Settings["relayhost"] = "[smart.example.com]:587"
	if s := k.cook(t).String(); !strings.Contains(s, "[smart.example.com]:587") || !strings.Contains(s, "3.4") {
		t.Errorf("%s", s)
	}
}
