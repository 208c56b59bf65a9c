package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A mode is what the program does in place of running as the daemon. The flag of
// that name asks for it.
type mode struct {
	name, args string
	least      int // arguments
	most       int
	run        func(*app, context.Context) (int, error)
	help       string
}

const many = 1 << 20 // arguments: the kernel's bound is lower

// modes in the order of the usage.
var modes = []mode{
	{"cache", "[DOMAIN...|.DOMAIN]", 0, many, (*app).cache, "print the cache as a table, or only what is below\n" +
		"DOMAIN; or all details of the domains"},
	{"query", "KEY", 1, 1, (*app).query, "ask the running daemon as the MTA would"},
	{"explain", "DOMAIN", 1, 1, (*app).explain, "explain, step by step, how a domain is answered and\n" +
		"why"},
	{"probe", "DOMAIN...|FILE", 1, many, (*app).probe, "connect to the MX hosts, and say whether mail would\n" +
		"go out; exit 1: some would wait; 2: for some it is\n" +
		"not known"},
	{"waiting", "[-probe]", 0, 0, (*app).waiting, "print which mail waits because of TLS, why, and what\n" +
		"to do; with -probe, probe its domains; exit 1:\n" +
		"something waits"},
	{"refresh", "DOMAIN...|all", 1, many, (*app).refresh, "check and fetch policies now"},
	{"forget", "DOMAIN...|all", 1, many, (*app).forget, "drop policies from the cache"},
	{"learn", "FILE", 1, 1, (*app).learn, "fill the cache from a list of domains (- is standard\n" +
		"input) or from the output of -cache -json on another\n" +
		"node"},
	{"exempt", "[DOMAIN -for T]", 0, 1, (*app).exempt, "ignore the policy of DOMAIN for a time such as 4h (0\n" +
		"ends it); without a domain, list what is exempt"},
	{"check", "[configuration]", 0, 1, (*app).check, "check the configuration, the daemon, the resolver and\n" +
		"the MTA; exit 1: mail waits or is less protected; 2:\n" +
		"wrong configuration"},
	{"tls", "[DOMAIN]", 0, 1, (*app).tls, "print which destinations had TLS failures, the worst\n" +
		"first, or the days of one destination"},
	{"report", "[DOMAIN [DAY]]", 0, 2, (*app).report, "print the TLS reports and how far they are, or the\n" +
		"JSON of one (DAY is 2026-11-30, today or yesterday)"},
	{"read-report", "FILE...", 1, many, (*app).readReport, "print what TLS reports say that others sent: JSON,\n" +
		"gzip, mail, mbox, folders (- is standard input); exit\n" +
		"1: failures; 2: unreadable"},
	{"fleet", "", 0, 0, (*app).fleet, "print the relays that share policies, and how their\n" +
		"server does; with -exempt, -forget and -refresh: at\n" +
		"all relays"},
	{"fleet-key", "", 0, 0, (*app).fleetKey, "print a new key for the relays of a fleet"},
	{"recipe", "postfix|exim|sendmail", 1, 1, (*app).recipe, "print the configuration that the MTA needs"},
	{"version", "", 0, 0, nil, "print the version"},
}

// options are the flags beside the mode, with the modes that they go with.
var options = []struct {
	name, value string
	modes       []string // nil: all, and the daemon
	help        string
}{
	{"config", "FILE", nil, "the configuration file (default\n" +
		"/etc/sts-tlsmap/sts-tlsmap.toml)"},
	{"day", "DAY", []string{"report"}, "with -report -send: the day (default yesterday)"},
	{"expiring", "T", []string{"cache"}, "with -cache: only policies that expire within a time\n" +
		"such as 2d"},
	{"failing", "", []string{"cache"}, "with -cache: only policies whose last fetch failed"},
	{"for", "T", []string{"exempt", "report"}, "with -exempt and -suppress: for how long"},
	{"healthy", "", []string{"query"}, "with -query: exit 0 whatever the reply is, 2 without\n" +
		"one"},
	{"json", "", []string{"cache", "explain", "probe", "waiting", "check", "tls", "report", "read-report", "fleet"}, "with -cache, -explain, -probe, -waiting, -check,\n" +
		"-tls, -report, -read-report, -fleet: one JSON object\n" +
		"per line"},
	{"map", "NAME", []string{"query", "probe"}, "with -query: the map to ask in (default postfix);\n" +
		"with -probe: the map that the MTA asks in (default:\n" +
		"the best for the MTA here)"},
	{"mode", "MODE", []string{"cache"}, "with -cache: only policies of that mode: enforce,\n" +
		"testing or none"},
	{"send", "", []string{"report"}, "with -report: send the reports of a day, or of DOMAIN\n" +
		"only, now"},
	{"suppress", "ADDRESS", []string{"report"}, "with -report and -for: send no reports to ADDRESS for\n" +
		"a time such as 30d (0 ends it)"},
	{"yes", "", []string{"forget"}, "with -forget all: do not ask"},
}

// flags are the command line.
type flags struct {
	mode *mode // nil: the daemon
	args []string

	config   string // empty: the default file
	mapName  string
	json     bool
	probe    bool   // with -waiting
	fleet    bool   // with -exempt, -forget and -refresh
	span     string // -for
	suppress string
	send     bool
	day      string
	yes      bool
	healthy  bool

	policyMode, expiring string // of -cache; empty: any
	failing              bool
}

// usage is the answer to -help.
func usage() string {
	var rows [2]string // of modes, of options
	row := func(i int, name, args, help string) {
		rows[i] += fmt.Sprintf("  %-23s %s\n", strings.TrimSpace("-"+name+" "+args), strings.ReplaceAll(help, "\n", "\n"+strings.Repeat(" ", 26)))
	}
	for _, m := range modes {
		row(0, m.name, m.args, m.help)
	}
	for _, o := range options {
		row(1, o.name, o.value, o.help)
	}
	return `Usage: sts-tlsmap [flags]

Without a mode, sts-tlsmap runs as the daemon that a mail relay asks how to
protect the connection to a domain (MTA-STS, RFC 8461).

Modes:
` + rows[0] + "\nOther flags:\n" + rows[1] + `
Flags may stand after arguments: sts-tlsmap -cache example.com -json
Exit codes: 0 done, 1 not found, 2 failed.
`
}

func (f *flags) is(name string) bool { return f.mode != nil && f.mode.name == name }

// parseFlags reads the command line; flag.ErrHelp asks for the usage.
func parseFlags(args []string) (*flags, error) {
	f := &flags{}
	set := flag.NewFlagSet("sts-tlsmap", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	for _, m := range modes {
		set.Bool(m.name, false, "")
	}
	set.StringVar(&f.config, "config", "", "")
	set.StringVar(&f.span, "for", "", "")
	set.BoolVar(&f.send, "send", false, "")
	set.StringVar(&f.day, "day", "", "")
	set.StringVar(&f.suppress, "suppress", "", "")
	set.StringVar(&f.mapName, "map", "", "")
	set.BoolVar(&f.json, "json", false, "")
	set.StringVar(&f.policyMode, "mode", "", "")
	set.StringVar(&f.expiring, "expiring", "", "")
	set.BoolVar(&f.failing, "failing", false, "")
	set.BoolVar(&f.yes, "yes", false, "")
	set.BoolVar(&f.healthy, "healthy", false, "")
	// Package flag stops at the first argument: flags may stand after it. After
	// "--" there are arguments only.
	for rest := args; ; args = rest {
		if err := set.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, hint(err, "see sts-tlsmap -help")
		}
		rest = set.Args()
		if parsed := len(args) - len(rest); len(rest) == 0 || parsed > 0 && args[parsed-1] == "--" {
			f.args = append(f.args, rest...)
			break
		}
		f.args, rest = append(f.args, rest[0]), rest[1:]
	}
	var asked []string // modes, sorted
	set.Visit(func(given *flag.Flag) {
		if i := slices.IndexFunc(modes, func(m mode) bool { return m.name == given.Name }); i >= 0 {
			f.mode, asked = &modes[i], append(asked, "-"+given.Name)
		}
	})
	asked = f.together(asked)
	if len(asked) > 1 {
		return nil, hint(fmt.Errorf("%s cannot be used together", strings.Join(asked, " and ")), "give one of them")
	}
	var err error
	set.Visit(func(given *flag.Flag) { err = cmp.Or(err, f.checkOption(given.Name)) })
	return f, cmp.Or(err, f.checkArguments())
}

// together takes a mode that only says how another one is done: -probe with -waiting,
// -fleet with -exempt, -forget or -refresh. It returns the modes that are left.
func (f *flags) together(asked []string) []string {
	i := slices.Index(asked, "-fleet")
	switch {
	case slices.Equal(asked, []string{"-probe", "-waiting"}):
		f.probe = true
		return asked[1:] // the mode is the last one
	case len(asked) != 2 || i < 0 || !slices.Contains([]string{"-exempt", "-forget", "-refresh"}, asked[1-i]):
		return asked
	}
	f.fleet = true
	f.mode = &modes[slices.IndexFunc(modes, func(m mode) bool { return "-"+m.name == asked[1-i] })]
	return asked[1-i : 2-i]
}

// checkOption says whether an option that was given goes with the mode.
func (f *flags) checkOption(name string) error {
	for _, o := range options {
		if o.name == name && o.modes != nil && !slices.ContainsFunc(o.modes, f.is) {
			return hint(fmt.Errorf("-%s goes with -%s", name, strings.Join(o.modes, " and -")), "see sts-tlsmap -help")
		}
	}
	if name == "config" && f.config == "" {
		return hint(errors.New("-config names no file"), "leave it out for the default")
	}
	return nil
}

// checkArguments says whether the arguments fit the mode.
func (f *flags) checkArguments() error {
	n, m := len(f.args), f.mode
	switch {
	case m == nil && n == 0:
		return nil
	case m == nil:
		return hint(fmt.Errorf("%q is an argument without a mode", f.args[0]), "to ask about a domain: sts-tlsmap -explain %s", f.args[0])
	case n < m.least:
		return hint(fmt.Errorf("-%s needs an argument", m.name), "write: sts-tlsmap -%s %s", m.name, m.args)
	case n > m.most:
		takes := []string{"no argument", "one argument", "two arguments"}[m.most]
		return hint(fmt.Errorf("-%s takes %s, not %d: %s", m.name, takes, n, strings.Join(f.args, " ")), "see sts-tlsmap -help")
	case f.is("report") && (f.suppress == "") != (f.span == ""):
		return hint(errors.New("-suppress and -for go together"), "write: sts-tlsmap -report -suppress ADDRESS -for 30d")
	case f.suppress != "" && (n > 0 || f.send):
		return hint(errors.New("-report -suppress takes neither a domain nor -send"), "write: sts-tlsmap -report -suppress ADDRESS -for 30d")
	case f.send && n > 1 || f.day != "" && !f.send:
		return hint(errors.New("-day goes with -send, and is the day that is sent"), "write: sts-tlsmap -report -send [DOMAIN] [-day DAY]")
	case f.fleet && (n == 0 || f.args[0] == "all"):
		return hint(fmt.Errorf("-%s -fleet needs a domain", m.name), "name the domains; without -fleet, this relay alone does it")
	case f.is("exempt") && n == 0 && f.span != "":
		return hint(errors.New("-for goes with -exempt and a domain"), "write: sts-tlsmap -exempt DOMAIN -for 4h")
	case f.is("exempt") && n == 1 && f.span == "":
		return hint(errors.New("-exempt needs to know for how long"), "write: sts-tlsmap -exempt %s -for 4h", f.args[0])
	}
	return nil
}
