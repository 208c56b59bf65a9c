package observe

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

const tlsKeptFor = time.Minute // how long an overview of TLS sessions is shown again

// A tlsView is what the page about TLS reports says.
type tlsView struct {
	reporting.Overview
	At               time.Time
	Wrong            string // why there is no overview
	Waiting          int64  // bytes that wait to be counted
	Reports, Dropped []amount
	Open             int
	Oldest           string // the day of the first report that is not delivered; empty: there is none
}

type amount struct {
	What  string
	Count uint64
}

// amounts sorts numbers by name, those that are zero left out.
func amounts[K ~string](list []amount, prefix string, numbers map[K]uint64) []amount {
	for _, name := range slices.Sorted(maps.Keys(numbers)) {
		if numbers[name] > 0 {
			list = append(list, amount{prefix + string(name), numbers[name]})
		}
	}
	return list
}

// serveTLS shows the destinations with TLS failures, and how far the reports are. One
// request reads the store, and the others wait.
func (o *Observer) serveTLS(w http.ResponseWriter, r *http.Request) {
	o.tallying.Lock()
	defer o.tallying.Unlock()
	if now := time.Now(); o.tls == nil || now.Sub(o.tls.At) >= tlsKeptFor {
		o.tls = o.tally(now)
	}
	o.servePage(w, r, "tls", view{TLS: o.tls})
}

func (o *Observer) tally(now time.Time) *tlsView {
	s := o.Stats().Reports
	v := &tlsView{At: now, Waiting: int64(s.Collect.RingSize) + s.Store.LogSize, Reports: amounts(nil, "", s.Deliver.Reports), Open: s.Deliver.Open}
	if !s.Deliver.Oldest.IsZero() {
		v.Oldest = s.Deliver.Oldest.UTC().Add(-time.Second).Format(time.DateOnly)
	}
	v.Dropped = amounts(amounts(nil, "", s.Collect.Dropped), "store: ", s.Store.Dropped)
	v.Dropped = amounts(v.Dropped, "", map[string]uint64{"failed lookups, too many at once": s.Lost})
	var err error
	if v.Overview, err = o.TLS(); err != nil {
		v.Wrong = text.Printable(strings.ReplaceAll(err.Error(), "\n", ": "))
	}
	return v
}
