//go:build e2e

package durable

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// traceTime is how long strace may take to write its last line.
const traceTime = 10 * time.Second

// TestAPolicyIsSyncedToDiskBeforeItsLookupIsAnswered looks at the system calls
// of the daemon: kill -9 does not show a sync that is missing, since the
// kernel's page cache outlives the process.
func TestAPolicyIsSyncedToDiskBeforeItsLookupIsAnswered(t *testing.T) {
	lab := newLab(t)
	d := stage.NewDaemon(t, config(t, lab))
	trace := stage.Path("trace")
	// -D: the daemon is our child, and strace is a bystander.
	d.Trace = []string{"strace", "-D", "-f", "-yy", "-s", "300", "-o", trace,
		"-e", "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,fsync,fdatasync,msync"}
	d.Start(t)
	var domains []string
	for i := range 10 {
		domain := fmt.Sprintf("d%d.sync.test", i)
		lab.Domain(domain, testlab.With{MX: []string{"mx." + domain}, NoMail: true})
		reply, err := socketmap.Query(t.Context(), endpoint, "postfix", domain)
		if err != nil || !holds(reply, domain) {
			t.Fatalf("the reply for %s is %q (%v)", domain, reply, err)
		}
		domains = append(domains, domain)
	}
	d.Stop(t)
	calls := readTrace(t, trace)
	from := 0
	for _, domain := range domains {
		from = checkOrder(t, calls, from, domain)
	}
	if t.Failed() {
		t.Logf("the system calls:\n%s", strings.Join(calls, "\n"))
	}
}

// readTrace returns the lines of a trace that is complete.
func readTrace(t *testing.T, path string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), traceTime)
	defer cancel()
	var text []byte
	err := stage.Await(ctx, func() bool {
		text, _ = os.ReadFile(path)
		return strings.Contains(string(text), "+++ exited with 0 +++")
	})
	if err != nil {
		t.Fatalf("the trace is not complete:\n%s", text)
	}
	return strings.Split(string(text), "\n")
}

// A line of strace -f: a thread, and a call whole, its beginning or its end.
var (
	begun   = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>.*$`)
	resumed = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
)

// checkOrder looks from line from on for the reply about the domain, and says
// whether all that was written to the cache before was synced before. It
// returns the line after the reply.
func checkOrder(t *testing.T, calls []string, from int, domain string) int {
	t.Helper()
	writes := 0                     // to the cache so far
	pending := make(map[string]int) // thread -> writes, when the sync that it is in began
	synced := 0                     // writes that a sync has covered that is complete
	for i, line := range calls[from:] {
		if m := resumed.FindStringSubmatch(line); m != nil {
			if covered, ok := pending[m[1]]; ok && succeeded(line) {
				synced = max(synced, covered)
			}
			delete(pending, m[1])
			continue
		}
		m := begun.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		thread, call, file := m[1], m[2], m[3]
		switch {
		case file == stage.CacheFile && strings.HasSuffix(call, "sync"):
			if strings.HasSuffix(line, "<unfinished ...>") {
				pending[thread] = writes
			} else if succeeded(line) {
				synced = writes
			}
		case file == stage.CacheFile:
			writes++
		case strings.HasPrefix(file, "TCP:") && strings.Contains(line, "OK secure match=mx."+domain+" "):
			if writes == 0 || synced < writes {
				t.Errorf("%s is answered (line %d) when %d of %d writes to the cache are synced", domain, from+i+1, synced, writes)
			}
			return from + i + 1
		}
	}
	t.Errorf("the reply for %s is not in the trace", domain)
	return from
}

func succeeded(line string) bool { return strings.Contains(line, ") = 0") }
