package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
)

const (
	foundPolicies = 1000
	findSection   = 40 * discoverySection // questions in one section
)

// foundPolicy asks the engine for policies as a first contact does: the question, HMAC,
// life and grammar. The other side asks the same client for the same values, and does no
// more.
func foundPolicy(b *bench) (result, error) {
	e, err := b.startEngine()
	if err != nil {
		return result{}, err
	}
	finding := func(what string) (measure, error) {
		p, err := b.startSide("find", e.socket, e.key, what)
		if err != nil {
			return nil, err
		}
		order, err := b.newLoad(p.address, 1)
		if err != nil {
			return nil, err
		}
		request := func(dst []byte, _, _ int) []byte { return strconv.AppendInt(dst, 0, 10) }
		return func() (float64, error) {
			return p.cpuOf(findSection, func() error { return order.ask(b.ctx, 1, request, wantReply("done")) })
		}, nil
	}
	ours, err := finding("policies")
	if err != nil {
		return result{}, err
	}
	limit, err := finding("values")
	if err != nil {
		return result{}, err
	}
	return b.pairs(ours, limit, ratio)
}

// noStamps is a fleet's Store.
type noStamps struct{}

func (noStamps) FleetStamps() ([]byte, error)  { return nil, nil }
func (noStamps) WriteFleetStamps([]byte) error { return nil }

// findSide is either side of foundPolicy: the path of a socket, a file with a key, and
// what it asks for after it has announced them, "policies" or their "values".
func findSide(args []string) error {
	f, err := fleet.New(fleet.Options{URL: "unix://" + args[0], KeyFile: args[1], Prefix: "sts-tlsmap:", Name: args[2], Now: time.Now, Store: noStamps{}, Log: slog.Default()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), enginePatience)
	defer cancel()
	if err := announce(ctx, f, args[2]); err != nil {
		return err
	}
	ask := func(ctx context.Context, domain string) (ok bool) { _, ok = f.Find(ctx, domain); return ok }
	if args[2] == "values" {
		ask = func(ctx context.Context, domain string) (ok bool) { _, ok = f.Sealed(ctx, domain); return ok }
	}
	var n atomic.Int64
	return serveSections(func(ctx context.Context, _ string) error {
		for range findSection / discoverySection {
			domain := fmt.Sprintf("%s%d.example", args[2], n.Add(1)%foundPolicies)
			// On a busy machine the engine sometimes takes more than 100 ms.
			if ask(ctx, domain) {
				continue
			}
			if failed := f.Stats().Failed; failed == 0 || failed > findSection/100 {
				return fmt.Errorf("%s was not found; %d questions have failed", domain, failed)
			}
		}
		return nil
	})
}

// announce brings policies to the engine.
func announce(ctx context.Context, f *fleet.Fleet, what string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go f.Run(ctx)
	now := time.Now()
	for i := range foundPolicies {
		domain := fmt.Sprintf("%s%d.example", what, i)
		text := fmt.Appendf(nil, "version: STSv1\r\nmode: enforce\r\nmx: mx1.%s\r\nmx: mx2.%s\r\nmax_age: 604800\r\n", domain, domain)
		f.Announce(&keeper.Foreign{Domain: domain, ID: "20260101T000000", Text: text, Fetched: now, Expires: now.Add(time.Hour)})
	}
	for f.Stats().Written < foundPolicies {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}
