package recipe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

const runTime = 10 * time.Second // for one run of postconf or exim

// A Version is a version of an MTA. A development snapshot counts as the first
// release of its line.
type Version struct{ Major, Minor, Patch int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// AtLeast reports whether v is that version or a later one.
func (v Version) AtLeast(major, minor, patch int) bool {
	return slices.Compare([]int{v.Major, v.Minor, v.Patch}, []int{major, minor, patch}) >= 0
}

// ParseVersion reads a version: "3.7.11", "3.11-20250315", "3.10.0-RC1".
func ParseVersion(s string) (v Version, err error) {
	if n, _ := fmt.Sscanf(s, "%d.%d.%d", &v.Major, &v.Minor, &v.Patch); n < 2 {
		return Version{}, fmt.Errorf("%q is not a version", s)
	}
	return v, nil
}

// A Postconf is what postconf(1) says of an installed Postfix.
type Postconf struct {
	Version   Version
	Settings  map[string]string // main.cf with the defaults, $names expanded
	Overrides []Override        // the -o options of master.cf
	Services  []string          // of master.cf that run smtp(8): "smtp/unix", "relay/unix"
	Chroot    bool              // a service of master.cf runs smtp(8) in a chroot
}

// An Override is an option of a service in master.cf.
type Override struct{ Service, Name, Value string }

// FindPostconf returns where postconf is, also for users whose PATH has no sbin.
func FindPostconf() (string, error) {
	return find("postconf", "/usr/sbin/postconf", "/usr/local/sbin/postconf")
}

// ReadPostconf runs the postconf at path, which only prints, and parses its
// output.
func ReadPostconf(ctx context.Context, path string) (Postconf, error) {
	out, err := ask(ctx, path, [][]string{{"-x"}, {"-Px"}, {"-M"}})
	if err != nil {
		return Postconf{}, fmt.Errorf("reading Postfix's settings: %w", err)
	}
	return ParsePostconf(out[0], out[1], out[2])
}

// ParsePostconf makes a Postconf of the output of "postconf -x", "postconf
// -Px" and "postconf -M".
func ParsePostconf(settings, overrides, services string) (Postconf, error) {
	p := Postconf{Settings: make(map[string]string)}
	for line := range strings.Lines(settings) {
		if name, value, ok := strings.Cut(line, " ="); ok {
			p.Settings[name] = strings.TrimSpace(value)
		}
	}
	for line := range strings.Lines(overrides) {
		// service/type/parameter; a service may have slashes itself.
		name, value, ok := strings.Cut(line, " =")
		if slash := strings.LastIndexByte(name, '/'); ok && slash > 0 {
			p.Overrides = append(p.Overrides, Override{name[:slash], name[slash+1:], strings.TrimSpace(value)})
		}
	}
	for line := range strings.Lines(services) {
		// service type private unpriv chroot wakeup maxproc command...
		f := strings.Fields(line)
		if len(f) >= 8 && f[7] == "smtp" {
			p.Services = append(p.Services, f[0]+"/"+f[1])
			// At compatibility level 0, "-" means yes (master(5)).
			p.Chroot = p.Chroot || f[4] == "y" || f[4] == "-" && p.Settings["compatibility_level"] == "0"
		}
	}
	var err error
	if p.Version, err = ParseVersion(p.Settings["mail_version"]); err != nil {
		return p, fmt.Errorf("postconf prints no mail_version, is it Postfix's? %w", err)
	}
	return p, nil
}

// An EximConf is what exim(8) says of itself and its configuration.
type EximConf struct {
	Version    Version
	Support    []string   // what it was built with: "GnuTLS", "DANE"
	File       string     // the configuration that it reads
	Text       string     // that configuration, without comments; empty if we may not see it
	Routers    []Instance // in order
	Transports []Instance
	RetryRule  string // for a domain that no rule names; empty: there is none
	TLSRule    string // for a host of such a domain whose TLS failed
	Readsocket string // what ${readsocket gets from the daemon, or readsocketWorks
}

// An Instance is a router or a transport with its options.
type Instance struct {
	Name    string
	Options map[string]string // a switch is "true" or "false"
}

// What ${readsocket in eximQuestions gives: the daemon's answer, or what it falls
// back to when nobody answers.
const (
	readsocketAnswer = "9:NOTFOUND ,"
	readsocketWorks  = "allowed"
)

// eximQuestions are the options of exim(8) to run it with. They change nothing.
// The last one asks the daemon about a name of one label, for which it looks up
// nothing.
func eximQuestions(server string) [][]string {
	return [][]string{
		{"-bV"},
		{"-bP", "routers"},
		{"-bP", "transports"},
		{"-bP", "config"},
		{"-brt", "sts-tlsmap.invalid"},
		{"-brt", "sts-tlsmap.invalid", "tls_required"},
		{"-be", "${readsocket{" + server + "}{14:" + eximMap + " localhost,}{5s}{}{" + readsocketWorks + "}}"},
	}
}

// FindExim returns where Exim is, also for users whose PATH has no sbin.
func FindExim() (string, error) {
	return find("exim4", "exim", "/usr/sbin/exim4", "/usr/sbin/exim", "/usr/exim/bin/exim")
}

// ReadExim runs the Exim at path, as root: Exim shows its configuration to
// nobody else. It has Exim ask the daemon, too.
func ReadExim(ctx context.Context, path string, d Daemon) (EximConf, error) {
	server, _ := d.eximServer()
	out, err := ask(ctx, path, eximQuestions(cmp.Or(server, "inet:127.0.0.1:1")))
	if err != nil {
		return EximConf{}, fmt.Errorf("reading Exim's configuration: %w", err)
	}
	return ParseExim([7]string(out))
}

var (
	eximVersion = regexp.MustCompile(`(?m)^Exim version (\d+\.\d+(?:\.\d+)?)`)
	eximFile    = regexp.MustCompile(`(?m)^Configuration file is (\S+)`)
	eximSupport = regexp.MustCompile(`(?m)^Support for: (.*)$`)
	eximRule    = regexp.MustCompile(`Retry rule:\s*(.*?)\s*$`)
	instance    = regexp.MustCompile(`^(\S+) (?:router|transport):$`)
)

// ParseExim makes an EximConf of Exim's answers to eximQuestions: -bV, -bP
// routers, -bP transports, -bP config, -brt for an unknown domain, -brt for a
// host whose TLS failed, and -be for a ${readsocket.
func ParseExim(out [7]string) (EximConf, error) {
	first := func(re *regexp.Regexp, text string) string {
		if m := re.FindStringSubmatch(text); m != nil {
			return m[1]
		}
		return ""
	}
	c := EximConf{
		Support:    strings.Fields(first(eximSupport, out[0])),
		File:       first(eximFile, out[0]),
		Routers:    instances(out[1]),
		Transports: instances(out[2]),
		Text:       out[3],
		RetryRule:  first(eximRule, out[4]),
		TLSRule:    first(eximRule, out[5]),
		Readsocket: strings.TrimSpace(out[6]),
	}
	var err error
	if c.Version, err = ParseVersion(first(eximVersion, out[0])); err != nil {
		return c, fmt.Errorf("exim -bV prints no version, is it Exim's? %w", err)
	}
	return c, nil
}

// instances reads what "exim -bP routers" prints: the name of each, then a
// line for each option, "name = value", "switch" or "no_switch".
func instances(text string) (all []Instance) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
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

// find returns the path of the first program that is there.
func find(names ...string) (string, error) {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s found: is the MTA installed on this machine?", names[0])
}

// ask runs a command once with each list of arguments, and returns its outputs.
func ask(ctx context.Context, path string, questions [][]string) (out []string, err error) {
	for _, args := range questions {
		text, err := run(ctx, path, args)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", path, strings.Join(args, " "), err)
		}
		out = append(out, text)
	}
	return out, nil
}

// run runs a command for a limited time and returns its output.
func run(ctx context.Context, path string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // for its output to end after it was killed
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		message, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n")
		return "", fmt.Errorf("%w: %s", err, oneLine(message))
	}
	return string(out), err
}
