// Demo tells in ten seconds what sts-tlsmap does. It starts a small internet
// (internal/testlab) and the real daemon on loopback, asks it as Postfix
// would, and says in words what happens. It needs no privileges and no
// network, and fails if the story does not come out as it is told.
//
//	go run ./test/demo [-bin ./bin/sts-tlsmap]
//
// Port 443 cannot be bound without privileges, so the daemon reaches the
// policy hosts through the lab's CONNECT proxy. No mail is sent here: that is
// shown in test/e2e.
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
	// pause is the time a reader has for a step, on a terminal.
	pause = 1200 * time.Millisecond
	// tooLong ends a demonstration that hangs.
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
	honest, err := build(lab)
	if err != nil {
		return err
	}
	d, err := newDaemon(bin, lab)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove(err != nil)) }()
	if err := d.Start(ctx); err != nil {
		return err
	}
	s := &story{ctx: ctx, daemon: d, slow: isTerminal(os.Stdout)}
	s.tell(honest)
	return s.err
}

// build sets up the domains of the story and returns the one it is about.
func build(lab *testlab.Lab) (honest *testlab.Domain, err error) {
	for name, with := range map[string]testlab.With{
		"plain.example":  {NoMail: true, NoPolicy: true},
		"trial.example":  {NoMail: true, Mode: "testing"},
		"broken.example": {NoMail: true, PolicyCert: testlab.CertExpired},
	} {
		if _, err := lab.Domain(name, with); err != nil {
			return nil, err
		}
	}
	return lab.Domain("honest.example", testlab.With{NoMail: true, ID: "2026a"})
}

// tell is the story. Each step says what is the case, asks, and says what the
// answer means.
func (s *story) tell(honest *testlab.Domain) {
	s.say("A small internet now runs on this machine: a resolver, four mail domains and\n" +
		"their policy hosts. Beside it runs the daemon, and answers Postfix's lookups.")

	s.step("honest.example publishes a policy: TLS only, and only to mx1.honest.example.")
	s.lookup("honest.example", "secure match=mx1.honest.example servername=hostname")
	s.say("Postfix now delivers there over verified TLS, or not at all.")

	s.step("plain.example publishes none, trial.example is still testing its own, and the\n" +
		"policy host of broken.example has a certificate that ran out.")
	s.lookup("plain.example", "")
	s.lookup("trial.example", "")
	s.lookup("broken.example", "")
	s.say("Not found: Postfix goes on as it is configured, as without sts-tlsmap.")

	s.step("An attacker takes the TXT record of honest.example away, and its policy host\n" +
		"off the net. The daemon is told to look again, killed with -9, and restarted.")
	honest.RemoveRecord()
	s.do(honest.Policy.Server.Down)
	s.command(anyExit, s.daemon.Program, "-refresh", "honest.example")
	s.say("   (kill -9, start)")
	s.do(s.daemon.Kill)
	s.do(func() error { return s.daemon.Start(s.ctx) })
	s.lookup("honest.example", "secure match=mx1.honest.example servername=hostname")
	s.say("Still enforced: a policy holds until its max_age runs out, and it is on disk.")

	s.step("The attacker is gone. honest.example has moved its mail, and says so with a new\n" +
		"id. By itself the daemon asks for the id when a lookup finds the last look more than\n" +
		"five minutes old; here it is told to.")
	s.do(honest.Policy.Server.Up)
	honest.SetPolicy(testlab.PolicyText("enforce", 7*24*time.Hour, "*.bigmail.example"), "2026b")
	s.command(0, s.daemon.Program, "-refresh", "honest.example")
	s.lookup("honest.example", "secure match=.bigmail.example servername=hostname")

	s.step("And this is what it knows by now:")
	s.command(0, s.daemon.Program, "-cache")
}
