package reporting

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

const maxKey = 64 << 10 // bytes of dkim_key

// Check returns what is wrong with the configuration of reports: nil if they are off.
func Check(c *config.TLSRPT) error {
	if !c.Reports() {
		return nil
	}
	_, err := newReporter(c)
	return err
}

// CheckKey asks for the public key of the configuration's dkim_key, and says that both
// fit. It returns "" if no reports are sent.
func CheckKey(ctx context.Context, c *config.TLSRPT, asker policy.Resolver) (words string, err error) {
	reporter, err := newReporter(c)
	if err != nil || !c.Reports() {
		return "", nil // Check says why
	}
	return reporter.CheckKey(func(name string) ([]string, error) {
		answer, err := asker.Query(ctx, name, resolver.TypeTXT)
		if err != nil {
			return nil, err
		}
		return answer.Texts, nil
	})
}

// newReporter returns who reports, as the configuration says. It reads the DKIM key.
func newReporter(c *config.TLSRPT) (*report.Reporter, error) {
	who := report.Config{Organization: c.Organization, Contact: c.Contact, Sender: c.Sender, Selector: c.DKIMSelector}
	if c.DKIMKey != "" {
		key, err := readKey(c.DKIMKey)
		if err != nil {
			return nil, c.Mistake("dkim_key", err)
		}
		who.Key = key
	}
	reporter, err := report.New(who)
	if wrong := (*report.ConfigError)(nil); errors.As(err, &wrong) {
		err = c.Mistake(wrong.Key, wrong.Err)
	}
	return reporter, err
}

func readKey(path string) (crypto.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return nil, err
	}
	key, err := report.ParseKey(pem)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// With NoNewPrivileges, postdrop of Postfix waits forever for the right to write its queue.
var errSandbox = errors.New("submit: NoNewPrivileges= of the daemon's unit denies a sendmail command the rights of the MTA; " +
	`set submit = "smtp:127.0.0.1:25"`)

// newDeliverer returns what delivers the reports.
func (s *Service) newDeliverer() (*deliver.Deliverer, error) {
	c := s.Config
	reporter, err := newReporter(c)
	if err != nil {
		return nil, err
	}
	client, err := policy.NewClient(s.Network)
	if err != nil {
		return nil, err
	}
	skip := exempt.ForGood(c.Skip)
	at, isSMTP := strings.CutPrefix(c.Submit, "smtp:")
	mail := deliver.SMTP(at, s.Host)
	if !isSMTP {
		if status, _ := os.ReadFile("/proc/self/status"); bytes.Contains(status, []byte("\nNoNewPrivs:\t1\n")) {
			return nil, errSandbox
		}
		mail = deliver.Sendmail(strings.TrimPrefix(c.Submit, "sendmail:"))
	}
	relay := ""
	if s.Fleet != nil {
		if relay, err = s.store.RelayID(); err != nil {
			return nil, err
		}
	}
	return deliver.New(deliver.Config{
		Store: s.store, Resolver: s.Resolver, Reporter: reporter, Mail: mail, Post: deliver.HTTPS(client, c.HTTPSVerify, s.Network.UserAgent),
		Window: c.Window, MaxPerDestination: c.MaxPerDestination, FailuresOnly: c.Report == "failures",
		Skip: func(domain string) bool { return skip.Has([]byte(domain)) }, Now: s.Now, Log: s.Log, Fleet: s.Fleet, Relay: relay,
	}), nil
}
