package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

const postfixMap = "postfix "

// millionReply is the length of the reply for any of the million.
var millionReply = len(replyFor(millionDomain(0)))

// randomLookup asks for random ones of a million stored policies. They were
// last checked longer ago than [refresh] recheck, so the daemon looks at TXT
// records beside, as many a second as its check_rate allows: as in use.
func randomLookup(b *bench) (result, error) {
	m, err := b.shop.million()
	if err != nil {
		return result{}, err
	}
	lab, err := b.startLab()
	if err != nil {
		return result{}, err
	}
	ours, err := b.startDaemon(daemonConfig{cache: m.path, lab: lab})
	if err != nil {
		return result{}, err
	}
	limit, err := b.startSide("echo", replyFor(millionDomain(0)))
	if err != nil {
		return result{}, err
	}
	// Every page of the file is met once before it counts.
	if err := b.lookUpEach(ours); err != nil {
		return result{}, err
	}
	var draws [lookupClients]*rand.Rand
	for i := range draws {
		draws[i] = rand.New(rand.NewPCG(1, uint64(i)))
	}
	request := func(dst []byte, client, _ int) []byte {
		return appendMillionDomain(append(dst, postfixMap...), draws[client].IntN(millionPolicies))
	}
	// The limit says the same to every key; its length is right.
	return b.lookupPairs(ours.process, limit, request, isReplyFor, wantReply(replyFor(millionDomain(0))))
}

// lookUpEach has the daemon answer for each of the million once, in an order
// that jumps about.
func (b *bench) lookUpEach(d *daemon) error {
	const step = 617_531 // coprime to the number of policies
	l, err := b.newSleepingLoad(d.address, lookupClients)
	if err != nil {
		return err
	}
	request := func(dst []byte, client, i int) []byte {
		nth := i*lookupClients + client
		return appendMillionDomain(append(dst, postfixMap...), nth*step%millionPolicies)
	}
	return l.ask(b.ctx, millionPolicies, request, isReplyFor)
}

// isReplyFor checks that a reply is that for one of the million.
func isReplyFor(body, reply []byte) error {
	domain := body[len(postfixMap):]
	begin, found := bytes.CutPrefix(reply, []byte("OK secure match=mx1."))
	if !found || !bytes.HasPrefix(begin, domain) || len(reply) != millionReply {
		return fmt.Errorf("reply %q to %q", reply, body)
	}
	return nil
}
