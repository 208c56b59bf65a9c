package store

import (
	"bytes"
	"encoding/json"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// This file: what the days hold.

const page = 1000 // domains read in one transaction

// Days returns the days that hold data, the oldest first.
func (s *Store) Days() (days []tlsrpt.Day, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketDay).ForEachBucket(func(k []byte) error {
			days = append(days, tlsrpt.Day(k))
			return nil
		})
	})
	return days, err
}

// Domains calls f with each recipient domain of a day, in order, until f fails. f may
// write to the store.
func (s *Store) Domains(day tlsrpt.Day, f func(tlsrpt.Total) error) error {
	return pages(func(after string) (batch []tlsrpt.Total, err error) {
		err = s.view(func(tx *bbolt.Tx) error {
			return totals(tx, day, after, func(t tlsrpt.Total) (more bool) {
				batch = append(batch, t)
				return len(batch) < page
			})
		})
		return batch, err
	}, func(t tlsrpt.Total) string { return t.Domain }, f)
}

// pages calls f with all that read returns, until f fails. read returns a page of what
// comes after a domain.
func pages[T any](read func(after string) ([]T, error), domain func(T) string, f func(T) error) error {
	for after := ""; ; {
		batch, err := read(after)
		for _, v := range batch {
			if err != nil {
				return err
			}
			after, err = domain(v), f(v)
		}
		if err != nil || len(batch) < page {
			return err
		}
	}
}

// totals calls f with each domain of a day that comes after a name, in order, while f wants
// more.
func totals(tx *bbolt.Tx, day tlsrpt.Day, after string, f func(tlsrpt.Total) (more bool)) error {
	b := tx.Bucket(bucketDay).Bucket([]byte(day))
	if b == nil {
		return nil
	}
	var t tlsrpt.Total
	c := b.Cursor()
	for k, v := c.Seek([]byte(after + "\x01")); k != nil; k, v = c.Next() {
		domain, _, _ := bytes.Cut(k, []byte{0})
		if string(domain) != t.Domain {
			if t.Domain != "" && !f(t) {
				return nil
			}
			t = tlsrpt.Total{Domain: string(domain)}
		}
		var sum struct { // of tlsrpt.Summary, without the details
			Successful uint64 `json:"ok"`
			Failed     uint64 `json:"failed"`
		}
		if json.Unmarshal(v, &sum) != nil {
			return errValue
		}
		t.Successful, t.Failed = t.Successful+sum.Successful, t.Failed+sum.Failed
	}
	if t.Domain != "" {
		f(t)
	}
	return nil
}

// Load returns what is known of a domain's day: no policies if there is nothing.
func (s *Store) Load(day tlsrpt.Day, domain string) (tlsrpt.DomainDay, error) {
	policies, err := s.summaries(day, domain, func(sum *tlsrpt.Summary, text []byte) error {
		return json.Unmarshal(text, (*storedPolicy)(&sum.Policy))
	})
	return tlsrpt.DomainDay{Domain: domain, Day: day, Policies: policies}, err
}

// Brief is Load with the mode alone of the text of policies, which strangers write, and
// with details of each policy at most.
func (s *Store) Brief(day tlsrpt.Day, domain string, details int) ([]tlsrpt.Summary, error) {
	return s.summaries(day, domain, func(sum *tlsrpt.Summary, text []byte) error {
		sum.Details = slices.Clone(sum.Details[:min(len(sum.Details), details)])
		return brief(sum, text)
	})
}

func brief(sum *tlsrpt.Summary, text []byte) error {
	var policy struct {
		Type   tlsrpt.PolicyType `json:"t"`
		Domain string            `json:"d"`
	}
	err := json.Unmarshal(text, &policy)
	sum.Policy = tlsrpt.Policy{Type: policy.Type, Domain: policy.Domain}
	if _, mode, ok := bytes.Cut(text, []byte(`"mode: `)); ok {
		mode, _, _ = bytes.Cut(mode, []byte(`"`))
		sum.Policy.Strings = []string{"mode: " + string(mode)}
	}
	return err
}

func (s *Store) summaries(day tlsrpt.Day, domain string, policy func(sum *tlsrpt.Summary, text []byte) error) (all []tlsrpt.Summary, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		sums, policies := tx.Bucket(bucketDay).Bucket([]byte(day)), tx.Bucket(bucketPolicy).Bucket([]byte(day))
		if sums == nil || policies == nil {
			return nil
		}
		prefix := domainKey(domain)
		c := sums.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix) && len(all) < maxPolicies; k, v = c.Next() {
			var sum tlsrpt.Summary
			if json.Unmarshal(v, &sum) != nil || policy(&sum, policies.Get(k[len(prefix):])) != nil {
				return errValue
			}
			all = append(all, sum)
		}
		return nil
	})
	return all, err
}

// EachDomain calls each with a recipient domain and its summaries on each of the days, one
// domain after the other. They are valid during the call, and the policies of those without a
// failed session are not read. whole is false if it stopped because it had read limit bytes.
func (s *Store) EachDomain(days []tlsrpt.Day, limit int, each func(domain string, byDay [][]tlsrpt.Summary)) (whole bool, err error) {
	type place struct {
		*bbolt.Cursor
		policies *bbolt.Bucket
		k, v     []byte // nil at the end of the day
	}
	err = s.view(func(tx *bbolt.Tx) error {
		at, byDay := make([]place, len(days)), make([][]tlsrpt.Summary, len(days))
		for i, day := range days {
			if sums := tx.Bucket(bucketDay).Bucket([]byte(day)); sums != nil {
				at[i] = place{Cursor: sums.Cursor(), policies: tx.Bucket(bucketPolicy).Bucket([]byte(day))}
				at[i].k, at[i].v = at[i].First()
			}
		}
		for limit > 0 {
			var first []byte // what begins the keys of the first domain that is left
			for _, p := range at {
				if head := p.k[:bytes.IndexByte(p.k, 0)+1]; len(head) > 0 && (first == nil || bytes.Compare(head, first) < 0) {
					first = head
				}
			}
			if whole = first == nil; whole {
				return nil
			}
			for i := range at {
				byDay[i] = byDay[i][:0]
				for p := &at[i]; bytes.HasPrefix(p.k, first); p.k, p.v = p.Next() {
					var sum tlsrpt.Summary
					if json.Unmarshal(p.v, &sum) != nil || sum.Failed > 0 && (p.policies == nil || brief(&sum, p.policies.Get(p.k[len(first):])) != nil) {
						return errValue
					}
					byDay[i] = append(byDay[i], sum)
					limit -= len(p.k) + len(p.v)
				}
			}
			each(string(first[:len(first)-1]), byDay)
		}
		return nil
	})
	return whole, err
}
