package probe

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// WriteJSON writes an object for each host, and the domain's last.
func (r *Result) WriteJSON(w io.Writer) error {
	for _, h := range r.hosts {
		if err := text.WriteJSON(w, h); err != nil {
			return err
		}
	}
	return text.WriteJSON(w, r)
}

// WriteText writes all that is known, in words.
func (r *Result) WriteText(w io.Writer) error {
	var out strings.Builder
	indent := "  "
	row := func(label string, words ...string) {
		words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
		if value := strings.Join(words, ": "); value != "" && value != string(DoesNotApply) {
			fmt.Fprintf(&out, "%s%-13s %s\n", indent, label, text.Printable(value))
		}
	}
	outcome := func(label string, o *Outcome) {
		if o != nil {
			row(label, string(o.State), string(o.Result), o.Reason)
		}
	}
	fmt.Fprintf(&out, "%s: %s\n", text.Printable(r.Domain), r.Verdict)
	row("why", r.Reason)
	row("policy", r.policyWords())
	row("under policy", string(r.UnderPolicy))
	row("under DANE", string(r.UnderDANE))
	row("if enforced", string(r.IfEnforced), r.ifEnforced)
	if r.OlderPostfix != "" {
		row("older Postfix", string(r.OlderPostfix), "before 3.10.5, it takes any name that the policy lists, on any host")
	}
	indent = "    "
	for _, h := range r.hosts {
		fmt.Fprintf(&out, "  %s\n", text.Printable(h.Host))
		row("address", strings.TrimSuffix(h.Address+", "+h.TLS, ", "))
		if h.STARTTLS.State != Passes {
			outcome("STARTTLS", &h.STARTTLS)
		}
		if c := h.Certificate; c != nil {
			row("certificate", "for "+strings.Join(c.Names, ", "))
			row("valid", "from "+text.Clock(c.NotBefore)+" to "+text.Clock(c.NotAfter))
			row("issuer", c.Issuer)
		}
		row("TLSA", h.DANE)
		outcome("by policy", h.UnderPolicy)
		outcome("by DANE", h.UnderDANE)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (r *Result) policyWords() string {
	words := cmp.Or(r.Policy, "none: "+r.NoPolicy) + map[string]string{"held": ", held by the daemon or its file", "live": ", as published now"}[r.PolicyFrom]
	if r.Exempt {
		words += "; the domain is exempt, so it is not applied"
	}
	return words
}

// A Table counts the results of many domains.
type Table struct{ Domains, Enforced, Testing, DANE, Waiting, Unknown, IfEnforced int }

// Add counts a Result. It returns a line if mail to the domain would not go out, now or
// if a testing policy were enforced.
func (t *Table) Add(r *Result) (line string) {
	verdict, why := string(r.Verdict), r.Reason
	if r.Verdict == Delivered && r.IfEnforced == Waits {
		verdict, why = "waits if enforced", r.ifEnforced
	}
	t.Domains++
	for n, counts := range map[*int]bool{
		&t.Enforced: r.Policy == "enforce", &t.Testing: r.Policy == "testing", &t.DANE: r.UnderDANE != DoesNotApply,
		&t.Waiting: r.Verdict == Waits, &t.Unknown: r.Verdict == NotKnown, &t.IfEnforced: verdict != string(r.Verdict),
	} {
		if counts {
			*n++
		}
	}
	if verdict == string(Delivered) {
		return ""
	}
	return fmt.Sprintf("%-17s  %-7s  %-30s  %s\n", verdict, cmp.Or(r.Policy, "-"), text.Printable(r.Domain), text.Printable(why))
}

// String sums up.
func (t *Table) String() string {
	return fmt.Sprintf("domains: %d; %d enforced, %d testing, %d with DANE; %d would wait, %d unknown; %d more would wait if testing policies were enforced",
		t.Domains, t.Enforced, t.Testing, t.DANE, t.Waiting, t.Unknown, t.IfEnforced)
}
