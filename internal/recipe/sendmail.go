package recipe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// sendmailMap is the name that FEATURE(sts) gives to its map, and the daemon's map for it.
const sendmailMap = "sts"

// A SendmailConf is what sendmail(8) says of itself and its configuration.
type SendmailConf struct {
	Version Version
	Support []string // what it was built with: "_FFR_MTA_STS", "DANE"
	Text    string   // sendmail.cf
}

const sendmailCF = "/etc/mail/sendmail.cf"

// FindSendmail returns where sendmail is. Other MTAs have a program of that name, too:
// look for them first.
func FindSendmail() (string, error) {
	if _, err := os.Stat(sendmailCF); err != nil {
		return "", fmt.Errorf("no sendmail found: %w", err)
	}
	return find("sendmail", "/usr/sbin/sendmail", "/usr/libexec/sendmail/sendmail", "/usr/lib/sendmail")
}

// ReadSendmail asks the sendmail at path for its version, and reads its configuration.
// root is the machine's file system, from "/".
func ReadSendmail(ctx context.Context, path string, root fs.FS) (c SendmailConf, err error) {
	out, err := ask(ctx, path, [][]string{{"-bt", "-d0.13"}})
	if err != nil {
		return c, err
	}
	m := regexp.MustCompile(`(?m)^Version (\S+)`).FindStringSubmatch(out[0])
	if m == nil {
		return c, errors.New("sendmail -bt -d0.13 prints no version, is it sendmail's?")
	}
	c.Support = strings.Fields(out[0])
	text, err := fs.ReadFile(root, rooted(sendmailCF))
	c.Text = string(text)
	if err == nil {
		c.Version, err = ParseVersion(m[1])
	}
	return c, err
}

// sets returns the value of an option in sendmail.cf, or of a macro of one letter.
func (c SendmailConf) sets(name string) string {
	if m := regexp.MustCompile(`(?m)^` + name + `[ \t]*(?:=[ \t]*)?(.*?)[ \t]*$`).FindStringSubmatch(c.Text); m != nil {
		return m[1]
	}
	return ""
}

// Sendmail returns the lines of sendmail.mc for that sendmail, and the warnings.
func Sendmail(c SendmailConf, root fs.FS, d Daemon) (r Recipe, err error) {
	i := slices.IndexFunc(d.Maps, func(m mta.Map) bool { return m.Name == sendmailMap })
	loopback, unix, remote := d.reach()
	var server string
	if host, port, err := net.SplitHostPort(strings.TrimPrefix(cmp.Or(loopback, remote), "inet:")); err == nil {
		server = "inet:" + port + "@" + host
		if strings.Contains(host, ":") {
			server = "inet6:" + port + "@" + host
		}
	} else if len(unix) > 0 {
		server = "unix:" + unix[0]
	}
	smart := c.sets("DS")
	switch {
	case !c.Version.AtLeast(8, 18, 2):
		return r, fmt.Errorf("this is sendmail %s, which checks a policy for the first recipient of a connection only: mail to another domain at "+
			"the same host goes out whatever its policy says; 8.18.2 or later is needed", c.Version)
	case !slices.Contains(c.Support, "_FFR_MTA_STS"):
		return r, errors.New("this sendmail was built without _FFR_MTA_STS: it knows no MTA-STS")
	case smart != "":
		return r, fmt.Errorf("this sendmail sends mail to %s, but asks for the policies of the recipients' domains, which do not list that host: "+
			"mail to all domains with an enforced policy would wait. Require verified TLS of that host instead, in the access table: "+
			"TLS_Srv:HOST VERIFY", oneLine(smart))
	case i < 0 || d.Maps[i].Format != mta.FormatSendmail:
		return r, fmt.Errorf("the daemon has no map %s with format %q", sendmailMap, mta.FormatSendmail)
	case server == "":
		return r, errors.New("the daemon has no endpoint that sendmail can ask: set listen")
	}
	r.m4 = true
	r.Title = fmt.Sprintf("For sendmail.mc of this sendmail %s, before the MAILER lines. Nothing has been changed. After you have added the "+
		"lines, make %s and restart sendmail; on Debian: make -C /etc/mail, systemctl restart sendmail", c.Version, sendmailCF)
	r.warnIf(!d.Maps[i].Enforce, "map %s of the daemon has enforce = false: it is a rehearsal, and protects nothing.", sendmailMap)
	r.warnIf(loopback == "" && remote != "", crossesNetwork, remote)
	wait := (max(d.LookupTimeout+timeMargin, defaultTime) + time.Second - 1) / time.Second
	spec, why := fmt.Sprintf("socket -d%d -T<TMPF> %s", wait, server), ""
	if c.sets("Ksts") == spec {
		why = "already set"
	}
	r.Parts = append(r.Parts, Part{Why: why, Text: "FEATURE(`sts', `" + spec + "')dnl\n"})
	r.Parts = append(r.Parts, Part{Why: "without it, a forged CNAME record of a domain makes sendmail ask for the policy of another one",
		Text: "define(`confDONT_EXPAND_CNAMES', `True')dnl\n"})
	if c.sets("O CACertFile") == "" || c.sets("O CACertPath") == "" {
		file := findCAFile(root)
		r.warnIf(file == "", noAuthorities)
		r.Parts = append(r.Parts, Part{Why: "sendmail verifies no certificate unless both are set", Text: fmt.Sprintf("define(`confCACERT', `%s')dnl\ndefine(`confCACERT_PATH', `/etc/ssl/certs')dnl\n",
			cmp.Or(file, caFiles[0]))})
	}
	r.warnIf(strings.EqualFold(c.sets("O DANE"), "true"), "confDANE is on: where a host's TLSA lookup fails, or its TLSA records are not usable, "+
		"sendmail does not look at the domain's policy, so whoever can forge DNS answers turns it off. Remove confDANE.")
	r.warnIf(strings.Contains(c.Text, "\nKmailertable "), "there is a mailertable: sendmail asks for the policy of the recipient's domain, whatever "+
		"host the table names. For each of its domains write \"STS:DOMAIN NO\" into the access table.")
	r.note("to see the answer for a domain: sts-tlsmap -query DOMAIN -map %s", sendmailMap)
	return r, nil
}
