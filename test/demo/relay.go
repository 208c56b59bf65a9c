package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// certificateRefused is Postfix's text for a host that fails an enforced policy.
const certificateRefused = "Server certificate not verified"

// A relay stands in for Postfix, which the demo cannot run without root: it asks the
// daemon, delivers one message, and keeps it in a queue if that fails. The queue is
// listed by a program in the place of postqueue(1).
type relay struct {
	queue string // the file with the output of postqueue -j
	roots *x509.CertPool
}

// newRelay puts the relay's postqueue and postconf into the daemon's PATH.
func newRelay(d *daemon, lab *testlab.Lab) (*relay, error) {
	r := &relay{queue: filepath.Join(d.dir, "queue.json"), roots: x509.NewCertPool()}
	r.roots.AppendCertsFromPEM(lab.CA.PEM())
	bin := filepath.Join(d.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	d.Env = append(d.Env, "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	for name, script := range map[string]string{
		"postqueue": "cat '" + r.queue + "'",
		"postconf":  "echo 'socketmap:inet:127.0.0.1:8461:postfix'; echo",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			return nil, err
		}
	}
	return r, os.WriteFile(r.queue, nil, 0o644)
}

// deliver sends a message to the domain's host. With an enforced policy, the host must
// show a certificate of its name.
func (r *relay) deliver(d *testlab.Domain, enforced bool) error {
	host := d.Mail[0]
	conn, err := net.DialTimeout("tcp", host.Real, tooLong)
	if err != nil {
		return err
	}
	c, err := smtp.NewClient(conn, host.Name)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.StartTLS(&tls.Config{ServerName: host.Name, RootCAs: r.roots, InsecureSkipVerify: !enforced}); err != nil {
		return err
	}
	if err := c.Mail("sender@relay.example"); err != nil {
		return err
	}
	if err := c.Rcpt("someone@" + d.Name); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprint(w, "Subject: hello\r\n\r\nHello.\r\n"); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// keep writes the message into the queue.
func (r *relay) keep(domain, reason string) error {
	line, err := json.Marshal(map[string]any{
		"queue_name": "deferred", "queue_id": "4F21ABC", "arrival_time": time.Now().Unix(),
		"recipients": []map[string]string{{"address": "someone@" + domain, "delay_reason": reason}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(r.queue, append(line, '\n'), 0o644)
}

// drop empties the queue.
func (r *relay) drop() error { return os.Truncate(r.queue, 0) }

// tellOfMailThatWaits shows the way from a deferred message to its delivery.
func (s *story) tellOfMailThatWaits(r *relay, bad *testlab.Domain) {
	s.step("wrongname.example has a policy, but the certificate of its mail host has another\n" +
		"name. A relay sends a message there. (The demo cannot run Postfix: it delivers by\n" +
		"itself, and lists its queue in the place of postqueue.)")
	s.lookup(bad.Name, "secure match="+bad.Mail[0].Name+" servername=hostname")
	s.do(func() error {
		err := r.deliver(bad, true)
		if err == nil {
			return fmt.Errorf("a host with the certificate of another name gets the mail")
		}
		fmt.Printf("   (deferred: %v)\n", err)
		return r.keep(bad.Name, certificateRefused)
	})
	s.command(1, s.daemon.Program, "-waiting")
	s.say("The mail cannot wait for the domain, so the second command is used:")
	s.command(0, s.daemon.Program, "-exempt", bad.Name, "-for", "4h")
	s.lookup(bad.Name, "")
	s.do(func() error {
		if err := r.deliver(bad, false); err != nil {
			return err
		}
		if n := len(bad.Mail[0].Messages()); n != 1 {
			return fmt.Errorf("%s has %d messages, want 1", bad.Mail[0].Name, n)
		}
		fmt.Println("   (delivered)")
		return r.drop()
	})
	s.command(0, s.daemon.Program, "-waiting")
}
