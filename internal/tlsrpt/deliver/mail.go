package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"time"

	"github.com/emersion/go-smtp"
)

// The bounds of handing a mail to an MTA.
const (
	mailTime  = 3 * time.Minute // in all
	replyTime = time.Minute     // for the reply to a command
	maxOutput = 4 << 10         // bytes of what a sendmail command says
	killWait  = 5 * time.Second // for its output to end when it is killed
)

var errNoMTA = errors.New("our own MTA does not answer")

// SMTP returns a Config.Mail that submits to the MTA at address ("127.0.0.1:25") and
// calls itself helo. No answer of that MTA is final, since it is ours: a code 5xx may be
// a mistake in its configuration, such as "relaying denied".
func SMTP(address, helo string) func(ctx context.Context, from, to string, message []byte) error {
	return func(ctx context.Context, from, to string, message []byte) error {
		ctx, cancel := context.WithTimeout(ctx, mailTime)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("%w: %w", errNoMTA, err)
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		// Not net/smtp: it asks for SMTPUTF8 wherever that is offered, and an MTA must
		// not pass such a mail on to a host without it.
		c := smtp.NewClient(conn)
		defer c.Close()
		c.CommandTimeout, c.SubmissionTimeout = replyTime, mailTime
		if err := c.Hello(helo); err != nil {
			return fmt.Errorf("%w: EHLO: %w", errNoMTA, err)
		}
		if err := c.Mail(from, nil); err != nil {
			return fmt.Errorf("%w: MAIL FROM: %w", errNoMTA, err)
		}
		if err := c.Rcpt(to, nil); err != nil {
			return fmt.Errorf("RCPT TO: %w", err)
		}
		data, err := c.Data()
		if err != nil {
			return fmt.Errorf("DATA: %w", err)
		}
		_, err = data.Write(message)
		if err = errors.Join(err, data.Close()); err != nil {
			return fmt.Errorf("end of DATA: %w", err)
		}
		c.Quit() // the MTA has the mail
		return nil
	}
}

// Sendmail returns a Config.Mail that runs the sendmail command at path.
func Sendmail(path string) func(ctx context.Context, from, to string, message []byte) error {
	return func(ctx context.Context, from, to string, message []byte) error {
		ctx, cancel := context.WithTimeout(ctx, mailTime)
		defer cancel()
		var output limited
		cmd := exec.CommandContext(ctx, path, "-i", "-f", from, "--", to)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Stdin = bytes.NewReader(bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n")))
		cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &output, &output, killWait
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w: %s", path, err, bytes.TrimSpace(output.kept))
		}
		return nil
	}
}

// A limited keeps the first maxOutput bytes that are written to it.
type limited struct{ kept []byte }

func (l *limited) Write(b []byte) (int, error) {
	l.kept = append(l.kept, b[:min(len(b), maxOutput-len(l.kept))]...)
	return len(b), nil
}
