package tlsmap

import (
	"bytes"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// maxRehearsed bounds the rehearsed replies that are remembered, of each of two
// kinds: those that would have deferred mail, and the others, which are the
// rule and must not push those out.
const maxRehearsed = 2000

// Rehearsed is what a map with enforce = false would have replied for a
// domain, had it not been a rehearsal.
type Rehearsed struct {
	Domain   string    `json:"domain"` // or the key, cut short, where it is none
	Map      string    `json:"map"`
	Deferred bool      `json:"deferred,omitempty"` // the mail would have waited: it would have been TEMP
	Reply    string    `json:"reply"`              // the last one, cut short
	Count    uint64    `json:"count"`              // lookups
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

// rehearsals remember what would have been replied, in memory and bounded: the
// one that was not asked for longest goes.
type rehearsals struct {
	seed maphash.Seed

	mu       sync.Mutex
	deferred *simplelru.LRU[uint64, *Rehearsed]
	others   *simplelru.LRU[uint64, *Rehearsed]
	lost     RehearsalsLost
}

// RehearsalsLost counts what is not remembered any more, for want of room. One
// that came back counts again when it goes again.
type RehearsalsLost struct {
	Deferred uint64 `json:"deferred"`
	Others   uint64 `json:"others"`
}

func (r *rehearsals) init() {
	r.seed = maphash.MakeSeed()
	for _, l := range []struct {
		lru  **simplelru.LRU[uint64, *Rehearsed]
		lost *uint64
	}{{&r.deferred, &r.lost.Deferred}, {&r.others, &r.lost.Others}} {
		lru, err := simplelru.NewLRU(maxRehearsed, func(uint64, *Rehearsed) { *l.lost++ })
		if err != nil {
			panic(err) // the size is a positive constant
		}
		*l.lru = lru
	}
}

// note notes what the map would have replied. Nothing is allocated for a reply
// that was the same the last time.
func (r *rehearsals) note(m *mta.Map, domain, reply []byte, deferred bool) {
	if len(domain) > logShown {
		domain = domain[:logShown]
	}
	if len(reply) > logShown {
		reply = reply[:logShown]
	}
	hash := maphash.Bytes(r.seed, domain) ^ maphash.String(r.seed, m.Name)*3
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	lru := r.others
	if deferred {
		lru = r.deferred
	}
	e, ok := lru.Get(hash)
	if !ok || e.Domain != string(domain) || e.Map != m.Name {
		e = &Rehearsed{Domain: string(domain), Map: m.Name, Deferred: deferred, First: now.UTC()}
		lru.Add(hash, e)
	}
	if e.Reply != string(reply) {
		e.Reply = string(reply)
	}
	e.Count++
	e.Last = now.UTC()
}

// Rehearsed returns what maps with enforce = false would have replied since
// the start, as far as it is remembered: what would have deferred mail first,
// and the domains in order. An empty domain stands for all.
func (s *Server) Rehearsed(domain string) []Rehearsed {
	r := &s.rehearsed
	var list []Rehearsed
	r.mu.Lock()
	for _, lru := range []*simplelru.LRU[uint64, *Rehearsed]{r.deferred, r.others} {
		for _, e := range lru.Values() {
			if domain == "" || e.Domain == domain {
				list = append(list, *e)
			}
		}
	}
	r.mu.Unlock()
	slices.SortFunc(list, func(a, b Rehearsed) int {
		switch {
		case a.Deferred != b.Deferred && a.Deferred:
			return -1
		case a.Deferred != b.Deferred:
			return 1
		}
		if c := strings.Compare(a.Domain, b.Domain); c != 0 {
			return c
		}
		return strings.Compare(a.Map, b.Map)
	})
	return list
}

// RehearsalsLost returns how much of what was rehearsed Rehearsed has lost.
func (s *Server) RehearsalsLost() RehearsalsLost {
	s.rehearsed.mu.Lock()
	defer s.rehearsed.mu.Unlock()
	return s.rehearsed.lost
}

// rehearse notes and logs what the map would have replied.
func (s *Server) rehearse(m *mta.Map, key, reply []byte, deferred bool, l *lookup) {
	domain := l.domain
	if domain == nil {
		domain = key
	}
	s.rehearsed.note(m, domain, bytes.TrimSpace(reply), deferred)
	same := reply
	if m.Format == mta.FormatExim && !deferred {
		same = same[:len(replyHosts)] // the order of the hosts changes each time
	}
	if s.rehearsing.due(m.Name, key, same) {
		s.rehearsing.print(slog.String("map", m.Name), slog.String("key", shown(key)), slog.String("reply", shown(reply)))
	}
}
