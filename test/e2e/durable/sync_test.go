//go:build e2e

package durable

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// traceTime limits the time until strace writes its last line.
const traceTime = 10 * time.Second

// syncTime is the simulated duration of a sync.
const syncTime = 100 * time.Millisecond

// sharers is the number of domains looked up at once, so that some share a
// commit.
const sharers = 16

// TestAPolicyIsSyncedToDiskBeforeItsLookupIsAnswered checks the daemon's system
// calls. kill -9 cannot show a missing sync, since the kernel's page cache
// survives it.
func TestAPolicyIsSyncedToDiskBeforeItsLookupIsAnswered(t *testing.T) {
	lab := stage.NewLab(t)
	d := newDaemon(t, lab)
	trace := stage.Path("trace")
	// With -D the daemon is our child. Strings are long enough for the pages of
	// a commit. Syncs are delayed: on the stage's tmpfs a commit would end
	// before the next find.
	d.Wrapper = []string{"strace", "-D", "-f", "-yy", "-s", "70000", "-o", trace,
		"-e", "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,fsync,fdatasync,msync",
		"-e", "inject=fdatasync:delay_enter=" + strconv.FormatInt(syncTime.Microseconds(), 10)}
	d.Start(t)
	var domains []string
	var gates []*testlab.Gate
	for i := range sharers {
		domain := fmt.Sprintf("d%d.sync.test", i)
		made := lab.Domain(domain, testlab.With{MX: []string{"mx." + domain}, NoMail: true})
		gates = append(gates, made.Policy.Hold())
		domains = append(domains, domain)
	}
	var lookups sync.WaitGroup
	for _, domain := range domains {
		lookups.Go(func() {
			reply, err := socketmap.Query(t.Context(), daemonAt, "postfix", domain)
			if err != nil || !holds(reply, domain) {
				t.Errorf("the reply for %s is %q (%v)", domain, reply, err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), traceTime)
	defer cancel()
	err := lab.Await(ctx, func() bool {
		return !slices.ContainsFunc(gates, func(g *testlab.Gate) bool { return g.Waiting() == 0 })
	})
	for _, g := range gates {
		g.Open()
	}
	lookups.Wait()
	if err != nil {
		t.Fatal(err)
	}
	d.Stop(t)
	calls := readTrace(t, trace)
	commits := make(map[int]bool)
	for _, domain := range domains {
		commits[checkOrder(t, calls, domain)] = true
	}
	t.Logf("%d policies in %d commits", len(domains), len(commits))
	if len(commits) == sharers {
		t.Error("no commit has two policies, so the test does not cover shared commits")
	}
	if t.Failed() {
		t.Logf("the system calls:\n%s", strings.Join(calls, "\n"))
	}
}

// readTrace returns the lines of a complete trace.
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
		t.Fatalf("incomplete trace:\n%s", text)
	}
	return strings.Split(string(text), "\n")
}

// Lines of strace -f: a thread with a whole call, its start or its end.
var (
	begun   = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>.*$`)
	resumed = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
	offset  = regexp.MustCompile(`, (\d+)(?:\) += \d+| <unfinished \.\.\.>)$`) // of a pwrite64
)

// metaPages is the number of meta pages at the start of the file. A commit ends
// with a write to one of them.
const metaPages = 2

// checkOrder follows one policy through the trace: its page is written, then
// the meta page of the commit, then a sync starts and ends, then the reply is
// written. Lines of other commits may come between. It returns the line of the
// meta page, which is the same for finds that share a commit.
func checkOrder(t *testing.T, calls []string, domain string) (commit int) {
	t.Helper()
	const notYet = -1
	page, meta, synced := notYet, notYet, false
	pending := make(map[string]bool) // threads in a sync that started after the meta page was written
	for i, line := range calls {
		if m := resumed.FindStringSubmatch(line); m != nil {
			synced = synced || pending[m[1]] && succeeded(line)
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
			if meta == notYet {
				break // too early
			}
			if strings.HasSuffix(line, "<unfinished ...>") {
				pending[thread] = true
			} else if succeeded(line) {
				synced = true
			}
		case file == stage.CacheFile && page == notYet:
			if strings.Contains(line, "mx: mx."+domain+`\r\n`) {
				page = i
			}
		case file == stage.CacheFile && meta == notYet:
			if o := offset.FindStringSubmatch(line); o != nil && isMeta(o[1]) {
				meta = i
			}
		case strings.HasPrefix(file, "TCP:") && strings.Contains(line, "OK secure match=mx."+domain+" "):
			if !synced {
				t.Errorf("%s was answered (line %d) before its commit was synced (page line %d, meta page line %d)", domain, i+1, page+1, meta+1)
			}
			return meta
		}
	}
	t.Errorf("the reply for %s is not in the trace", domain)
	return meta
}

// isMeta reports whether an offset is in a meta page.
func isMeta(offset string) bool {
	n, err := strconv.Atoi(offset)
	return err == nil && n < metaPages*os.Getpagesize()
}

// ok is the result of a call without an error. strace aligns it with spaces.
var ok = regexp.MustCompile(`\) += 0\b`)

func succeeded(line string) bool { return ok.MatchString(line) }
