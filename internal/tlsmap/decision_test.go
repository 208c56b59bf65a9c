package tlsmap

import (
	"os"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// tableUnder returns the cells of the table that follows a line.
func tableUnder(t *testing.T, page, line string) [][]string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "\n"+line+"\n")
	if !ok {
		t.Fatalf("the page has no line %q", line)
	}
	var rows [][]string
	for l := range strings.Lines(rest) {
		l = strings.TrimSpace(l)
		if !strings.HasPrefix(l, "|") {
			if rows != nil {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(l, "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("no table under %q", line)
	}
	return rows[2:]
}

func TestTheTablesOfTheDecisionAreThoseOfTheCode(t *testing.T) {
	text, err := os.ReadFile("../../docs/decision.md")
	if err != nil {
		t.Fatal(err)
	}
	underEnforce := map[string]string{}
	for _, row := range tableUnder(t, string(text), "## DANE, under an enforced policy") {
		if len(row) != 4 || underEnforce[row[0]] != "" {
			t.Fatalf("row %q", row)
		}
		underEnforce[row[0]] = row[3]
	}
	plain, first := map[string]string{}, map[string]string{}
	for _, row := range tableUnder(t, string(text), "## The policy") {
		if len(row) != 4 || plain[row[0]] != "" {
			t.Fatalf("row %q", row)
		}
		plain[row[0]], first[row[0]] = row[2], row[3]
	}
	if len(underEnforce) != int(daneStates) || len(plain) != int(policyStates) {
		t.Errorf("%d states of DANE in the page, %d of the policy; the code has %d and %d", len(underEnforce), len(plain), daneStates, policyStates)
	}
	for p := range policyStates {
		for d := range daneStates {
			for _, m := range []mta.Map{{}, {Testing: true}, {DANE: true}, {DANE: true, Testing: true}} {
				row := p
				if p == PolicyTesting && m.Testing { // as the page says above the table
					row = PolicyEnforced
				}
				want := plain[row.String()]
				if m.DANE {
					if want = first[row.String()]; want == "as DANE has it, below" {
						want = underEnforce[d.String()]
					}
				}
				if got := Decide(p, &m, d).String(); got != want {
					t.Errorf("policy %s, DANE %s, map with DANE %v, testing %v: the code says %s, the page %s", p, d, m.DANE, m.Testing, got, want)
				}
			}
		}
	}
	if underEnforce[dane.Undecided.String()] != "TEMP" {
		t.Error("the page and the code agree on a weaker reply where nothing is known")
	}
}
