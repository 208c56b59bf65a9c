// Command bench measures the cost of the sidecar and compares it with the least
// possible cost of the same work: a bare server or client in Go that does only
// the input and output.
//
//	go run ./test/bench              # all rows; writes docs/performance.md
//	go run ./test/bench -row lookup  # rows with "lookup" in their names; writes no file
//
// It exits with 1 if a row could not be measured. The table says which limits
// hold.
//
// # How it measures
//
// A row compares two sides under the same load: ours and the limit. Each side
// is its own process: this program, started with the side's name, or another
// program such as the daemon. Only the CPU time of that process counts, user
// and system, by the kernel's scheduler. The sides run in turn, in pairs, after
// a warm-up, and a row's value is the median over the pairs. Other work on the
// machine does not affect both sides alike, so leave it idle. Some rows are
// single figures, such as memory.
//
// The daemon is the real program. Rows with a million policies use a file that
// is created once, in a minute, and kept in the user's cache directory
// (million.go); rows that change it use a copy. Policy hosts listen on port 443
// of loopback addresses, which requires root. Only the backlog is simulated,
// since it takes fourteen hours (backlog.go).
//
// # How to add a row
//
// Write a file named after the row with one rowFunc, and add it to the table in
// rows.go. In it:
//
//   - start the sides with b.startSide (a function in the table in process.go),
//     b.startDaemon, b.startLab or b.start (any command);
//   - load them with newLoad or with what the row needs;
//   - return b.pairs(ours, limit, ratio), where ours and limit do their share of the
//     work and return the CPU time for one piece of it, or return another figure.
//
// All processes end with the row.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == sideCommand {
		if err := runSide(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench: side", os.Args[2]+":", err)
			os.Exit(1)
		}
		return
	}
	only := flag.String("row", "", "run only the rows whose `name` holds this, and write no file")
	pairs := flag.Int("pairs", defaultPairs, "measure so many `pairs` after the warm-up; at least 7")
	file := flag.String("write", "docs/performance.md", "the `file` for the results")
	flag.Parse()
	if *pairs < leastPairs || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	shop, err := newWorkshop(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	before := loadOfMinute()
	outcomes := run(ctx, shop, *only, *pairs)
	if err := shop.close(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	if len(outcomes) == 0 {
		fmt.Fprintf(os.Stderr, "bench: no row's name holds %q\n", *only)
		os.Exit(2)
	}
	m := thisMachine(before)
	fmt.Printf("\n%s\n\n%s", m, table(outcomes))
	if *only == "" {
		if err := os.WriteFile(*file, page(outcomes, m), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		fmt.Println("\nwritten to", *file)
	}
	for _, o := range outcomes {
		if o.err != nil {
			os.Exit(1)
		}
	}
}

// run runs the rows whose names contain only, in the order of the table.
func run(ctx context.Context, shop *workshop, only string, pairs int) []outcome {
	var outcomes []outcome
	for _, r := range rows {
		if !strings.Contains(r.name, only) || ctx.Err() != nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ...\n", r.name)
		o := outcome{row: r}
		o.result, o.err = runRow(ctx, shop, r, pairs)
		fmt.Fprintf(os.Stderr, "%s: %s\n", r.name, o)
		outcomes = append(outcomes, o)
	}
	return outcomes
}

func runRow(ctx context.Context, shop *workshop, r row, pairs int) (result, error) {
	b := &bench{ctx: ctx, shop: shop, pairCount: pairs}
	defer b.end()
	return r.run(b)
}
