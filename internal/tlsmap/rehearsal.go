package tlsmap

import (
	"bytes"
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// maxRehearsed bounds the rehearsed replies that are remembered, of each of two
// kinds: those that would have deferred mail, which are rare, and the others.
const maxRehearsed = 2000

// Rehearsed is what a map with enforce = false would have replied for a domain.
type Rehearsed struct {
	Domain   string    `json:"domain"` // or the key, cut, if it has no policy domain
	Map      string    `json:"map"`
	Deferred bool      `json:"deferred,omitempty"` // the mail would have waited: it would have been TEMP
	Reply    string    `json:"reply"`              // the last one, cut short
	Count    uint64    `json:"count"`              // lookups
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

// rehearsals remember what would have been replied.
type rehearsals struct {
	mu               sync.Mutex
	deferred, others *simplelru.LRU[[2]string, *Rehearsed] // by domain and map
}

func newRehearsals() *rehearsals {
	deferred, _ := simplelru.NewLRU[[2]string, *Rehearsed](maxRehearsed, nil) // fails for sizes below 1
	others, _ := simplelru.NewLRU[[2]string, *Rehearsed](maxRehearsed, nil)
	return &rehearsals{deferred: deferred, others: others}
}

// rehearse notes and logs what the map would have replied.
func (s *Server) rehearse(m *mta.Map, key, reply []byte, deferred bool, l *lookup) {
	k, now, r := [2]string{l.shownDomain(key), m.Name}, time.Now().UTC(), s.rehearsed
	r.mu.Lock()
	lru := r.others
	if deferred {
		lru = r.deferred
	}
	e, ok := lru.Get(k)
	if !ok {
		e = &Rehearsed{Domain: k[0], Map: m.Name, Deferred: deferred, First: now}
		lru.Add(k, e)
	}
	e.Reply, e.Last = shown(bytes.TrimSpace(reply)), now
	e.Count++
	r.mu.Unlock()

	same := reply
	if m.Format != mta.FormatPostfix && !deferred {
		same = nil // the order of the hosts changes each time
	}
	if s.rehearsing.due(m.Name, key, same) {
		s.rehearsing.print(slog.String("map", m.Name), slog.String("key", shown(key)), slog.String("reply", shown(reply)))
	}
}

// Rehearsed returns what maps with enforce = false would have replied since the
// start, as far as it is remembered: replies that would have deferred mail first,
// then by domain. An empty domain stands for all.
func (s *Server) Rehearsed(domain string) []Rehearsed {
	r := s.rehearsed
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Rehearsed
	for _, lru := range []*simplelru.LRU[[2]string, *Rehearsed]{r.deferred, r.others} {
		from := len(list)
		for _, e := range lru.Values() {
			if domain == "" || e.Domain == domain {
				list = append(list, *e)
			}
		}
		slices.SortFunc(list[from:], func(a, b Rehearsed) int {
			return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Map, b.Map))
		})
	}
	return list
}
