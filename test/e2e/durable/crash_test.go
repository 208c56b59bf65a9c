//go:build e2e

package durable

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	usualRounds = 100
	clients     = 16                    // each looks up new domains all the time
	maxAnswers  = 100                   // in a round before the kill
	maxDelay    = 10 * time.Millisecond // then, to hit any moment of a commit
	servers     = 8                     // addresses of policy hosts
	crashDomain = "crash.test"
)

// kills is the environment variable for the number of kills.
const kills = "STS_TLSMAP_E2E_KILLS"

// TestEveryPolicyThatWasAnsweredOutlivesKillMinus9 kills the daemon at random
// moments while it discovers domains. After each restart it cannot reach any
// DNS, so its answers must come from disk.
func TestEveryPolicyThatWasAnsweredOutlivesKillMinus9(t *testing.T) {
	lab := stage.NewLab(t)
	manyDomains(t, lab)
	d := newDaemon(t, lab)
	rounds := usualRounds
	if text := os.Getenv(kills); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", kills, err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)

	var next atomic.Int64 // number of the next new domain
	var all []string
	d.Start(t)
	for range rounds {
		s := stream(t.Context(), &next)
		s.await(t, 1+random.IntN(maxAnswers))
		<-time.After(time.Duration(random.Int64N(int64(maxDelay))))
		d.Kill(t)
		// Ten such starts in a row would count as damage of the file.
		if err := os.Remove(stage.CacheFile + ".starts"); err != nil {
			t.Fatal(err)
		}
		answered := s.stop()
		all = append(all, answered...)

		lab.DNS.Break("*", "", testlab.ServFail)
		d.Start(t)
		if lost := missing(t, answered); len(lost) > 0 {
			t.Fatalf("%d of %d answered policies are lost: %v", len(lost), len(answered), lost)
		}
		lab.DNS.Mend("*", "")
	}
	d.Kill(t)
	t.Logf("%d policies answered in %d rounds", len(all), rounds)

	listed, code := d.Run(t, "-cache")
	if code != 0 {
		t.Fatalf("-cache without a daemon exits with %d", code)
	}
	words := make(map[string]bool)
	for word := range strings.FieldsSeq(listed) {
		words[word] = true
	}
	for _, domain := range all {
		if !words[domain] {
			t.Errorf("-cache does not list %s", domain)
		}
	}
}

// manyDomains creates every d<number>.crash.test as an honest domain.
func manyDomains(t *testing.T, lab *testlab.T) {
	var addrs []string
	for range servers {
		s := lab.PolicyServer("")
		addrs = append(addrs, s.Addr.String())
		s.Fallback(func(name string) *testlab.PolicyHost {
			domain := strings.TrimPrefix(name, "mta-sts.")
			h := s.NewHost(name)
			if err := h.Present(testlab.CertGood); err != nil {
				return nil // the handshake fails, and with it the test
			}
			h.SetPolicy(testlab.PolicyText("enforce", 24*time.Hour, "mx."+domain))
			return h
		})
	}
	lab.DNS.Func(crashDomain, func(name string, qtype uint16) []dns.RR {
		var text string
		switch label, _, _ := strings.Cut(name, "."); {
		case label == "_mta-sts" && qtype == dns.TypeTXT:
			text = fmt.Sprintf(`%s 300 IN TXT "v=STSv1; id=1;"`, name)
		case label == "mta-sts" && qtype == dns.TypeA:
			text = fmt.Sprintf("%s 300 IN A %s", name, addrs[len(name)%servers])
		default:
			return []dns.RR{}
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			return nil
		}
		return []dns.RR{rr}
	})
}

// A flow is a stream of lookups of new domains.
type flow struct {
	end      context.CancelFunc
	running  sync.WaitGroup
	mu       sync.Mutex
	answered []string // domains answered with their policy
}

// stream makes clients look up one new domain after another until the daemon
// stops answering.
func stream(ctx context.Context, next *atomic.Int64) *flow {
	ctx, end := context.WithCancel(ctx)
	f := &flow{end: end}
	for range clients {
		f.running.Go(func() {
			for {
				domain := fmt.Sprintf("d%d.%s", next.Add(1), crashDomain)
				reply, err := socketmap.Query(ctx, daemonAt, "postfix", domain)
				if err != nil {
					return
				}
				if holds(reply, domain) {
					f.mu.Lock()
					f.answered = append(f.answered, domain)
					f.mu.Unlock()
				}
			}
		})
	}
	return f
}

// await waits for n lookups answered with a policy.
func (f *flow) await(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := stage.Await(ctx, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.answered) >= n
	})
	if err != nil {
		t.Fatalf("the daemon does not answer %d lookups with a policy: %v", n, err)
	}
}

// stop ends the stream and returns the answered domains.
func (f *flow) stop() []string {
	f.end()
	f.running.Wait()
	return f.answered
}

// missing returns the domains without a policy in the daemon.
func missing(t *testing.T, domains []string) (lost []string) {
	t.Helper()
	for _, domain := range domains {
		reply, err := socketmap.Query(t.Context(), daemonAt, "postfix", domain)
		if err != nil {
			t.Fatalf("asking for %s after the restart: %v", domain, err)
		}
		if !holds(reply, domain) {
			lost = append(lost, domain)
		}
	}
	return lost
}

// holds reports whether the reply enforces the domain's policy.
func holds(reply, domain string) bool {
	return strings.HasPrefix(reply, "OK secure match=mx."+domain+" ")
}
