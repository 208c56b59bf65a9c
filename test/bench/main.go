// Command bench measures what the sidecar costs, and compares it with the
// least that the same work could cost: a bare server or client in Go that does
// nothing but the input and output. Run it with
//
//	go run ./test/bench              # every row; writes docs/performance.md
//	go run ./test/bench -row lookup  # the rows whose name holds "lookup"; writes nothing
//
// It exits with 1 if a row misses its bound.
//
// # How it measures
//
// A row has two sides, ours and the limit, that stand under the same load.
// Each side is a process of its own: this program, started again with the
// side's name, or another program such as the daemon. What counts is the CPU
// time of that process alone, user and system, as the kernel's scheduler
// counts it; the load generator is not in it. The sides are measured in turn,
// in pairs, after a warm-up, and a row's value is the median of the pairs'
// ratios. What else the machine does meets both sides, but not alike: let it do
// nothing else. A row may also be a plain figure, such as memory.
//
// The daemon is the real program, built when the first row wants it. Rows with
// a million policies work on a file that is made once, in a minute, and kept in
// the user's cache folder (million.go); rows that change it work on a copy.
// Policy hosts are a testlab's, on port 443 of loopback addresses: that takes
// root. The backlog alone is simulated, since it takes fourteen hours; its
// keeper and store are the real ones (backlog.go).
//
// # How to add a row
//
// Write a file named after the row, with one function of the type rowFunc, and
// add it to the table in rows.go. In it:
//
//   - start the sides with b.startSide (a function in the table in sides.go,
//     run in a process of its own), b.startDaemon, b.startLab or b.start (any
//     command);
//   - put them under load with newLoad, or with what the row needs;
//   - return b.pairs(b.pairCount, ours, limit), where each of the two does its share of the
//     work once and returns the CPU time it took per piece of work, or return a
//     figure of your own.
//
// Everything that is started ends with the row.
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
		if o.err != nil || o.result.value > o.row.bound {
			os.Exit(1)
		}
	}
}

// run runs the rows whose names hold only, in the order of the table.
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
