package docs

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
)

// unset is the default of a key that has none.
const unset = "unset"

func TestEveryKeyIsListedOnceUnderItsSection(t *testing.T) {
	var listed []string
	for _, r := range rows(t, "configuration.md") {
		key := strings.Trim(r.cells[0], "`")
		listed = append(listed, key)
		section := "At the top"
		if i := strings.LastIndexByte(key, '.'); i >= 0 {
			section = "[" + key[:i] + "]"
		}
		if r.section != section || len(r.cells) != 3 || r.cells[2] == "" {
			t.Errorf("%s stands under %q, want %q: %q", key, r.section, section, r.cells)
		}
	}
	slices.Sort(listed)
	if want := config.Keys(); !slices.Equal(listed, want) {
		t.Errorf("listed: %q\nwant:   %q", listed, want)
	}
}

func TestAFileOfTheListedDefaultsIsTheDefaultConfiguration(t *testing.T) {
	var top, tables strings.Builder
	section := ""
	for _, r := range rows(t, "configuration.md") {
		key, value := strings.Trim(r.cells[0], "`"), strings.Trim(r.cells[1], "`")
		if value == unset {
			continue
		}
		i := strings.LastIndexByte(key, '.')
		if i < 0 {
			fmt.Fprintf(&top, "%s = %s\n", key, value)
			continue
		}
		if key[:i] != section {
			section = key[:i]
			fmt.Fprintf(&tables, "[%s]\n", section)
		}
		fmt.Fprintf(&tables, "%s = %s\n", key[i+1:], value)
	}
	text := top.String() + tables.String()
	got, err := config.Parse("/etc/sts-tlsmap/sts-tlsmap.toml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want, err := config.Parse("/etc/sts-tlsmap/sts-tlsmap.toml", []byte("[map.NAME]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*config.Config{got, want} { // an empty list is one, written or not
		if len(c.DNS.Servers) == 0 {
			c.DNS.Servers = nil
		}
		if len(c.Exempt.Domains) == 0 {
			c.Exempt.Domains = nil
		}
		if len(c.TLSRPT.Skip) == 0 {
			c.TLSRPT.Skip = nil
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the defaults of the page are not those of the program:\n%+v\n%+v", got, want)
	}
}

// The program says itself what a key takes when it is given something else.
func TestTheRangeOfEachKeyIsTheProgrammes(t *testing.T) {
	ranged := regexp.MustCompile(`expected a (?:whole number|duration|size) from (\S+ to [^\s,]+)`)
	found := 0
	for _, r := range rows(t, "configuration.md") {
		key := strings.Trim(r.cells[0], "`")
		_, err := config.Parse("f.toml", []byte(key+" = 2026-01-01\n"))
		if err == nil {
			t.Fatalf("%s takes a date", key)
		}
		m := ranged.FindStringSubmatch(err.Error())
		if m == nil {
			continue
		}
		if found++; !strings.Contains(r.cells[2], m[1]) {
			t.Errorf("%s takes %s, the page says %q", key, m[1], r.cells[2])
		}
	}
	if found < 10 {
		t.Errorf("only %d keys have a range", found)
	}
}

func TestWhatIsNotInThisVersionYetIsRefused(t *testing.T) {
	examples := map[string]string{
		"metrics":         `metrics = "inet:127.0.0.1:9461"`,
		"map.NAME.format": "[map.NAME]\nformat = \"exim\"",
	}
	for _, r := range rows(t, "configuration.md") {
		key := strings.Trim(r.cells[0], "`")
		notYet := strings.Contains(strings.ToLower(r.cells[2]), "not in this version yet")
		text, ok := examples[key]
		if notYet && !ok {
			t.Errorf("%s: no example to try", key)
		}
		if _, err := config.Parse("f.toml", []byte(text)); ok && (err != nil) != notYet {
			t.Errorf("%s: the page says %q, the program %v", key, r.cells[2], err)
		}
	}
}
