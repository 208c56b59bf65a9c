package keeper_test

import (
	"testing"
	"time"
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
