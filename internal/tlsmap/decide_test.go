package tlsmap_test

import (
	"os"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// Every state, and one past the last of each.
const (
	policyStates = tlsmap.PolicyEnforced + 1
	daneStates   = dane.NotValidating + 1
)

func TestUnknownStatesAreDeferred(t *testing.T) {
	for _, m := range []mta.Map{{}, {DANE: true}, {DANE: true, Testing: true}} {
		if got := tlsmap.Decide(policyStates, &m, dane.Usable); got != tlsmap.Defer {
			t.Errorf("an unknown state of the policy: %v", got)
		}
	}
	if got := tlsmap.Decide(tlsmap.PolicyEnforced, &mta.Map{DANE: true}, daneStates); got != tlsmap.Defer {
		t.Errorf("an unknown state of DANE: %v", got)
	}
	var zero struct {
		p tlsmap.PolicyState
		d dane.State
		v tlsmap.Verdict
	}
	if got := tlsmap.Decide(zero.p, &mta.Map{}, zero.d); got != tlsmap.Defer {
		t.Errorf("a policy state that nobody set: %v", got)
	}
	if got := tlsmap.Decide(tlsmap.PolicyEnforced, &mta.Map{DANE: true}, zero.d); got != tlsmap.Defer || zero.v != tlsmap.Defer {
		t.Errorf("a DANE state that nobody set: %v", got)
	}
}

func TestRFC8461_5_OnlyEnforceIsApplied(t *testing.T) {
	for p, want := range map[tlsmap.PolicyState]tlsmap.Verdict{tlsmap.PolicyNone: tlsmap.StandAside, tlsmap.PolicyTesting: tlsmap.StandAside, tlsmap.PolicyEnforced: tlsmap.Secure} {
		if got := tlsmap.Decide(p, &mta.Map{}, dane.Undecided); got != want {
			t.Errorf("mode %v: %v, want %v", p, got, want)
		}
	}
}

func TestRFC8461_2_DANEIsNotOverridden(t *testing.T) {
	m := mta.Map{DANE: true}
	for _, d := range []dane.State{dane.Usable, dane.LookupFailed, dane.Undecided} {
		if got := tlsmap.Decide(tlsmap.PolicyEnforced, &m, d); got == tlsmap.Secure {
			t.Errorf("DANE %v: MTA-STS goes over it", d)
		}
	}
}

// The words of docs/decision.md.
var (
	policyWords = [policyStates]string{
		tlsmap.PolicyUnreadable: "unreadable", tlsmap.PolicyAbsent: "absent", tlsmap.PolicyNone: "none",
		tlsmap.PolicyTesting: "testing", tlsmap.PolicyEnforced: "enforce",
	}
	verdictWords = [...]string{tlsmap.Defer: "TEMP", tlsmap.StandAside: "NOTFOUND", tlsmap.Secure: "OK secure", tlsmap.DANEOnly: "OK dane-only"}
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

func TestTheDecisionTablesMatchTheCode(t *testing.T) {
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
				if p == tlsmap.PolicyTesting && m.Testing { // as the page says above the table
					row = tlsmap.PolicyEnforced
				}
				want := plain[policyWords[row]]
				if m.DANE {
					if want = first[policyWords[row]]; want == "as DANE has it, below" {
						want = underEnforce[d.String()]
					}
				}
				withPatterns := want
				if before, after, both := strings.Cut(want, "`; `"); both {
					want = before
					withPatterns, both = strings.CutSuffix(after, "` on the tlsrpt maps")
					if !both {
						t.Fatalf("the page says %q", after)
					}
				}
				// Other settings play no part in the decision.
				for _, same := range []mta.Map{m, {DANE: m.DANE, Testing: m.Testing, TLSRPT: true, Servername: true, Enforce: true, Name: "x"}} {
					want := want
					if same.TLSRPT {
						want = withPatterns
					}
					if got := verdictWords[tlsmap.Decide(p, &same, d)]; got != want {
						t.Errorf("policy %v, DANE %v, map %+v: the code says %v, the page %v", p, d, same, got, want)
					}
				}
			}
		}
	}
	if underEnforce[dane.Undecided.String()] != "TEMP" {
		t.Error("the page and the code agree on a weaker reply where nothing is known")
	}
}
