package recipe

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
)

// An EximConf is what exim(8) says of itself and its configuration.
type EximConf struct {
	Version    Version
	Support    []string   // what it was built with: "GnuTLS", "DANE"
	File       string     // the configuration that it reads
	Text       string     // that configuration, without comments; empty if we may not see it
	Routers    []Instance // in order
	Transports []Instance
	RetryRule  string // for a domain that no rule names; empty: there is none
	TLSRule    string // the one for a host of it whose TLS failed
	Readsocket string // what ${readsocket gets from the daemon, or readsocketWorks
}

// An Instance is a router or a transport with its options.
type Instance struct {
	Name    string
	Options map[string]string // a switch is "true" or "false"
}

// What the daemon answers to the question that the reader has ${readsocket ask,
// and what that falls back to: Exim may ask, and nobody answers.
const (
	readsocketAnswer = "9:NOTFOUND ,"
	readsocketWorks  = "allowed"
)

// eximQuestions are the questions, which change nothing. The last one is put to
// the daemon, about a name of one label, for which it looks up nothing.
func eximQuestions(server string) [7][]string {
	return [7][]string{
		{"-bV"},
		{"-bP", "routers"},
		{"-bP", "transports"},
		{"-bP", "config"},
		{"-brt", "sts-tlsmap.invalid"},
		{"-brt", "sts-tlsmap.invalid", "tls_required"},
		{"-be", "${readsocket{" + server + "}{14:" + eximMap + " localhost,}{5s}{}{" + readsocketWorks + "}}"},
	}
}

var (
	eximVersion = regexp.MustCompile(`(?m)^Exim version (\d+\.\d+(?:\.\d+)?)`)
	eximFile    = regexp.MustCompile(`(?m)^Configuration file is (\S+)`)
	eximSupport = regexp.MustCompile(`(?m)^Support for: (.*)$`)
	instance    = regexp.MustCompile(`^(\S+) (?:router|transport):$`)
)

// FindExim returns where Exim is, also for users whose PATH has no sbin.
func FindExim() (string, error) {
	for _, name := range []string{"exim4", "exim", "/usr/sbin/exim4", "/usr/sbin/exim", "/usr/exim/bin/exim"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no exim found: is Exim installed on this machine?")
}

// ReadExim asks the Exim at path, and parses what it says. It must be run by
// root: Exim shows its configuration to nobody else. It is also had ask the
// daemon.
func ReadExim(ctx context.Context, path string, d Daemon) (EximConf, error) {
	server, _ := eximServer(d.Listen)
	if server == "" {
		server = "inet:127.0.0.1:1" // where nobody listens
	}
	var out [7]string
	for i, args := range eximQuestions(server) {
		b, err := run(ctx, path, args...)
		if err != nil {
			return EximConf{}, fmt.Errorf("reading Exim's configuration: %w", err)
		}
		out[i] = string(b)
	}
	return ParseExim(out[0], out[1], out[2], out[3], out[4], out[5], out[6])
}

// ParseExim makes an EximConf of the output of "exim -bV", "exim -bP routers",
// "exim -bP transports", "exim -bP config", "exim -brt" for a domain that is
// nowhere, the same for a host whose TLS failed, and "exim -be" for a ${readsocket.
func ParseExim(about, routers, transports, text, retry, tlsRetry, readsocket string) (EximConf, error) {
	c := EximConf{
		Text:       text,
		Routers:    instances(routers),
		Transports: instances(transports),
		Readsocket: strings.TrimSpace(readsocket),
	}
	version := eximVersion.FindStringSubmatch(about)
	if version == nil {
		return c, errors.New("exim -bV does not tell a version: is it Exim's?")
	}
	var err error
	if c.Version, err = ParseVersion(version[1]); err != nil {
		return c, fmt.Errorf("exim -bV: %w", err)
	}
	if m := eximFile.FindStringSubmatch(about); m != nil {
		c.File = m[1]
	}
	if m := eximSupport.FindStringSubmatch(about); m != nil {
		c.Support = strings.Fields(m[1])
	}
	c.RetryRule, c.TLSRule = retryRule(retry), retryRule(tlsRetry)
	return c, nil
}

// retryRule reads what "exim -brt" prints.
func retryRule(text string) string {
	_, rule, _ := strings.Cut(text, "Retry rule:")
	return strings.TrimSpace(rule)
}

// instances reads what "exim -bP routers" prints: the name of each, then a
// line for each option, "name = value", "switch" or "no_switch".
func instances(text string) (all []Instance) {
	for line := range lines([]byte(text)) {
		if m := instance.FindStringSubmatch(line); m != nil {
			all = append(all, Instance{Name: m[1], Options: make(map[string]string)})
			continue
		}
		if len(all) == 0 || line == "" {
			continue
		}
		options := all[len(all)-1].Options
		name, value, ok := strings.Cut(line, " =")
		switch off, isOff := strings.CutPrefix(line, "no_"); {
		case ok:
			options[name] = strings.TrimSpace(value)
		case isOff:
			options[off] = "false"
		default:
			options[line] = "true"
		}
	}
	return all
}

// find returns the instance of that name, or nil.
func find(all []Instance, name string) *Instance {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}
