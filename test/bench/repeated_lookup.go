package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
)

const (
	lookupClients = 16 // as many smtp(8) processes

	// lookupRate is how many lookups a second the two sides are asked for,
	// more than the mail of any server: the same load for both. Clients that
	// ask again as soon as they are answered put the faster side under the
	// greater load, and it is in their debt: the kernel, which wants to be fair,
	// lets them interrupt it less often than one that takes longer, where each
	// of them is always waiting. Such an interruption costs half an echo.
	lookupRate = 20_000

	// lookupRequests are in one section of a pair: a second or so of CPU time,
	// so that what else the machine does for a moment weighs little in a ratio.
	lookupRequests = 40_000

	// The same without a rate is measured beside it, in sections of as long.
	rushRequests = 100_000
	rushPairs    = defaultPairs
)

// repeatedLookup asks for the same key again and again: a policy that is in
// the daemon's memory.
func repeatedLookup(b *bench) (result, error) {
	const domain = "example.com"
	lab, err := b.startLab()
	if err != nil {
		return result{}, err
	}
	path, err := b.newCache(domain)
	if err != nil {
		return result{}, err
	}
	ours, err := b.startDaemon(daemonConfig{cache: path, lab: lab})
	if err != nil {
		return result{}, err
	}
	limit, err := b.startSide("echo", replyFor(domain))
	if err != nil {
		return result{}, err
	}
	request := func(dst []byte, _, _ int) []byte { return append(dst, "postfix "+domain...) }
	check := wantReply(replyFor(domain))
	return b.lookupPairs(ours.process, limit, request, check, check)
}

// lookupPairs has the two sides answer the same requests; each side's replies
// have a check of their own. What it comes to without a rate is in the note.
func (b *bench) lookupPairs(ours, limit *process, request requestFunc, checkOurs, checkLimit replyFunc) (result, error) {
	side := func(p *process, check replyFunc, rate float64, n int) (measure, error) {
		l, err := b.newSleepingLoad(p.address, lookupClients)
		if err != nil {
			return nil, err
		}
		l.rate = rate
		return func() (float64, error) {
			return p.cpuOf(n, func() error { return l.ask(b.ctx, n, request, check) })
		}, nil
	}
	pairs := func(count int, rate float64, n int) (result, error) {
		x, err := side(ours, checkOurs, rate, n)
		if err != nil {
			return result{}, err
		}
		y, err := side(limit, checkLimit, rate, n)
		if err != nil {
			return result{}, err
		}
		return b.pairs(count, x, y)
	}
	paced, err := pairs(b.pairCount, lookupRate, lookupRequests)
	if err != nil {
		return result{}, err
	}
	rush, err := pairs(rushPairs, 0, rushRequests)
	if err != nil {
		return result{}, err
	}
	paced.note += fmt.Sprintf("; with clients that ask again as soon as they are answered %.2f: %s", rush.value, rush.note)
	return paced, nil
}

// echoSide is the limit: it reads a netstring and writes the same reply every
// time, in a goroutine for each connection, without deadlines, limits or
// counters.
func echoSide(args []string) error {
	reply := fmt.Appendf(nil, "%d:%s,", len(args[0]), args[0])
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ready(l.Addr().String())
	for {
		nc, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer nc.Close()
			r := bufio.NewReader(nc)
			for {
				if _, err := readNetstring(r); err != nil {
					return
				}
				if _, err := nc.Write(reply); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
			}
		}()
	}
}
