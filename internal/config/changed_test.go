package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
)

func TestEachKeyThatHasChangedIsNamedAsInTheFile(t *testing.T) {
	var want []string
	for _, k := range config.Keys() {
		if k != "fetch.ca_file" && k != "exempt.file" && !strings.HasPrefix(k, "map.") { // everything does not set these two
			want = append(want, k)
		}
	}
	want = append(want, "[map.postfix]", "[map.postfix-dane]", "[map.rehearsal]", "[map.zrelay]")
	for _, files := range [][2]string{{"", everything}, {everything, ""}} {
		got := changed(t, files[0], files[1])
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	if got := changed(t, everything, everything); len(got) != 0 {
		t.Errorf("of the same file: %s", got)
	}
}

func TestAnotherSpellingIsNoChange(t *testing.T) {
	for _, test := range []struct{ was, is, want string }{
		{"dns.servers = []", "", ""},
		{"cache.max_size = \"1GiB\"", "[cache]\nmax_size = \"1024MiB\"", ""},
		{"[map.postfix]\nenforce = true", "", ""},
		{"dns.trust_ad = true", "dns.trust_ad = true", ""},
		{"dns.trust_ad = true", "", "dns.trust_ad"},
		{"[map.x]", "", "[map.x]"},
		{"[map.QUERY]\nenforce = false", "", "[map.QUERY]"},
		{"[map.postfix-dane]\nenforce = false", "", "[map.postfix-dane]"},
	} {
		if got := strings.Join(changed(t, test.was, test.is), " "); got != test.want {
			t.Errorf("from %q to %q: got %q, want %q", test.was, test.is, got, test.want)
		}
	}
}

func changed(t *testing.T, was, is string) []string {
	t.Helper()
	a, err := config.Parse("/etc/f", []byte(was))
	if err != nil {
		t.Fatal(err)
	}
	b, err := config.Parse("/etc/f", []byte(is))
	if err != nil {
		t.Fatal(err)
	}
	return config.Changed(a, b)
}
