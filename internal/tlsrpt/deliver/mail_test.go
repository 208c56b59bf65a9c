package deliver_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
)

const letter = "From: <tls@reporter.test>\r\nTo: <tls@example.test>\r\n\r\n.a line with a dot\r\n.\r\nend\r\n"

// submit hands the letter to a mail host of the lab.
func submit(t *testing.T, lab *testlab.T, host *testlab.MailHost, within time.Duration) error {
	t.Helper()
	real, ok := lab.Real(net.JoinHostPort(host.Addr.String(), "25"))
	if !ok {
		t.Fatal("the host has no address")
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return deliver.SMTP(real, "mail.reporter.test")(ctx, "tls@reporter.test", "tls@example.test", []byte(letter))
}

func TestAMailIsSubmittedBySMTP(t *testing.T) {
	lab := testlab.New(t)
	host := lab.MailHost("mail.reporter.test", "")
	if err := submit(t, lab, host, time.Minute); err != nil {
		t.Fatal(err)
	}
	got := host.Messages()
	if len(got) != 1 || got[0].From != "tls@reporter.test" || len(got[0].To) != 1 || got[0].To[0] != "tls@example.test" ||
		got[0].Helo != "mail.reporter.test" || !bytes.Equal(bytes.ReplaceAll(got[0].Data, []byte("\r\n"), []byte("\n")), []byte(strings.ReplaceAll(letter, "\r\n", "\n"))) {
		t.Errorf("got %+v", got)
	}
}

// What our own MTA refuses may be a mistake of ours, such as "relaying denied".
func TestNoAnswerOfOurOwnMTAIsFinal(t *testing.T) {
	lab := testlab.New(t)
	for fault, noMTA := range map[testlab.MailFault]bool{
		testlab.RcptRejected: false, testlab.MailDeferred: true, testlab.GreetingRefused: true,
	} {
		host := lab.MailHost(fmt.Sprintf("mail%v.reporter.test", fault), "")
		host.Behave(fault)
		if err := submit(t, lab, host, time.Minute); err == nil || errors.Is(err, deliver.ErrRefused) || strings.Contains(err.Error(), "our own MTA does not answer") != noMTA {
			t.Errorf("fault %v: %v", fault, err)
		}
	}
	down := lab.MailHost("down.reporter.test", "")
	if err := down.Down(); err != nil {
		t.Fatal(err)
	}
	if err := submit(t, lab, down, time.Minute); err == nil || !strings.Contains(err.Error(), "our own MTA does not answer") {
		t.Errorf("no MTA: %v", err)
	}
}

// serveSMTP answers the commands of one connection with the replies, one for each line
// received after the greeting, and returns the lines.
func serveSMTP(t *testing.T, replies ...string) (address string, lines func() []string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		in := bufio.NewScanner(conn)
		for _, reply := range replies {
			fmt.Fprint(conn, reply)
			if !in.Scan() {
				return
			}
			got = append(got, in.Text())
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String(), func() []string { <-done; return got }
}

// Exim must not pass a mail that came with SMTPUTF8 on to a host without it.
func TestSMTPUTF8IsNotAskedFor(t *testing.T) {
	address, lines := serveSMTP(t, "220 hello\r\n", "250-mail\r\n250-8BITMIME\r\n250-SIZE 1000\r\n250 SMTPUTF8\r\n", "550 no\r\n")
	err := deliver.SMTP(address, "mail.reporter.test")(t.Context(), "tls@reporter.test", "tls@example.test", []byte(letter))
	if err == nil || errors.Is(err, deliver.ErrRefused) {
		t.Errorf("our own sender is refused: %v", err)
	}
	if got := lines(); len(got) < 2 || strings.Contains(got[1], "SMTPUTF8") || !strings.HasPrefix(got[1], "MAIL FROM:<tls@reporter.test>") {
		t.Errorf("got %q", got)
	}
}

func TestAnMTAThatDoesNotAnswerEndsTheAttemptInTime(t *testing.T) {
	lab := testlab.New(t)
	host := lab.MailHost("mail.reporter.test", "")
	host.Behave(testlab.GreetingStall)
	start := time.Now()
	if err := submit(t, lab, host, 300*time.Millisecond); err == nil || errors.Is(err, deliver.ErrRefused) || time.Since(start) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// script writes a sendmail command. It finds its own folder in $DIR.
func script(t *testing.T, text string) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	path = filepath.Join(dir, "sendmail")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nDIR="+dir+"\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

func TestAMailIsHandedToTheSendmailCommand(t *testing.T) {
	path, dir := script(t, `for a; do echo "$a"; done >$DIR/args; cat >$DIR/stdin`)
	if err := deliver.Sendmail(path)(t.Context(), "tls@reporter.test", "tls@example.test", []byte(letter)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"args": "-i\n-f\ntls@reporter.test\n--\ntls@example.test\n", "stdin": strings.ReplaceAll(letter, "\r\n", "\n"),
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestAFailureOfTheSendmailCommandIsToldAndNotFinal(t *testing.T) {
	for _, code := range []int{1, 67, 69, 75} {
		path, _ := script(t, fmt.Sprintf("echo queue file write error >&2; exit %d", code))
		err := deliver.Sendmail(path)(t.Context(), "tls@reporter.test", "tls@example.test", []byte(letter))
		if err == nil || errors.Is(err, deliver.ErrRefused) || !strings.Contains(err.Error(), "queue file write error") {
			t.Errorf("exit %d: %v", code, err)
		}
	}
	if err := deliver.Sendmail("/nonexistent")(t.Context(), "a@b.test", "c@d.test", nil); err == nil || errors.Is(err, deliver.ErrRefused) {
		t.Errorf("no command: %v", err)
	}
}

func TestASendmailCommandThatHangsOrChattersIsEnded(t *testing.T) {
	for name, text := range map[string]string{"hangs": "exec sleep 600", "chatters": "exec yes"} {
		path, _ := script(t, text)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		start := time.Now()
		err := deliver.Sendmail(path)(ctx, "tls@reporter.test", "tls@example.test", []byte(letter))
		cancel()
		if err == nil || errors.Is(err, deliver.ErrRefused) || time.Since(start) > 20*time.Second || len(err.Error()) > 5000 {
			t.Errorf("%s: after %v, %d bytes: %.100v", name, time.Since(start), len(fmt.Sprint(err)), err)
		}
	}
}
