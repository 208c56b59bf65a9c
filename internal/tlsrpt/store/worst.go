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

// This file: what the administrator's view needs of many domains, without the text of
// their policies, which strangers write.

// A Total is the sessions of a day, or of one recipient domain's day.
type Total struct {
	Domains            int
	Successful, Failed uint64
}

// Worst returns the sessions of a day, and the domains with most failed ones, n at most,
// the worst first. It stops when it has read limit bytes; read is how many it has.
func (s *Store) Worst(day tlsrpt.Day, n, limit int) (all Total, worst []string, read int, err error) {
	type failing struct {
		domain string
		failed uint64
	}
	var list []failing
	cut := func() {
		slices.SortFunc(list, func(a, b failing) int {
			return cmp.Or(cmp.Compare(b.failed, a.failed), strings.Compare(a.domain, b.domain))
		})
		list = list[:min(len(list), n)]
	}
	err = s.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketDay).Bucket([]byte(day))
		if b == nil {
			return nil
		}
		var last []byte // valid during the transaction
		c := b.Cursor()
		for k, v := c.First(); k != nil && read < limit; k, v = c.Next() {
			domain, _, ok := bytes.Cut(k, []byte{0})
			var sum struct { // of tlsrpt.Summary, without the details
				Successful uint64 `json:"ok"`
				Failed     uint64 `json:"failed"`
			}
			if !ok || json.Unmarshal(v, &sum) != nil {
				return errValue
			}
			read += len(k) + len(v)
			all.Successful, all.Failed = all.Successful+sum.Successful, all.Failed+sum.Failed
			known := bytes.Equal(domain, last)
			if last = domain; !known {
				all.Domains++
			}
			if sum.Failed == 0 {
				continue
			}
			if end := len(list) - 1; known && end >= 0 && list[end].domain == string(domain) {
				list[end].failed += sum.Failed
				continue
			}
			if len(list) >= 2*n {
				cut()
			}
			list = append(list, failing{string(domain), sum.Failed})
		}
		return nil
	})
	cut()
	for _, f := range list {
		worst = append(worst, f.domain)
	}
	return all, worst, read, err
}

// Brief is Load without the strings and MX hosts of policies, and with details of each
// policy at most.
func (s *Store) Brief(day tlsrpt.Day, domain string, details int) (policies []tlsrpt.Summary, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		sums, texts := tx.Bucket(bucketDay).Bucket([]byte(day)), tx.Bucket(bucketPolicy).Bucket([]byte(day))
		if sums == nil || texts == nil {
			return nil
		}
		prefix := domainKey(domain)
		c := sums.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix) && len(policies) < maxPolicies; k, v = c.Next() {
			var sum tlsrpt.Summary
			var policy struct {
				Type   tlsrpt.PolicyType
				Domain string
			}
			if json.Unmarshal(v, &sum) != nil || json.Unmarshal(texts.Get(k[len(prefix):]), &policy) != nil {
				return errValue
			}
			sum.Policy = tlsrpt.Policy{Type: policy.Type, Domain: policy.Domain}
			sum.Details = slices.Clone(sum.Details[:min(len(sum.Details), details)])
			policies = append(policies, sum)
		}
		return nil
	})
	return policies, err
}
