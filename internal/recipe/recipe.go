// Package recipe makes the text of -recipe: the lines that an MTA's
// configuration needs to ask the daemon, and warnings about settings that undo
// the protection. It reads the MTA's configuration (ReadPostconf, ReadExim) and
// changes nothing; the recipes (Postfix, Exim) are pure functions of what was
// read.
package recipe

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A Daemon is the part of the daemon's configuration that the MTA meets.
type Daemon struct {
	// Listen are the endpoints in Postfix's syntax: "inet:127.0.0.1:8461",
	// "unix:/path".
	Listen        []string
	Maps          []mta.Map     // those that the daemon answers
	LookupTimeout time.Duration // of one lookup
	// Sessions is the path of the socket that takes Postfix's TLS sessions for TLS reports, and
	// EximSessions of Exim's; "": none does.
	Sessions, EximSessions string
	// ReportSender is the sender of TLS reports; "": none are sent by mail.
	ReportSender string
}

// A Recipe is what to write into the configuration, and what to look at.
type Recipe struct {
	Title    string
	Warnings []string // what undoes the protection, and what to do about it
	Notes    []string
	Parts    []Part

	m4 bool // for m4: sendmail's files turn the comments with # off
}

// A Part is text for one place.
type Part struct {
	Where string // the file or the place; empty: there is one file only
	Why   string // empty if it is plain
	Text  string // whole lines
}

// warnIf adds a warning if the condition holds.
func (r *Recipe) warnIf(condition bool, format string, args ...any) {
	if condition {
		r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
	}
}

func (r *Recipe) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// width is where comments are wrapped.
const width = 76

// String renders the recipe as text that can go into the configuration as it
// is: all but the parts is comments.
func (r Recipe) String() string {
	var b strings.Builder
	comment(&b, r.Title)
	for _, w := range r.Warnings {
		b.WriteByte('\n')
		comment(&b, "WARNING: "+w)
	}
	for _, n := range r.Notes {
		b.WriteByte('\n')
		comment(&b, "Note: "+n)
	}
	for _, p := range r.Parts {
		b.WriteByte('\n')
		if p.Where != "" {
			b.WriteString("# " + strings.Repeat("-", width-2) + "\n")
			comment(&b, p.Where)
			b.WriteByte('\n')
		}
		if p.Why != "" {
			comment(&b, p.Why)
		}
		for line := range strings.Lines(p.Text) {
			b.WriteString(oneLine(strings.TrimSuffix(line, "\n")) + "\n")
		}
	}
	if r.m4 {
		return strings.ReplaceAll("\n"+b.String(), "\n#", "\ndnl #")[1:]
	}
	return b.String()
}

// comment writes text as lines of a comment.
func comment(b *strings.Builder, text string) {
	line := "#"
	for _, word := range strings.Fields(oneLine(text)) {
		if len(line) > len("#  ") && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "#  "
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

// oneLine replaces what would end a line or control a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// reach sorts the daemon's endpoints: the first on loopback over TCP, the paths
// of unix sockets, and the first across a network.
func (d Daemon) reach() (loopback string, unix []string, remote string) {
	for _, s := range d.Listen {
		e, err := endpoint.Parse(s)
		at, isLocal := e.Local()
		switch {
		case err != nil:
		case e.Network == "unix":
			unix = append(unix, e.Address)
		case isLocal:
			loopback = cmp.Or(loopback, at.String())
		default:
			remote = cmp.Or(remote, e.String())
		}
	}
	return loopback, unix, remote
}

const crossesNetwork = "%s is not a loopback address: whoever can forge replies on the way can turn the protection off."

// caFiles are where systems keep the public certificate authorities in one
// file, the common ones first.
var caFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, Arch
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // the same, newer
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/ssl/cert.pem",                                 // the BSDs, Alpine
}

// findCAFile returns the first of caFiles that exists, or "".
func findCAFile(root fs.FS) string {
	for _, name := range caFiles {
		if exists(root, name) {
			return name
		}
	}
	return ""
}

const (
	noVerification = "no certificate can be verified, and mail to domains with an enforced policy waits"
	noAuthorities  = "no file of certificate authorities was found: " + noVerification + ". Install the package ca-certificates and run this again."
)

// rooted turns an absolute name into one for an fs.FS, which takes no "..".
func rooted(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// exists reports whether there is a file of that absolute name. One that this user may
// not look at counts as there.
func exists(root fs.FS, name string) bool {
	st, err := fs.Stat(root, rooted(name))
	return errors.Is(err, fs.ErrPermission) || err == nil && !st.IsDir()
}

// resolvConf reads a resolv.conf. A file that cannot be read counts as empty, as
// for libc.
func resolvConf(root fs.FS, name string) (conf resolver.ResolvConf) {
	f, err := root.Open(rooted(name))
	if err != nil {
		return conf
	}
	defer f.Close()
	conf, _ = resolver.ReadResolvConf(f)
	return conf
}

// remoteServers returns the name servers on other machines.
func remoteServers(conf resolver.ResolvConf) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(conf.Servers), func(s netip.Addr) bool { return s.Unmap().IsLoopback() })
}

const remoteResolver = "the name server %s in %s is on another machine, and %s trusts it: whoever can forge its answers decides whether " +
	"DANE protects a domain. Run a validating resolver on this machine."
