package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

const postfixMap = "postfix "

// millionReply is the length of the replies for the million.
var millionReply = len(replyFor(millionDomain(0)))

// randomLookup looks up random domains out of a million stored policies. As in
// real use, the daemon checks TXT records meanwhile.
func randomLookup(load lookupLoad) rowFunc {
	return func(b *bench) (result, error) { return b.randomLookup(load) }
}

func (b *bench) randomLookup(load lookupLoad) (result, error) {
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
	// Read every page of the file once before the measurement.
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
	// The limit's reply has the right length for every key.
	return b.lookupPairs(ours.process, limit, load, request, isReplyFor, wantReply(replyFor(millionDomain(0))), excess)
}

// lookUpEach looks up each of the million once, in scattered order.
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

// isReplyFor checks the reply to a lookup of one of the million.
func isReplyFor(body, reply []byte) error {
	domain := body[len(postfixMap):]
	begin, found := bytes.CutPrefix(reply, []byte("OK secure match=mx1."))
	if !found || !bytes.HasPrefix(begin, domain) || len(reply) != millionReply {
		return fmt.Errorf("reply %q for %q", reply, body)
	}
	return nil
}
