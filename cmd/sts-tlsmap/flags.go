package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// The modes, by the flag that asks for them. Without one: the daemon.
const (
	modeDaemon  = ""
	modeCache   = "cache"
	modeQuery   = "query"
	modeExplain = "explain"
	modeRefresh = "refresh"
	modeForget  = "forget"
	modeCheck   = "check"
	modeRecipe  = "recipe"
	modeLearn   = "learn"
	modeExempt  = "exempt"
	modeVersion = "version"
)

const usage = `Usage: sts-tlsmap [flags]

Without a mode, sts-tlsmap runs as the daemon that a mail relay asks how to
protect the connection to a domain (MTA-STS, RFC 8461).

Modes:
  -cache [DOMAIN...]      print the cache as a table, or all details of the domains
  -query KEY [-map NAME]  ask the running daemon as the MTA would (map: postfix)
  -explain DOMAIN         explain, step by step, how a domain is answered and why
  -refresh DOMAIN...|all  check and fetch policies now
  -forget DOMAIN...|all   drop policies from the cache
  -learn FILE             fill the cache from a list of domains (- is standard input) or
                          from the output of -cache -json on another node
  -exempt [DOMAIN -for T] ignore the policy of DOMAIN for a time such as 4h (0 ends it);
                          without a domain, list what is exempt
  -check                  check the configuration, the resolver and the running daemon
  -recipe postfix|exim    print the configuration that the installed MTA needs
  -version                print the version

Other flags:
  -for T                  with -exempt: for how long
  -config FILE            the configuration file (default /etc/sts-tlsmap/sts-tlsmap.toml)
  -json                   with -cache, -explain: one JSON object per line

Flags may stand after arguments: sts-tlsmap -cache example.com -json
Exit codes: 0 done, 1 not found, 2 failed.
`

// errHelp asks for the usage.
var errHelp = errors.New("help")

// flags are the command line.
type flags struct {
	mode    string
	args    []string
	config  string // empty: the default file
	mapName string // empty: not given
	json    bool

	exemptFor string
}

// maxArguments bounds the domains of one command line; the kernel's own bound is
// lower, most often.
const maxArguments = 1 << 20

// arguments says how many arguments a mode takes, and what they are.
var arguments = map[string]struct {
	least, most int
	what        string
}{
	modeDaemon:  {0, 0, ""},
	modeCache:   {0, maxArguments, "[DOMAIN...]"},
	modeQuery:   {1, 1, "KEY"},
	modeExplain: {1, 1, "DOMAIN"},
	modeRefresh: {1, maxArguments, "DOMAIN... or all"},
	modeForget:  {1, maxArguments, "DOMAIN... or all"},
	modeLearn:   {1, 1, "FILE"},
	modeExempt:  {0, 1, "DOMAIN -for 4h"},
	modeCheck:   {0, 0, ""},
	modeRecipe:  {1, 1, "MTA"},
	modeVersion: {0, 0, ""},
}

// parseFlags reads the command line. Flags and arguments may be mixed; after
// "--" there are arguments only.
func parseFlags(args []string) (*flags, error) {
	f := &flags{}
	set, modes := f.set()
	if err := f.parse(set, args); err != nil {
		return nil, err
	}
	for mode, given := range modes {
		if !*given {
			continue
		}
		if f.mode != modeDaemon {
			first, second := min(mode, f.mode), max(mode, f.mode)
			return nil, hint(fmt.Errorf("-%s and -%s cannot be used together", first, second), "give one of them")
		}
		f.mode = mode
	}
	given := map[string]bool{}
	set.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	return f, f.check(given)
}

// set returns the flags that there are, and which of them are modes.
func (f *flags) set() (set *flag.FlagSet, modes map[string]*bool) {
	set = flag.NewFlagSet("sts-tlsmap", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	set.StringVar(&f.config, "config", "", "")
	set.StringVar(&f.mapName, "map", "", "")
	set.BoolVar(&f.json, "json", false, "")
	set.StringVar(&f.exemptFor, "for", "", "")
	modes = map[string]*bool{}
	for mode := range arguments {
		if mode != modeDaemon {
			modes[mode] = set.Bool(mode, false, "")
		}
	}
	return set, modes
}

// parse goes through args; package flag by itself would stop at the first
// argument.
func (f *flags) parse(set *flag.FlagSet, args []string) error {
	for {
		if err := set.Parse(args); errors.Is(err, flag.ErrHelp) {
			return errHelp
		} else if err != nil {
			return hint(err, "see sts-tlsmap -help")
		}
		rest := set.Args()
		if len(rest) == 0 {
			return nil
		}
		if parsed := len(args) - len(rest); parsed > 0 && args[parsed-1] == "--" {
			f.args = append(f.args, rest...)
			return nil
		}
		f.args = append(f.args, rest[0])
		args = rest[1:]
	}
}

// check says whether the flags and arguments fit the mode.
func (f *flags) check(given map[string]bool) error {
	if f.json && f.mode != modeCache && f.mode != modeExplain {
		return hint(errors.New("-json goes with -cache and -explain"), "see sts-tlsmap -help")
	}
	if given["map"] && f.mode != modeQuery {
		return hint(errors.New("-map goes with -query"), "see sts-tlsmap -help")
	}
	switch isSet := given["for"]; {
	case isSet && (f.mode != modeExempt || len(f.args) == 0):
		return hint(errors.New("-for goes with -exempt and a domain"), "write: sts-tlsmap -exempt DOMAIN -for 4h")
	case !isSet && f.mode == modeExempt && len(f.args) == 1:
		return hint(errors.New("-exempt needs to know for how long"), "write: sts-tlsmap -exempt %s -for 4h", f.args[0])
	}
	if given["config"] && f.config == "" {
		return hint(errors.New("-config names no file"), "leave it out for the default")
	}
	a := arguments[f.mode]
	switch n := len(f.args); {
	case f.mode == modeDaemon && n > 0:
		return hint(fmt.Errorf("%q is an argument without a mode", f.args[0]), "to ask about a domain: sts-tlsmap -explain %s", f.args[0])
	case n < a.least:
		return hint(fmt.Errorf("-%s needs an argument", f.mode), "write: sts-tlsmap -%s %s", f.mode, a.what)
	case n > a.most && a.most == 0:
		return hint(fmt.Errorf("-%s takes no arguments, but there is %q", f.mode, f.args[0]), "see sts-tlsmap -help")
	case n > a.most:
		return hint(fmt.Errorf("-%s takes one argument, not %d: %s", f.mode, n, strings.Join(f.args, " ")), "run it once for each")
	}
	if f.mapName == "" {
		f.mapName = "postfix"
	}
	return nil
}
