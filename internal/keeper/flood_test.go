package keeper_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// fill puts policies into a store that were fetched at a time, used since, and
// are due within a day.
func fill(t testing.TB, store keeper.Store, n int, name string, maxAge time.Duration, at time.Time) {
	t.Helper()
	text := []byte(policyText("enforce", maxAge, "mx.example.net"))
	p, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for done := 0; done < n; {
		ops := make([]cache.Op, 0, 2000)
		for ; done < n && len(ops) < cap(ops); done++ {
			due := at.Add(min(maxAge/4, 17*time.Hour) + time.Duration(done)*min(maxAge/4, 7*time.Hour)/time.Duration(n))
			r := &cache.Record{
				Domain: fmt.Sprintf(name, done), ID: "1", Mode: policy.ModeEnforce, Text: text, Match: matchList(p),
				Fetched: at, Expires: at.Add(maxAge), Checked: at, Used: at.Add(time.Second), Regular: true,
				FetchAt: due, FetchUnusedAt: due, Due: due, Lane: cache.LaneNormal,
			}
			ops = append(ops, cache.Op{Put: r})
		}
		if _, err := store.Write(ops); err != nil {
			t.Fatal(err)
		}
	}
}

// An attack is a flood of policies that are asked for all the time, beside as
// many honest ones in use.
type attack struct {
	maxAge time.Duration
	bend   func(*fakeHost)
	each   int           // policies of the attacker's, and honest ones
	scale  float64       // of the refresher's workers and rate
	every  time.Duration // the attacker's domains are looked up
}

// run lets the attack go on for longer than the honest policies live, and
// returns how many of them have expired.
func (a attack) run(t *testing.T, path string) (expired int) {
	const life = day
	net := newFakeNet()
	honest, hostile := make([]string, a.each), make([]string, a.each)
	for i := range a.each {
		honest[i], hostile[i] = fmt.Sprintf("h%d.example", i), fmt.Sprintf("a%d.example", i)
		net.enforced(honest[i], life)
		h := fakeHost{id: "1", text: policyText("enforce", a.maxAge, "mx.example.net")}
		a.bend(&h)
		net.set(hostile[i], h)
	}
	s := openSite(t, path, net, func(o *keeper.Options) {
		o.FetchRate = 20 * a.scale
		o.RefreshConcurrency = int(32 * a.scale)
	})
	now := time.Now()
	fill(t, s.disk, a.each, "h%d.example", life, now)
	fill(t, s.disk, a.each, "a%d.example", a.maxAge, now)
	const round = 10 * time.Minute
	for i := range int(26 * time.Hour / round) {
		if i%int(a.every/round) == 0 {
			for _, domain := range hostile {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // it waits for nothing
				var h keeper.Held
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

func attacks(each int, scale float64) map[string]attack {
	tarpit := func(h *fakeHost) { h.tarpit = true }
	slow := func(h *fakeHost) { h.takes = 29 * time.Second }
	return map[string]attack{
		"two days on tarpits":                  {2 * day, tarpit, each, scale, time.Hour},
		"max_age 1500 on tarpits":              {25 * time.Minute, tarpit, each, scale, 10 * time.Minute},
		"max_age 1500, quick, always overdue":  {25 * time.Minute, func(*fakeHost) {}, each, scale, 10 * time.Minute},
		"max_age 3600, slow but successful":    {time.Hour, slow, each, scale, 10 * time.Minute},
		"a day and a second, slow":             {day + time.Second, slow, each, scale, time.Hour},
		"two days, new ids, tarpits":           {2 * day, func(h *fakeHost) { h.id, h.tarpit = "2", true }, each, scale, 10 * time.Minute},
		"TXT lookups that fail, beside it all": {2 * day, func(h *fakeHost) { h.recordErr, h.tarpit = policy.ResultDNS, true }, each, scale, time.Hour},
	}
}

func runAttacks(t *testing.T, attacks map[string]attack) {
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

// The other attacks, and more domains, are in slow_test.go.
func TestNoSmallFloodOfPoliciesStarvesTheHonestOnes(t *testing.T) {
	const name = "two days on tarpits"
	runAttacks(t, map[string]attack{name: attacks(100, 0.04)[name]})
}

// After a long stop everything is due. It is worked off at the configured
// rate, those with the least life left first.
func TestAfterALongStopTheLeastLifeGoesFirstAtTheConfiguredRate(t *testing.T) {
	const n = 500
	path := filepath.Join(memoryDir(t), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		s := openSite(t, path, net, nil)
		for i := range n {
			net.enforced(fmt.Sprintf("long%d.example", i), 60*day)
			net.enforced(fmt.Sprintf("short%d.example", i), 8*day)
		}
		stopped := time.Now().Add(-7 * day)
		fill(t, s.disk, n, "long%d.example", 60*day, stopped)
		fill(t, s.disk, n, "short%d.example", 8*day, stopped)
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		s = openSite(t, path, net, nil)
		time.Sleep(n / 20 * time.Second)
		synctest.Wait()
		short, long := net.total("short"), net.total("long")
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
