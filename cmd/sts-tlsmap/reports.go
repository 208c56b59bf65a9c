package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

// views calls each with the days of a domain, or of all. With -json it prints them. The code
// is exitNotFound if there are none.
func (a *app) views(ctx context.Context, domain string, each func(reporting.View)) (code int, err error) {
	code = exitNotFound
	err = a.client.TLS(ctx, domain, func(v reporting.View) error {
		code = exitDone
		if a.flags.json {
			return text.WriteJSON(a.stdout, v)
		}
		each(v)
		return nil
	})
	return code, err
}

// table prints rows of cells, tab-separated, in columns. Without rows it says that there are none.
func (a *app) table(head string, rows []string, none string) (int, error) {
	if len(rows) == 0 {
		a.say("%s", none)
		return exitNotFound, nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, head+"\n"+strings.Join(rows, "\n"))
	return exitDone, w.Flush()
}

// tls is -tls: the destinations with TLS failures by harm, or the days of one.
func (a *app) tls(ctx context.Context) (int, error) {
	switch {
	case len(a.flags.args) == 1:
		return a.tlsOf(ctx, a.flags.args[0])
	case a.flags.json:
		return a.views(ctx, "", nil)
	}
	o, err := a.client.Destinations(ctx)
	if err != nil {
		return 0, err
	}
	sessions := uint64(0)
	for _, day := range o.ByDay {
		sessions += day.All
	}
	if sessions > 0 && o.Failed == 0 {
		fmt.Fprintf(a.stdout, "no TLS session failed, of %d in the last %d days\n", sessions, len(o.Days))
		return exitDone, nil
	}
	var rows []string
	for _, f := range o.Worst {
		since, results := string(f.Since), fmt.Sprint(f.Results)
		if f.New {
			since += " (new)"
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d\t%d\t%s\t%s\t%s", f.Domain, f.Policies(), f.Failures(), f.All, since, f.Last, strings.Trim(results, "[]")))
	}
	code, err := a.table("DOMAIN\tPOLICY\tFAILED\tSESSIONS\tSINCE\tLAST\tWHAT", rows, fmt.Sprintf("no TLS session of the last %d days is known", len(o.Days)))
	if more := o.Failed - len(o.Worst); more > 0 {
		fmt.Fprintf(a.stdout, "and %s more; with -json, all are printed\n", numbered(more, "destination"))
	}
	if !o.Complete {
		a.say("there are more destinations than were read; with -json, all are printed")
	}
	return code, err
}

// tlsOf prints the days of one domain.
func (a *app) tlsOf(ctx context.Context, arg string) (int, error) {
	domain, err := canonical(arg)
	if err != nil {
		return 0, err
	}
	var rows []string
	code, err := a.views(ctx, domain, func(v reporting.View) {
		for _, p := range v.Policies {
			all := p.Summary.Successful + p.Summary.Failed
			policy := text.Printable(strings.Join(append([]string{string(p.Policy.Type)}, p.Policy.Strings...), ", "))
			bar := strings.Repeat("#", int((20*p.Summary.Failed+max(all, 1)-1)/max(all, 1))) // any failure shows
			rows = append(rows, fmt.Sprintf("%s\t%s\t%d\t%d\t%s", v.Day, policy, p.Summary.Failed, all, bar))
			for _, d := range p.Details {
				rows = append(rows, fmt.Sprintf("\t\t%d\t\t%s", d.Sessions, detailWords(d)))
			}
		}
	})
	if err != nil || a.flags.json {
		return code, err
	}
	return a.table("DAY\tPOLICY\tFAILED\tSESSIONS\tWHAT", rows, "no TLS session with "+domain+" is known")
}

// detailWords say how sessions failed.
func detailWords(d tlsrpt.Detail) string {
	words := string(d.Result)
	if d.MXHost != "" {
		words += " at " + d.MXHost
	}
	if d.Reason != "" {
		words += ": " + d.Reason
	}
	return text.Printable(words)
}

// report is -report: the deliveries, or the report of one domain's day.
func (a *app) report(ctx context.Context) (int, error) {
	switch {
	case a.flags.suppress != "":
		return a.suppress(ctx)
	case a.flags.send:
		return a.send(ctx)
	}
	if len(a.flags.args) > 0 {
		return a.reportOf(ctx)
	}
	var rows []string
	code, err := a.views(ctx, "", func(v reporting.View) {
		var failed, sessions uint64
		for _, p := range v.Policies {
			failed, sessions = failed+p.Summary.Failed, sessions+p.Summary.Successful+p.Summary.Failed
		}
		row := fmt.Sprintf("%s\t%s\t%d\t%d", v.Day, v.Domain, failed, sessions)
		if len(v.Deliveries) == 0 {
			rows = append(rows, row+"\tcollected\t")
		}
		for _, d := range v.Deliveries {
			what := d.To
			if d.Reason != "" {
				what = strings.TrimSpace(what + " (" + d.Reason + ")")
			}
			rows = append(rows, row+"\t"+string(d.State)+"\t"+text.Printable(what))
		}
	})
	if err != nil || a.flags.json {
		return code, err
	}
	return a.table("DAY\tDOMAIN\tFAILED\tSESSIONS\tSTATE\tTO", rows, "no TLS session is known")
}

// reportOf prints the JSON of a report.
func (a *app) reportOf(ctx context.Context) (int, error) {
	domain, err := canonical(a.flags.args[0])
	if err != nil {
		return 0, err
	}
	day, err := dayOf(strings.Join(a.flags.args[1:], ""))
	if err != nil {
		return 0, err
	}
	r, err := a.client.Report(ctx, domain, day)
	if err != nil {
		return 0, err
	}
	if r.ID == "" {
		return 0, errors.New("the daemon knows no such report")
	}
	encoder := json.NewEncoder(a.stdout)
	encoder.SetIndent("", "  ")
	return exitDone, encoder.Encode(r)
}

// dayOf returns the day that an argument stands for: yesterday if it is empty.
func dayOf(arg string) (tlsrpt.Day, error) {
	now := time.Now()
	switch day := tlsrpt.Day(arg); {
	case arg == "", arg == "yesterday":
		return tlsrpt.DayOf(now.AddDate(0, 0, -1)), nil
	case arg == "today":
		return tlsrpt.DayOf(now), nil
	case day.Begin().IsZero():
		return "", hint(fmt.Errorf("%q is not a day", arg), "write it as %s, today or yesterday", tlsrpt.DayOf(now))
	default:
		return day, nil
	}
}

// send is -report -send: the reports of a day now, and what came of each.
func (a *app) send(ctx context.Context) (code int, err error) {
	domain := ""
	if len(a.flags.args) > 0 {
		if domain, err = canonical(a.flags.args[0]); err != nil {
			return 0, err
		}
	}
	day, err := dayOf(a.flags.day)
	if err != nil {
		return 0, err
	}
	before := 0
	err = a.client.SendReports(ctx, domain, day, func(s reporting.Sent) error {
		switch s.State {
		case tlsrpt.Accepted:
		case tlsrpt.Suppressed:
			code = max(code, exitNotFound)
		default:
			code = exitFailed
		}
		switch {
		case a.flags.json:
			return text.WriteJSON(a.stdout, s)
		case s.Before && domain == "":
			before++
		default:
			fmt.Fprintln(a.stdout, sentWords(s))
		}
		return nil
	})
	if before > 0 {
		fmt.Fprintf(a.stdout, "accepted before, and not sent again: %s\n", numbered(before, "report"))
	}
	return code, err
}

func sentWords(s reporting.Sent) string {
	words := "not sent: "
	switch {
	case s.Before:
		words = "was accepted at " + text.Clock(s.Changed) + ", and is not sent again"
	case s.State == tlsrpt.Accepted:
		words = "accepted"
	case s.State == tlsrpt.Planned:
		words = "will be tried again at " + text.Clock(s.Next) + ": "
	case s.State != tlsrpt.Suppressed:
		words = string(s.State) + ": "
	}
	return text.Printable(strings.TrimSpace(s.Domain+" "+s.To) + ": " + words + s.Reason)
}

// suppress is -report -suppress: no reports to an address for a time.
func (a *app) suppress(ctx context.Context) (int, error) {
	long, ok := config.ParseDuration(a.flags.span)
	if !ok {
		return 0, hint(fmt.Errorf("-for %q is not a duration", a.flags.span), "write -for 30d or 12h; -for 0 sends reports again")
	}
	name, err := a.client.Suppress(ctx, a.flags.suppress, long)
	if err != nil {
		return 0, err
	}
	words := "reports are sent again"
	if now := time.Now(); long > 0 {
		words = "no reports until " + text.Moment(now.Add(long), now)
	}
	fmt.Fprintf(a.stdout, "%s: %s\n", text.Printable(name), words)
	return exitDone, nil
}
