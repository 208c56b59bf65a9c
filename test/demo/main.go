// Demo shows what sts-tlsmap does, in 8 seconds on a terminal. It starts a small internet
// (internal/testlab) and the real daemon on loopback, asks the daemon as
// Postfix would, and explains each step. It needs no privileges and no network,
// and fails if an answer is wrong.
//
//	go run ./test/demo [-bin ./bin/sts-tlsmap]
//
// Only root can listen on port 443, so the daemon reaches the policy hosts
// through the lab's CONNECT proxy. The demo delivers one message by itself, without an
// MTA; test/e2e has real ones.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

const (
	// pause gives the reader of a terminal time for each step.
	pause = 1200 * time.Millisecond
	// tooLong ends a demo that hangs.
	tooLong = time.Minute
)

func main() {
	bin := flag.String("bin", "./bin/sts-tlsmap", "the program to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, tooLong)
	defer cancel()
	if err := run(ctx, *bin); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string) (err error) {
	lab, err := testlab.Start(testlab.Options{})
	if err != nil {
		return err
	}
	defer lab.Close()
	honest, wrong, err := build(lab)
	if err != nil {
		return err
	}
	d, err := newDaemon(bin, lab)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove(err != nil)) }()
	r, err := newRelay(d, lab)
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	s := &story{ctx: ctx, daemon: d, slow: isTerminal(os.Stdout)}
	s.tell(honest)
	s.tellOfMailThatWaits(r, wrong)
	return s.err
}

// build sets up the domains and returns honest.example and wrongname.example.
func build(lab *testlab.Lab) (honest, wrong *testlab.Domain, err error) {
	for name, with := range map[string]testlab.With{
		"plain.example":  {NoMail: true, NoPolicy: true},
		"trial.example":  {NoMail: true, Mode: "testing"},
		"broken.example": {NoMail: true, PolicyCert: testlab.CertExpired},
	} {
		if _, err := lab.Domain(name, with); err != nil {
			return nil, nil, err
		}
	}
	if wrong, err = lab.Domain("wrongname.example", testlab.With{MailCert: testlab.CertWrongName}); err != nil {
		return nil, nil, err
	}
	honest, err = lab.Domain("honest.example", testlab.With{NoMail: true, ID: "2026a"})
	return honest, wrong, err
}

// tell runs the steps. Each describes a situation, asks, and explains the
// answer.
func (s *story) tell(honest *testlab.Domain) {
	s.say("A small internet now runs on this machine: a resolver, five mail domains and\n" +
		"their policy hosts. The daemon runs beside it and answers Postfix's lookups.")

	s.step("honest.example publishes a policy: TLS only, and only to mx1.honest.example.")
	s.lookup("honest.example", "secure match=mx1.honest.example servername=hostname")
	s.say("Postfix now delivers there over verified TLS or not at all.")

	s.step("plain.example has no policy, trial.example's is in testing mode, and the policy\n" +
		"host of broken.example has an expired certificate.")
	s.lookup("plain.example", "")
	s.lookup("trial.example", "")
	s.lookup("broken.example", "")
	s.say("Not found: Postfix uses its other settings, as it would without sts-tlsmap.")

	s.step("An attacker blocks the TXT record of honest.example and its policy host. The\n" +
		"daemon is told to refresh the policy, killed with -9, and restarted.")
	honest.RemoveRecord()
	s.do(honest.Policy.Server.Down)
	s.command(anyExit, s.daemon.Program, "-refresh", "honest.example")
	s.say("   (kill -9, start)")
	s.do(s.daemon.Kill)
	s.do(func() error { return s.daemon.Start(s.ctx) })
	s.lookup("honest.example", "secure match=mx1.honest.example servername=hostname")
	s.say("Still enforced: the policy is on disk and valid until its max_age ends.")

	s.step("The attacker is gone. honest.example moves its mail and publishes a new policy\n" +
		"with a new id. A lookup makes the daemon ask for the id if the last check is more\n" +
		"than five minutes old; here it is told to.")
	s.do(honest.Policy.Server.Up)
	honest.SetPolicy(testlab.PolicyText("enforce", 7*24*time.Hour, "*.bigmail.example"), "2026b")
	s.command(0, s.daemon.Program, "-refresh", "honest.example")
	s.lookup("honest.example", "secure match=.bigmail.example servername=hostname")

	s.step("This is the cache now:")
	s.command(0, s.daemon.Program, "-cache")
}
