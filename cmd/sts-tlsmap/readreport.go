package main

import (
	"context"
	"fmt"
	"os"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reader"
)

const maxReadProblems = 20 // that are named

// percent returns a share in words; a small one is not none.
func percent(n, all uint64) string {
	share := 100 * float64(n) / float64(max(1, all))
	if n > 0 && share < 0.1 {
		return "below 0.1%"
	}
	return fmt.Sprintf("%.1f%%", share)
}

// readReport is -read-report: what reports that others sent say. It needs neither a
// configuration nor the daemon.
func (a *app) readReport(context.Context) (int, error) {
	var totals reader.Totals
	var err error // of writing
	var r reader.Reader
	r.Report = func(place string, report *reader.Report) {
		totals.Add(report)
		if a.flags.json && err == nil {
			err = text.WriteJSON(a.stdout, struct {
				Place string     `json:"place"`
				Day   tlsrpt.Day `json:"day"`
				*reader.Report
			}{place, report.Day(), report})
		}
	}
	r.Problem = func(place string, err error) {
		if r.Problems <= maxReadProblems {
			a.say("%s: %s", text.Printable(place), text.Printable(err.Error()))
		}
	}
	for _, name := range a.flags.args {
		if name == "-" {
			r.Stream("standard input", os.Stdin)
		} else {
			r.Read(name)
		}
	}
	if r.Problems > maxReadProblems {
		a.say("%s more", numbered(r.Problems-maxReadProblems, "problem"))
	}
	if !a.flags.json && r.Reports > 0 && err == nil {
		if err = totals.WriteText(a.stdout); err == nil {
			_, err = fmt.Fprintf(a.stdout, "reports: %d; duplicates: %d; files and messages: %d; sessions: %d, %d failed (%s)\n",
				r.Reports, r.Duplicates, r.Inputs, totals.Sessions, totals.Failed, percent(totals.Failed, totals.Sessions))
		}
	}
	switch {
	case err != nil:
		return 0, err
	case totals.Failed > 0:
		return exitNotFound, nil
	case r.Problems > 0:
		return exitFailed, nil
	case r.Reports == 0:
		a.say("no TLS report is there")
		return exitFailed, nil
	}
	return exitDone, nil
}
