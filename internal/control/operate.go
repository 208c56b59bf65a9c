package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// This file: exemptions, learning and rehearsals.

const (
	maxLearnBody = 4 << 20 // bytes of the body of a request to learn
	learnAtOnce  = 16      // discoveries at once for one request
)

// A Learner fills the cache; *keeper.Keeper is one.
type Learner interface {
	Learn(ctx context.Context, domain string) (keeper.Learned, error)
	Take(ctx context.Context, f keeper.Foreign) (keeper.Learned, error)
}

// Exemptions are those set at run time; *exempt.List is one.
type Exemptions interface {
	InForce() []exempt.Exemption
	Set(domain string, long time.Duration) (until time.Time, was bool, err error)
}

// An Exemption is a domain whose policy is not applied until a time.
type Exemption struct {
	Domain string    `json:"domain"`
	Until  time.Time `json:"until,omitzero"` // zero: it has ended
	Was    bool      `json:"was,omitempty"`  // there was one before
	Err    string    `json:"error,omitempty"`

	// Still are the entries that exempt the domain after its own has ended.
	Still []ExemptEntry `json:"still,omitempty"`
}

// exemptRequest is the body of a request to exempt.
type exemptRequest struct {
	Domain string        `json:"domain"`
	For    time.Duration `json:"for"` // nanoseconds; zero ends it
}

// Learned is what came of learning a domain.
type Learned = keeper.Learned

// learnRequest is the body of a request to learn: entries with a policy are
// another node's, the others are domains to discover.
type learnRequest struct {
	Entries []Entry `json:"entries"`
}

// Rehearsed is what a rehearsed map would have replied.
type Rehearsed = tlsmap.Rehearsed

func (s *Server) exemptions(w http.ResponseWriter, _ *http.Request) {
	out := s.lines(w)
	if s.o.Exemptions != nil {
		for _, x := range s.o.Exemptions.InForce() {
			if out.write(Exemption{Domain: x.Domain, Until: utc(x.Until)}) != nil {
				return
			}
		}
	}
	out.end(nil)
}

func (s *Server) setExempt(w http.ResponseWriter, r *http.Request) {
	var req exemptRequest
	if err := readBody(w, r, maxExemptBody, &req); err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	if s.o.Exemptions == nil {
		refuse(w, http.StatusNotImplemented, "this daemon keeps no exemptions")
		return
	}
	s.o.Log.Info("asked to exempt a domain", "domain", req.Domain, "for", req.For, "uid", uidOf(r))
	until, was, err := s.o.Exemptions.Set(req.Domain, req.For)
	x := Exemption{Domain: req.Domain, Until: utc(until), Was: was}
	switch {
	case errors.Is(err, exempt.ErrNotKept):
		x.Err = err.Error()
	case err != nil:
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	if domain, err := exempt.Parse(req.Domain); err == nil && req.For == 0 {
		x.Still = ExemptEntries(s.o.ExemptBy(domain))
	}
	answer(w, http.StatusOK, x)
}

func (s *Server) learn(w http.ResponseWriter, r *http.Request) {
	var req learnRequest
	err := readBody(w, r, maxLearnBody, &req)
	if n := len(req.Entries); err == nil && (n == 0 || n > MaxDomains) {
		err = fmt.Errorf("%d domains in a request; expected 1 to %d", n, MaxDomains)
	}
	for i := range req.Entries {
		if d := req.Entries[i].Domain; err == nil && !isDomain(d) {
			err = fmt.Errorf("%q is not a domain in lower case and A-labels", d)
		}
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	s.o.Log.Info("asked to learn domains", "domains", len(req.Entries), "uid", uidOf(r))
	forEach(s, w, r, req.Entries, learnAtOnce, func(ctx context.Context, e Entry) any {
		var l Learned
		var err error
		if e.Policy == "" {
			l, err = s.o.Learner.Learn(ctx, e.Domain)
		} else {
			l, err = s.o.Learner.Take(ctx, keeper.Foreign{
				Domain: e.Domain, ID: e.ID, Text: []byte(e.Policy), Fetched: e.Fetched, Expires: e.Expires,
			})
		}
		if err != nil {
			return Learned{Domain: e.Domain, Err: err.Error()}
		}
		return l
	})
}

// uidOf is who asks, as writers has seen.
func uidOf(r *http.Request) uint32 {
	p, _ := r.Context().Value(peerKey{}).(peer)
	return p.uid
}

func (s *Server) rehearsals(w http.ResponseWriter, _ *http.Request) {
	out := s.lines(w)
	for _, x := range s.o.Rehearsed("") {
		if out.write(x) != nil {
			return
		}
	}
	out.end(nil)
}

// readBody reads the JSON body of a request, so many bytes at most.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		unhurried(w)
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		hangUpAfter(w)
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	return nil
}

// Exemptions calls each with every exemption set at run time.
func (c *Client) Exemptions(ctx context.Context, each func(Exemption) error) error {
	res, err := c.do(ctx, http.MethodGet, "/v1/exempt", nil)
	if err != nil {
		return err
	}
	return readLines(res.Body, each)
}

// Exempt exempts a domain for so long; zero ends that. An Err in what it
// returns says that it is done, but not on disk.
func (c *Client) Exempt(ctx context.Context, domain string, long time.Duration) (Exemption, error) {
	var x Exemption
	body, err := json.Marshal(exemptRequest{Domain: domain, For: long})
	if err != nil {
		return x, err
	}
	res, err := c.do(ctx, http.MethodPost, "/v1/exempt", body)
	if err != nil {
		return x, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxLine)).Decode(&x); err != nil {
		return x, fmt.Errorf("the daemon's answer cannot be read: %w", err)
	}
	return x, nil
}

// Learn has entries taken over, or discovered where they have no policy: at
// most MaxDomains, and maxLearnBody bytes.
func (c *Client) Learn(ctx context.Context, entries []Entry, each func(Learned) error) error {
	body, err := json.Marshal(learnRequest{Entries: entries})
	if err != nil {
		return err
	}
	res, err := c.do(ctx, http.MethodPost, "/v1/learn", body)
	if err != nil {
		return err
	}
	return readLines(res.Body, each)
}

// Rehearsed calls each with what rehearsed maps would have replied.
func (c *Client) Rehearsed(ctx context.Context, each func(Rehearsed) error) error {
	res, err := c.do(ctx, http.MethodGet, "/v1/rehearsal", nil)
	if err != nil {
		return err
	}
	return readLines(res.Body, each)
}
