package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"

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
			return totals(tx, day, after, func(t tlsrpt.Total, _ int) (more bool) {
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

// totals calls f with each domain of a day that comes after a name, in order, and the
// bytes read of it, while f wants more.
func totals(tx *bbolt.Tx, day tlsrpt.Day, after string, f func(t tlsrpt.Total, size int) (more bool)) error {
	b := tx.Bucket(bucketDay).Bucket([]byte(day))
	if b == nil {
		return nil
	}
	var t tlsrpt.Total
	size, c := 0, b.Cursor()
	for k, v := c.Seek([]byte(after + "\x01")); k != nil; k, v = c.Next() {
		domain, _, _ := bytes.Cut(k, []byte{0})
		if string(domain) != t.Domain {
			if t.Domain != "" && !f(t, size) {
				return nil
			}
			t, size = tlsrpt.Total{Domain: string(domain)}, 0
		}
		var sum struct { // of tlsrpt.Summary, without the details
			Successful uint64 `json:"ok"`
			Failed     uint64 `json:"failed"`
		}
		if json.Unmarshal(v, &sum) != nil {
			return errValue
		}
		t.Successful, t.Failed, size = t.Successful+sum.Successful, t.Failed+sum.Failed, size+len(k)+len(v)
	}
	if t.Domain != "" {
		f(t, size)
	}
	return nil
}

// A Total is the sessions of a day.
type Total struct {
	Domains            int
	Successful, Failed uint64
}

// Worst returns the sessions of a day, and the domains with most failed ones, n at most,
// the worst first. It stops when it has read limit bytes; read is how many it has.
func (s *Store) Worst(day tlsrpt.Day, n, limit int) (all Total, worst []string, read int, err error) {
	var list []tlsrpt.Total
	cut := func() {
		slices.SortFunc(list, func(a, b tlsrpt.Total) int {
			return cmp.Or(cmp.Compare(b.Failed, a.Failed), strings.Compare(a.Domain, b.Domain))
		})
		list = list[:min(len(list), n)]
	}
	err = s.view(func(tx *bbolt.Tx) error {
		return totals(tx, day, "", func(t tlsrpt.Total, size int) (more bool) {
			all.Domains, all.Successful, all.Failed = all.Domains+1, all.Successful+t.Successful, all.Failed+t.Failed
			if t.Failed > 0 {
				list = append(list, t)
			}
			if len(list) >= 2*n {
				cut()
			}
			read += size
			return read < limit
		})
	})
	cut()
	for _, t := range list {
		worst = append(worst, t.Domain)
	}
	return all, worst, read, err
}

// Load returns what is known of a domain's day: no policies if there is nothing.
func (s *Store) Load(day tlsrpt.Day, domain string) (tlsrpt.DomainDay, error) {
	policies, err := s.summaries(day, domain, func(sum *tlsrpt.Summary, text []byte) error {
		return json.Unmarshal(text, (*storedPolicy)(&sum.Policy))
	})
	return tlsrpt.DomainDay{Domain: domain, Day: day, Policies: policies}, err
}

// Brief is Load without the strings and MX hosts of policies, which strangers write, and
// with details of each policy at most.
func (s *Store) Brief(day tlsrpt.Day, domain string, details int) ([]tlsrpt.Summary, error) {
	return s.summaries(day, domain, func(sum *tlsrpt.Summary, text []byte) error {
		var policy struct {
			Type   tlsrpt.PolicyType `json:"t"`
			Domain string            `json:"d"`
		}
		err := json.Unmarshal(text, &policy)
		sum.Policy = tlsrpt.Policy{Type: policy.Type, Domain: policy.Domain}
		sum.Details = slices.Clone(sum.Details[:min(len(sum.Details), details)])
		return err
	})
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
