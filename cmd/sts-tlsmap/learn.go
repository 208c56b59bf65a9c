package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

const (
	maxLearnDomains = 1_000_000 // of one file, to be discovered
	maxLearnLine    = 4 << 20   // bytes: an entry of -cache -json
	maxLearnErrors  = 20        // lines that are no domains and are named
	learnBytes      = 512 << 10 // of policies in one request; JSON may make six times as much of them
	maxLearnID      = 64        // bytes of an id that are sent: one that is longer is none
)

// A learning is one run of -learn.
type learning struct {
	a      *app
	ctx    context.Context
	client *control.Client

	policies []control.Entry // to be taken over, not sent yet
	bytes    int             // of them
	position int             // bytes of the file that were read
	answers  int             // of the daemon
	domains  []control.Entry // to be discovered
	seen     map[string]bool
	bar      progress

	taken, found, held, none, failed, bad int
}

// learn is -learn: policies of another node are taken over first, and then
// the other domains are discovered.
func (a *app) learn(ctx context.Context) (int, error) {
	in, name, size := io.Reader(os.Stdin), "standard input", 0
	if path := a.flags.args[0]; path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return 0, hint(err, "name a file with a domain a line, or - for standard input")
		}
		defer f.Close()
		in, name = f, path
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			size = int(st.Size())
		}
	}
	if err := a.peer.needed(); err != nil {
		return 0, err // before a long list is read
	}
	l := &learning{a: a, ctx: ctx, client: a.peer.client, seen: make(map[string]bool), bar: progress{w: a.stderr, shown: a.isTerminal()}}
	l.bar.begin(size)
	err := l.read(interruptible(ctx, in), name)
	if err == nil {
		err = l.discover()
	}
	l.bar.end()
	l.summary()
	switch {
	case err != nil && l.answers > 0:
		return 0, hint(err, "run the same again when the daemon answers: it goes on where this one ended, since what was learned is held")
	case err != nil:
		return 0, a.peer.hinted(err)
	case l.bad > 0, l.failed > 0 && l.taken+l.found+l.held+l.none == 0:
		return exitFailed, nil
	case l.taken+l.found+l.held == 0:
		return exitNotFound, nil
	}
	return exitDone, nil
}

// interruptible returns a reader that fails when ctx ends, also while it waits
// for standard input, which nothing else would wake. What then still reads from
// there ends with the program.
func interruptible(ctx context.Context, in io.Reader) io.Reader {
	out, pipe := io.Pipe()
	go func() {
		_, err := io.Copy(pipe, in)
		pipe.CloseWithError(err)
	}()
	context.AfterFunc(ctx, func() { pipe.CloseWithError(errInterrupted) })
	return out
}

var errInterrupted = errors.New("interrupted")

// read goes through the file: policies are sent as they come, domains are
// gathered.
func (l *learning) read(in io.Reader, name string) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLearnLine)
	read := 0 // lines
	for lines.Scan() {
		read++
		l.position += len(lines.Bytes()) + 1
		err := l.line(bytes.TrimSpace(lines.Bytes()))
		if err != nil {
			if l.bad++; l.bad <= maxLearnErrors {
				fmt.Fprintf(l.a.stderr, "sts-tlsmap: %s:%d: %s\n", name, read, printable(err.Error()))
			}
		}
		if len(l.domains) > maxLearnDomains {
			return hint(fmt.Errorf("%s has more than %d domains", name, maxLearnDomains), "learn it in parts")
		}
		if len(l.policies) == batch || l.bytes >= learnBytes {
			if err := l.take(); err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("%s:%d: a line of more than %d bytes, which no domain and no entry of -cache -json is", name, read+1, maxLearnLine)
	} else if err != nil {
		return fmt.Errorf("%s cannot be read: %w", name, err)
	}
	return l.take()
}

// line notes what a line asks for.
func (l *learning) line(text []byte) error {
	var e control.Entry
	if bytes.HasPrefix(text, []byte("{")) {
		if err := json.Unmarshal(text, &e); err != nil {
			return fmt.Errorf("not an entry of -cache -json: %w", err)
		}
	} else {
		text, _, _ = bytes.Cut(text, []byte("#"))
		e.Domain = string(bytes.TrimSpace(text))
		if e.Domain == "" {
			return nil
		}
	}
	if len(e.Policy) > policy.MaxText {
		return fmt.Errorf("a policy of %d bytes; there is none above %d", len(e.Policy), policy.MaxText)
	}
	domain, err := canonical(e.Domain)
	if err != nil || l.seen[domain] {
		return err
	}
	l.seen[domain] = true
	if e.Policy == "" || !e.Expires.After(time.Now()) {
		l.domains = append(l.domains, control.Entry{Domain: domain})
		return nil
	}
	l.policies = append(l.policies, control.Entry{Domain: domain, ID: e.ID[:min(len(e.ID), maxLearnID)], Fetched: e.Fetched, Expires: e.Expires, Policy: e.Policy})
	l.bytes += len(e.Policy)
	return nil
}

// take has the policies gathered taken over.
func (l *learning) take() error {
	entries := l.policies
	l.policies, l.bytes = nil, 0
	if len(entries) == 0 {
		return nil
	}
	return l.client.Learn(l.ctx, entries, func(r control.Learned) error {
		// How many there are is not known before the end of the file.
		l.bar.at(l.position, fmt.Sprintf("%d policies of another node", l.answers+1))
		return l.learned(r)
	})
}

// discover has the domains gathered discovered, at the daemon's pace.
func (l *learning) discover() error {
	l.bar.begin(len(l.domains))
	for start := 0; start < len(l.domains); start += batch {
		err := l.client.Learn(l.ctx, l.domains[start:min(start+batch, len(l.domains))], func(r control.Learned) error {
			l.bar.step()
			return l.learned(r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// learned counts what came of a domain, and names it if it failed.
func (l *learning) learned(r control.Learned) error {
	l.answers++
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
		l.bar.clear()
		words := printable(r.Err)
		if r.Result != "" {
			words = string(r.Result) + ": " + words
		}
		fmt.Fprintf(l.a.stdout, "%s: %s\n", r.Domain, words)
	}
	return nil
}

func (l *learning) summary() {
	fmt.Fprintf(l.a.stdout, "%d policies found, %d taken over, %d held already; %d domains without one, %d failed\n",
		l.found, l.taken, l.held, l.none, l.failed)
	if l.taken > 0 {
		fmt.Fprintln(l.a.stdout, "what was taken over counts until its own expiry, and is fetched anew now, in the background")
	}
	if l.bad > 0 {
		fmt.Fprintf(l.a.stderr, "sts-tlsmap: %d lines are not domains and were left out\n", l.bad)
	}
}

// A progress is a bar for people who watch a terminal.
type progress struct {
	w     io.Writer
	shown bool // on a terminal

	begun       time.Time
	drawn       time.Time
	done, total int // total is zero where it is not known
	onScreen    bool
}

const (
	barWidth = 30
	barEvery = 100 * time.Millisecond
)

// begin starts the bar, for so many steps.
func (p *progress) begin(total int) { p.begun, p.done, p.total = time.Now(), 0, total }

// step notes that one more is done.
func (p *progress) step() { p.at(p.done+1, fmt.Sprintf("%d of %d", p.done+1, p.total)) }

// at notes that so much is done, in words too.
func (p *progress) at(done int, words string) {
	p.done = done
	now := time.Now()
	if !p.shown || p.begun.IsZero() || now.Sub(p.drawn) < barEvery && (p.total == 0 || p.done != p.total) {
		return
	}
	p.drawn, p.onScreen = now, true
	fmt.Fprintf(p.w, "\r\x1b[K%s%s%s", p.filled(), words, p.left(now))
}

// filled is the bar itself, where the end is known.
func (p *progress) filled() string {
	if p.total == 0 {
		return ""
	}
	full := min(barWidth, barWidth*p.done/p.total)
	return fmt.Sprintf("[%s%s] ", strings.Repeat("#", full), strings.Repeat(".", barWidth-full))
}

// left says how long the rest will take.
func (p *progress) left(now time.Time) string {
	if p.total == 0 || p.done == 0 {
		return ""
	}
	rest := max(0, p.total-p.done)
	return fmt.Sprintf(", %s left", time.Duration(float64(now.Sub(p.begun))/float64(p.done)*float64(rest)).Round(time.Second))
}

// clear makes room for a line of another kind.
func (p *progress) clear() {
	if p.onScreen {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.onScreen = false
	}
}

// end leaves the bar as it is.
func (p *progress) end() {
	if p.onScreen {
		fmt.Fprintln(p.w)
	}
}
