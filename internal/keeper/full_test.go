package keeper_test

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// Nothing of a domain waits for a disk that is full for hours: a policy that has
// expired is discovered anew, one that has changed is followed, and it can be
// refreshed and forgotten.
func TestFullDiskForHours(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("used.example", time.Hour)
		s.net.enforced("new.example", time.Hour)
		s.net.enforced("moved.example", 30*day)
		s.net.enforced("forgotten.example", 30*day)
		for _, domain := range []string{"used.example", "moved.example", "forgotten.example"} {
			s.mustHold(t, domain)
		}
		s.disk.set(func(d *faultyStore) { d.full = true })
		settle(time.Minute)
		for range 2 {
			s.mustHold(t, "used.example") // its use waits for the disk
			s.mustHold(t, "new.example")
			settle(time.Second)
		}
		move := func(id, mx string) {
			for _, domain := range []string{"used.example", "new.example", "moved.example", "forgotten.example"} {
				s.net.change(domain, func(h *fakeHost) { h.id, h.text = id, policyText("enforce", time.Hour, mx) })
			}
		}
		move("2", "second.example")
		settle(10 * time.Minute)
		s.mustHold(t, "moved.example") // has its record looked at
		settle(2 * time.Hour)
		const second, third = "enforce [second.example]", "enforce [third.example]"
		for _, domain := range []string{"used.example", "new.example"} {
			if got, err := s.lookup(t, domain); got != second {
				t.Errorf("%s, which has expired: %q, %v", domain, got, err)
			}
		}
		settle(5 * time.Hour) // the one that moved has been fetched, and has expired by now
		if got, err := s.lookup(t, "moved.example"); got != second {
			t.Errorf("one that moved: %q, %v", got, err)
		}
		move("3", "third.example")
		if got, err := s.Refresh(t.Context(), "used.example"); err != nil || !got.Changed || got.ID != "3" {
			t.Errorf("a refresh: %+v, %v", got, err)
		}
		if held, _, err := s.Forget(t.Context(), "forgotten.example"); !held || err == nil {
			t.Errorf("forgotten: %v, %v; an error is to say that it is not on disk", held, err)
		}
		for _, domain := range []string{"used.example", "forgotten.example"} {
			if got, err := s.lookup(t, domain); got != third {
				t.Errorf("%s: %q, %v", domain, got, err)
			}
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(time.Minute)
		if n := s.Stats().Pending; n != 0 {
			t.Errorf("%d changes still wait", n)
		}
		for _, domain := range []string{"used.example", "forgotten.example"} {
			if r, err := s.disk.Get(domain); r.ID != "3" {
				t.Errorf("on disk is %+v, %v", r, err)
			}
		}
	})
}

// A failure that is remembered does not hide the policies of a cache file that
// comes back, as after a disk was mounted late.
func TestAPolicyOfARestoredFileIsAnsweredDespiteAFailedDiscovery(t *testing.T) {
	path := memoryDir(t) + "/cache.db"
	synctest.Test(t, func(t *testing.T) {
		net := newFakeNet()
		net.enforced("a.example", 30*day)
		s := openSite(t, path, net, nil)
		s.mustHold(t, "a.example")
		if err := errors.Join(s.stop(), os.Rename(path, path+".away")); err != nil {
			t.Fatal(err)
		}
		s = openSite(t, path, net, nil)
		net.change("a.example", func(h *fakeHost) { h.recordErr = policy.ResultDNS })
		if _, err := s.lookup(t, "a.example"); err == nil {
			t.Fatal("found")
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
		settle(2*time.Minute + time.Second)
		s.mustHold(t, "a.example")
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

// An outage on our side says nothing about a domain: one that was used on one day
// only is still fetched after it.
func TestAnOutageOfOursEndsNoRefreshes(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("a.example", 10*day)
		s.mustHold(t, "a.example")
		s.net.change("a.example", func(h *fakeHost) { h.fetchErr, h.cause = policy.ResultFetch, policy.ErrProxy })
		settle(8*day + 2*time.Hour) // due after 8 days at the latest
		s.net.enforced("a.example", 10*day)
		settle(time.Hour)
		if r := mustGet(t, s, "a.example"); time.Since(r.Fetched) > 2*time.Hour {
			t.Errorf("fetched %v ago: %+v", time.Since(r.Fetched), r)
		}
	})
}
