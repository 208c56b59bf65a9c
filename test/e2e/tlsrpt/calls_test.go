//go:build e2e

package tlsrpt

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// scheduling is what Go's runtime does to put threads to sleep and to wake them, and a read
// before there is something: how many of them there are is chance.
var scheduling = regexp.MustCompile(`^\d+ +((futex|epoll_\w+|nanosleep|clock_nanosleep|sched_yield|tgkill|getpid|rt_sig\w+|madvise|restart_syscall)\(|<\.\.\.|---|\+\+\+)|<anon_inode:|= -1 EAGAIN`)

// callsOf returns how many system calls a daemon makes in its life with n lookups of a
// held policy on one connection, but for scheduling.
func callsOf(t *testing.T, lab *testlab.T, tables string, n int) (calls int) {
	t.Helper()
	d := stage.NewDaemon(t, testlab.DaemonConfig{CA: stage.WriteCA(t, lab), Tables: tables})
	trace := stage.Path("calls")
	_ = os.Remove(trace) // of an earlier daemon
	d.Wrapper = []string{"strace", "-D", "-f", "-yy", "-o", trace}
	d.Start(t)
	conn, err := net.Dial("tcp", stage.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const request, reply = "20:postfix counted.test,", "51:OK secure match=mx.counted.test servername=hostname,"
	answer := make([]byte, len(reply))
	for range n {
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != reply {
			t.Fatalf("the reply is %q, %v", answer, err)
		}
	}
	conn.Close()
	d.Stop(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var lines []byte
	if err := stage.Await(ctx, func() bool {
		lines, _ = os.ReadFile(trace)
		return strings.Contains(string(lines), "+++ exited with 0 +++")
	}); err != nil {
		t.Fatalf("no end of the trace: %v", err)
	}
	for line := range strings.Lines(string(lines)) {
		if !scheduling.MatchString(line) {
			calls++
		}
	}
	return calls
}

func TestALookupMakesNoMoreSystemCallsWithTLSReportsThanWithout(t *testing.T) {
	lab := stage.NewLab(t)
	lab.Domain("counted.test", testlab.With{MX: []string{"mx.counted.test"}, NoMail: true})
	on := fmt.Sprintf("[tlsrpt]\ncollect = true\npath = %q\npostfix_socket = %q\n", stage.Path("reports.db"), "unix:"+stage.Path("tlsrpt.sock"))
	const few, many = 1000, 6000
	perLookup := func(tables string) float64 {
		return float64(callsOf(t, lab, tables, many)-callsOf(t, lab, tables, few)) / (many - few)
	}
	without, with := perLookup(""), perLookup(on)
	t.Logf("%.3f system calls a lookup without [tlsrpt], %.3f with it", without, with)
	if without < 1.9 || without > 4 {
		t.Errorf("%.3f calls a lookup are counted: more than to read and to write", without)
	}
	if with > without+0.05 {
		t.Errorf("%.3f calls a lookup with [tlsrpt], %.3f without", with, without)
	}
}
