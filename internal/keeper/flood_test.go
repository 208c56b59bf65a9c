package keeper

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fill puts policies into a store that were fetched at a time, in use since.
func fill(t testing.TB, store Store, tm timing, n int, name string, maxAge time.Duration, at time.Time) {
	t.Helper()
	text := []byte(policyText("enforce", maxAge, "mx.example.net"))
	p, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for done := 0; done < n; {
		ops := make([]cache.Op, 0, 2000)
		for ; done < n && len(ops) < cap(ops); done++ {
			r := &cache.Record{
				Domain: fmt.Sprintf(name, done), ID: "1", Mode: policy.ModeEnforce, Text: text,
				Fetched: at, Expires: at.Add(maxAge), Checked: at, Used: at,
			}
			r.Ready = prepare(p)
			tm.drawFetch(r)
			tm.drawCheck(r, at)
			tm.schedule(r, at, false)
			ops = append(ops, cache.Op{Put: r})
		}
		if _, err := store.Write(ops); err != nil {
			t.Fatal(err)
		}
	}
}

// wake has the refresher look at a store that was filled behind its back.
func (s *site) wake() {
	s.check.nudge()
	s.fetch.nudge()
}

// memoryDir is a folder whose fsync costs nothing, where there is one: these
// tests make many commits, and what they measure is in the bubble's time.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "sts-tlsmap-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// An attack is a flood of policies that are asked for all the time, beside as
// many honest ones in use.
type attack struct {
	maxAge time.Duration
	bend   func(*fakeHost)
	each   int     // policies of the attacker's, and honest ones
	scale  float64 // of the refresher's slots and rates
	// lookups has the attacker's domains looked up all the time, and not only
	// marked as used: each then has its record rechecked, too.
	lookups bool
}

// run lets the attack go on for longer than the honest policies live, and
// returns how many of them have expired.
func (a attack) run(t *testing.T, path string) (expired int) {
	const life = shortLived
	net := newFakeNet()
	honest, hostile := make([]string, a.each), make([]string, a.each)
	for i := range a.each {
		honest[i], hostile[i] = fmt.Sprintf("h%d.example", i), fmt.Sprintf("a%d.example", i)
		net.enforced(honest[i], life)
		h := fakeHost{id: "1", text: policyText("enforce", a.maxAge, "mx.example.net")}
		a.bend(&h)
		net.set(hostile[i], h)
	}
	s := openSite(t, path, net, func(o *Options) {
		o.CheckRate, o.FetchRate = 50*a.scale, 20*a.scale
		o.RefreshConcurrency = int(32 * a.scale)
	})
	now := time.Now()
	fill(t, s.disk, s.timing(), a.each, "h%d.example", life, now)
	fill(t, s.disk, s.timing(), a.each, "a%d.example", a.maxAge, now)
	s.wake()
	const round = 10 * time.Minute
	for i := range int(26 * time.Hour / round) {
		if i%6 == 0 {
			for i := range a.each {
				s.used.mark(s.hash(honest[i]))
				s.used.mark(s.hash(hostile[i]))
			}
		}
		if a.lookups {
			for _, domain := range hostile {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // it waits for nothing
				var h Held
				_ = s.Lookup(ctx, []byte(domain), &h)
				cancel()
			}
		}
		time.Sleep(round)
	}
	synctest.Wait()
	if asked := net.total("a"); asked < a.each {
		t.Errorf("the attacker's %d policies were fetched %d times: that is no attack", a.each, asked)
	}
	for _, domain := range honest {
		if r, err := s.Get(domain); err != nil || !time.Now().Before(r.Expires) {
			expired++
		}
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	return expired
}

func TestNoFloodOfShortLivedPoliciesStarvesTheHonestOnes(t *testing.T) {
	small, full, fullScale := 2000, 20000, 1.0
	if raceDetector { // ten times slower: .ci/run has the full size, too
		small, full, fullScale = 400, 2000, 0.1
	}
	tarpit := func(h *fakeHost) { h.tarpit = true }
	slow := func(h *fakeHost) { h.takes = 29 * time.Second }
	attacks := map[string]attack{
		"two days on tarpits, 20,000":          {2 * day, tarpit, full, fullScale, false},
		"max_age 1500 on tarpits, looked up":   {25 * time.Minute, tarpit, small, 0.1, true},
		"max_age 1500, quick, always overdue":  {25 * time.Minute, func(*fakeHost) {}, small, 0.1, false},
		"max_age 3600, slow but successful":    {time.Hour, slow, small, 0.1, false},
		"a day and a second, slow":             {day + time.Second, slow, small, 0.1, false},
		"two days, new ids, looked up":         {2 * day, func(h *fakeHost) { h.id, h.tarpit = "2", true }, small, 0.1, true},
		"TXT lookups that fail, beside it all": {2 * day, func(h *fakeHost) { h.recordErr, h.tarpit = policy.ResultDNS, true }, small, 0.1, false},
	}
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(memoryDir(t), "cache.db")
			synctest.Test(t, func(t *testing.T) {
				if n := a.run(t, path); n > 0 {
					t.Errorf("%d of %d honest policies have expired", n, a.each)
				}
			})
		})
	}
}

// After a long stop everything is due. It is worked off at the configured
// rate, those with the least life left first.
func TestAfterALongStopTheLeastLifeGoesFirstAtTheConfiguredRate(t *testing.T) {
	const n = 2000
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSite(t, path, net, nil)
		for i := range n {
			net.enforced(fmt.Sprintf("long%d.example", i), 60*day)
			net.enforced(fmt.Sprintf("short%d.example", i), 8*day)
		}
		stopped := time.Now().Add(-7 * day)
		fill(t, s.disk, s.timing(), n, "long%d.example", 60*day, stopped)
		fill(t, s.disk, s.timing(), n, "short%d.example", 8*day, stopped)
		s.wake()

		time.Sleep(n / 20 * time.Second)
		synctest.Wait()
		fetched := func(name string) (count int) {
			for i := range n {
				_, f := net.asked(fmt.Sprintf(name, i))
				count += f
			}
			return count
		}
		short, long := fetched("short%d.example"), fetched("long%d.example")
		if total := short + long; total < n*95/100 || total > n+40 {
			t.Errorf("%d fetches in %d s at 20 a second", total, n/20)
		}
		if long > n/20 {
			t.Errorf("%d with much life left were fetched before %d with little", long, n-short)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}
