package docs

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The standards whose rules the page lists, with the number of their rules.
var standards = []struct {
	heading string
	prefix  string // of the names of tests
	rules   int
}{
	{"RFC 8461, MTA-STS", "TestRFC8461_", 23},
	{"RFC 7672, DANE for SMTP", "TestRFC7672_", 5},
	{"RFC 8460, TLS reporting", "TestRFC8460_", 20},
}

func TestEveryRuleHasATestNamedAfterItsSectionThatExists(t *testing.T) {
	tr := parseTree(t, "internal", "cmd", "test")
	table := rows(t, "conformance.md")
	for _, s := range standards {
		number := 0
		for _, r := range table {
			if r.section != s.heading {
				continue
			}
			number++
			if len(r.cells) != 5 || r.cells[0] != strconv.Itoa(number) {
				t.Fatalf("%s: row %d is %q", s.heading, number, r.cells)
			}
			checkRule(t, tr, s.prefix, r.cells)
		}
		if number != s.rules {
			t.Errorf("%s: %d rows, want %d", s.heading, number, s.rules)
		}
	}
}

// checkRule checks one row: number, sections, rule, where, tests.
func checkRule(t *testing.T, tr *tree, prefix string, cells []string) {
	t.Helper()
	name := prefix + cells[0]
	checkPlaces(t, tr, name, cells[3])
	tests := quoted(cells[4])
	for _, section := range strings.Split(cells[1], ", ") {
		want := prefix + strings.ReplaceAll(section, ".", "_") + "_"
		if !slices.ContainsFunc(tests, func(test string) bool { return strings.HasPrefix(test, want) }) {
			t.Errorf("%s: no test of section %s", name, section)
		}
	}
	for _, test := range tests {
		if !tr.tests[test] {
			t.Errorf("%s: there is no test %s", name, test)
		}
	}
}

var place = regexp.MustCompile("`([A-Za-z.]+)`|in ((?:internal|cmd)/[a-z0-9_/]+\\.go)")

// checkPlaces checks that each function stands in the file named after it.
func checkPlaces(t *testing.T, tr *tree, name, cell string) {
	t.Helper()
	var names []string
	files := 0
	for _, m := range place.FindAllStringSubmatch(cell, -1) {
		if m[1] != "" {
			names = append(names, m[1])
			continue
		}
		files++
		if len(names) == 0 {
			t.Errorf("%s: nothing is named in %s", name, m[2])
		}
		for _, f := range names {
			if !slices.Contains(tr.funcs[m[2]], f) {
				t.Errorf("%s: there is no %s in %s", name, f, m[2])
			}
		}
		names = nil
	}
	if files == 0 || len(names) > 0 {
		t.Errorf("%s: %q names no file for %q", name, cell, names)
	}
}
