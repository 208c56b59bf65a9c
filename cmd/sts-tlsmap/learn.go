package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

const (
	maxLearnLine   = 4 << 20 // bytes: an entry of -cache -json
	maxLearnErrors = 20      // lines that are no domains and are named
	maxLearnID     = 64      // bytes of an id that are sent: a longer one is not valid
)

// A learning is one run of -learn.
type learning struct {
	a       *app
	in      io.ReadCloser
	name    string   // of in, for people
	domains []string // to be discovered
	seen    map[string]bool
	err     error // of reading in
	bar     text.Progress
	step    func() // shows that the daemon has answered once more

	answers, taken, found, held, none, failed, bad int
}

// learn is -learn: policies of another node are taken over first, and then the
// other domains are discovered.
func (a *app) learn(ctx context.Context) (int, error) {
	l, err := a.openList(a.flags.args[0])
	if err != nil {
		return 0, hint(err, "name a file with one domain per line, or - for standard input")
	}
	defer l.in.Close()
	l.bar = text.Progress{W: a.stderr, Shown: text.IsTerminal(a.stderr)}
	if a.peerErr != nil {
		return 0, a.peerErr // before a long list is read
	}
	l.bar.Begin(0) // how many there are shows at the end of the file
	l.step = func() { l.bar.At(l.answers, fmt.Sprintf("%d policies of another node", l.answers)) }
	err = a.client.Learn(ctx, l.policies(), l.learned)
	if err = cmp.Or(err, l.err); err == nil {
		l.bar.Begin(len(l.domains))
		l.step = l.bar.Step
		err = a.client.Learn(ctx, control.Named(l.domains), l.learned)
	}
	l.bar.End()
	fmt.Fprintf(a.stdout, "policies: %d found, %d taken over, %d held already; domains: %d without a policy, %d failed\n",
		l.found, l.taken, l.held, l.none, l.failed)
	if l.taken > 0 {
		fmt.Fprintln(a.stdout, "a policy taken over is valid until its own expiry; the daemon fetches it again now, in the background")
	}
	if l.bad > 0 {
		a.say("%s left out: not a domain", numbered(l.bad, "line"))
	}
	switch {
	case err != nil && l.answers > 0:
		return 0, hint(err, "run the same again when the daemon answers: it goes on where this one ended, since what was learned is held")
	case err != nil:
		return 0, err
	case l.bad > 0, l.failed > 0 && l.taken+l.found+l.held+l.none == 0:
		return exitFailed, nil
	case l.taken+l.found+l.held == 0:
		return exitNotFound, nil
	}
	return exitDone, nil
}

// openList opens a list of domains or policies.
func (a *app) openList(path string) (l *learning, err error) {
	l = &learning{a: a, in: os.Stdin, name: "standard input", seen: make(map[string]bool)}
	if path != "-" {
		l.name = path
		l.in, err = os.Open(path)
	}
	return l, err
}

// policies yields the policies of the input, and gathers the other domains.
func (l *learning) policies() iter.Seq[control.Entry] {
	return func(yield func(control.Entry) bool) {
		lines := bufio.NewScanner(l.in)
		lines.Buffer(nil, maxLearnLine)
		n := 1
		for ; lines.Scan(); n++ {
			e, err := parseLearn(bytes.TrimSpace(lines.Bytes()))
			switch {
			case err != nil:
				if l.bad++; l.bad <= maxLearnErrors {
					l.a.say("%s:%d: %s", l.name, n, text.Printable(err.Error()))
				}
				continue
			case e.Domain == "" || l.seen[e.Domain]:
				continue
			case e.Policy == "" || !e.Expires.After(time.Now()):
				l.domains = append(l.domains, e.Domain)
			case !yield(e):
				return
			}
			l.seen[e.Domain] = true
		}
		if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			l.err = fmt.Errorf("%s:%d: a line of more than %d bytes, which no domain and no entry of -cache -json is", l.name, n, maxLearnLine)
		} else if err != nil {
			l.err = fmt.Errorf("%s cannot be read: %w", l.name, err)
		}
	}
}

// parseLearn reads a line: a domain, an entry of -cache -json, or neither.
func parseLearn(line []byte) (e control.Entry, err error) {
	if bytes.HasPrefix(line, []byte("{")) {
		if err := json.Unmarshal(line, &e); err != nil {
			return e, fmt.Errorf("not an entry of -cache -json: %w", err)
		}
	} else {
		line, _, _ = bytes.Cut(line, []byte("#"))
		if e.Domain = string(bytes.TrimSpace(line)); e.Domain == "" {
			return e, nil
		}
	}
	if len(e.Policy) > policy.MaxText {
		return e, fmt.Errorf("a policy of %d bytes; there is none above %d", len(e.Policy), policy.MaxText)
	}
	domain, err := canonical(e.Domain)
	return control.Entry{
		Domain: domain, ID: e.ID[:min(len(e.ID), maxLearnID)], Fetched: e.Fetched, Expires: e.Expires, Policy: e.Policy,
	}, err
}

// learned counts the result for a domain, and names it if it failed.
func (l *learning) learned(r keeper.Learned) error {
	l.answers++
	l.step()
	switch {
	case r.Taken:
		l.taken++
	case r.Held:
		l.held++
	case r.Result == policy.ResultOK && r.Err == "":
		l.found++
	case r.Result == policy.ResultNoRecord:
		l.none++
	default:
		l.failed++
		l.bar.Clear()
		fmt.Fprintf(l.a.stdout, "%s: %s: %s\n", r.Domain, cmp.Or(string(r.Result), "failed"), text.Printable(r.Err))
	}
	return nil
}
