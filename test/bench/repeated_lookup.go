package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
)

const lookupClients = 16 // like that many smtp(8) processes

// A lookupLoad is the load of one section of a pair.
type lookupLoad struct {
	rate     float64 // lookups a second of all clients; 0: each client asks again at once
	requests int     // about a second of CPU time
}

// paced puts both sides under the same load, higher than any mail server's.
// Without a rate, the faster side is under the higher load, and the kernel
// interrupts the slower side more often to run a client.
var (
	paced      = lookupLoad{rate: 20_000, requests: 40_000}
	closedLoop = lookupLoad{requests: 100_000}
)

// repeatedLookup looks up one key repeatedly: the policy is in memory.
func repeatedLookup(b *bench) (result, error) { return b.repeated("") }

// repeated is repeatedLookup with more tables in the configuration.
func (b *bench) repeated(more string) (result, error) {
	const domain = "example.com"
	lab, err := b.startLab()
	if err != nil {
		return result{}, err
	}
	path, err := b.newCache(domain)
	if err != nil {
		return result{}, err
	}
	ours, err := b.startDaemon(daemonConfig{cache: path, lab: lab, more: more})
	if err != nil {
		return result{}, err
	}
	limit, err := b.startSide("echo", replyFor(domain))
	if err != nil {
		return result{}, err
	}
	request := func(dst []byte, _, _ int) []byte { return append(dst, "postfix "+domain...) }
	check := wantReply(replyFor(domain))
	return b.lookupPairs(ours.process, limit, paced, request, check, check, ratio)
}

// lookupPairs puts both sides under the same load. Each has its own check of
// replies.
func (b *bench) lookupPairs(ours, limit *process, load lookupLoad, request requestFunc, checkOurs, checkLimit replyFunc, compare comparison) (result, error) {
	side := func(p *process, check replyFunc) (measure, error) {
		l, err := b.newSleepingLoad(p.address, lookupClients)
		if err != nil {
			return nil, err
		}
		l.rate = load.rate
		return func() (float64, error) {
			return p.cpuOf(load.requests, func() error { return l.ask(b.ctx, load.requests, request, check) })
		}, nil
	}
	x, err := side(ours, checkOurs)
	if err != nil {
		return result{}, err
	}
	y, err := side(limit, checkLimit)
	if err != nil {
		return result{}, err
	}
	return b.pairs(x, y, compare)
}

// echoSide is the limit: it reads netstrings and always writes the same reply,
// in one goroutine for each connection, without deadlines, limits or counters.
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
