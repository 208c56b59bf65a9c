package store

import (
	"bytes"
	"encoding/json"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// This file: what the days hold.

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

// EachDomain calls each with a recipient domain and its summaries on each of the days, in
// the order of domains, from the first one behind after, while each wants more. They are valid
// during the call, and the policies of those without a failed session are not read. each must
// not write to the store.
func (s *Store) EachDomain(days []tlsrpt.Day, after string, each func(domain string, byDay [][]tlsrpt.Summary) (more bool)) (whole bool, err error) {
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
				at[i].k, at[i].v = at[i].Seek([]byte(after + "\x01"))
			}
		}
		for more := true; more; {
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
				}
			}
			more = each(string(first[:len(first)-1]), byDay)
		}
		return nil
	})
	return whole, err
}
