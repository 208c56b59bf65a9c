package recipe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of reading postconf's output.
const (
	postconfTime   = 10 * time.Second // for one run
	postconfEnd    = time.Second      // for its output to end after it was killed
	postconfSize   = 4 << 20          // bytes of one run's output; Postfix 3.11 prints 50 KB
	postconfErrors = 4 << 10          // bytes of its complaints that are kept
)

// A Postconf is what postconf(1) says of an installed Postfix.
type Postconf struct {
	Version   Version
	Settings  map[string]string // main.cf with the defaults, $names expanded
	Overrides []Override        // the -o options of master.cf
	Clients   []Client          // the services of master.cf that run smtp(8)
}

// An Override is an option of a service in master.cf.
type Override struct{ Service, Name, Value string }

// A Client is a service that runs smtp(8).
type Client struct {
	Service string // "smtp/unix"
	Chroot  bool
}

// A Version is a version of Postfix. A development snapshot counts as the
// first release of its line.
type Version struct{ Major, Minor, Patch int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// AtLeast reports whether v is that version or a later one.
func (v Version) AtLeast(major, minor, patch int) bool {
	return slices.Compare([]int{v.Major, v.Minor, v.Patch}, []int{major, minor, patch}) >= 0
}

// ParseVersion reads a mail_version: "3.7.11", "3.11-20250315", "3.10.0-RC1".
func ParseVersion(s string) (Version, error) {
	release, _, _ := strings.Cut(s, "-")
	parts := strings.Split(release, ".")
	var n [3]int
	if len(parts) < 2 || len(parts) > len(n) {
		return Version{}, fmt.Errorf("%q is no version of Postfix", s)
	}
	for i, part := range parts {
		u, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return Version{}, fmt.Errorf("%q is no version of Postfix", s)
		}
		n[i] = int(u)
	}
	return Version{n[0], n[1], n[2]}, nil
}

// ParsePostconf makes a Postconf of the output of "postconf -x", "postconf
// -Px" and "postconf -M".
func ParsePostconf(settings, overrides, services []byte) (Postconf, error) {
	p := Postconf{Settings: make(map[string]string)}
	for name, value := range assignments(settings) {
		p.Settings[name] = value
	}
	for name, value := range assignments(overrides) {
		// service/type/parameter; a service may have slashes itself.
		if slash := strings.LastIndexByte(name, '/'); slash > 0 {
			p.Overrides = append(p.Overrides, Override{name[:slash], name[slash+1:], value})
		}
	}
	compatibility := p.Settings["compatibility_level"]
	for line := range lines(services) {
		// service type private unpriv chroot wakeup maxproc command...
		f := strings.Fields(line)
		if len(f) < 8 || f[7] != "smtp" {
			continue
		}
		// Until compatibility level 1, "-" meant yes (master(5)).
		chroot := f[4] == "y" || f[4] == "-" && compatibility == "0"
		p.Clients = append(p.Clients, Client{f[0] + "/" + f[1], chroot})
	}
	version, ok := p.Settings["mail_version"]
	if !ok {
		return p, errors.New("postconf does not tell mail_version: is it Postfix's?")
	}
	var err error
	p.Version, err = ParseVersion(version)
	return p, err
}

// assignments yields the lines "name = value".
func assignments(text []byte) func(func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		for line := range lines(text) {
			name, value, ok := strings.Cut(line, " =")
			if ok && !yield(name, strings.TrimSpace(value)) {
				return
			}
		}
	}
}

func lines(text []byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		scan := bufio.NewScanner(bytes.NewReader(text))
		scan.Buffer(nil, postconfSize)
		for scan.Scan() {
			if !yield(scan.Text()) {
				return
			}
		}
	}
}

// ReadPostconf runs the postconf at path, which only prints, and parses what
// it says.
func ReadPostconf(ctx context.Context, path string) (Postconf, error) {
	var out [3][]byte
	for i, option := range []string{"-x", "-Px", "-M"} {
		var err error
		if out[i], err = run(ctx, path, option); err != nil {
			return Postconf{}, fmt.Errorf("reading Postfix's settings: %w", err)
		}
	}
	return ParsePostconf(out[0], out[1], out[2])
}

// FindPostconf returns where postconf is, also for users whose PATH has no sbin.
func FindPostconf() (string, error) {
	for _, name := range []string{"postconf", "/usr/sbin/postconf", "/usr/local/sbin/postconf"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no postconf found: is Postfix installed on this machine?")
}

// run runs a command for a limited time and returns its limited output.
func run(ctx context.Context, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, postconfTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = postconfEnd
	out, errs := limited{max: postconfSize}, limited{max: postconfErrors, drop: true}
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case out.full:
			err = fmt.Errorf("it prints more than %d bytes: is it the MTA's?", postconfSize)
		}
		words, _, _ := strings.Cut(strings.TrimSpace(errs.kept.String()), "\n")
		if words != "" {
			return nil, fmt.Errorf("%s %s: %w: %s", path, strings.Join(args, " "), err, oneLine(words))
		}
		return nil, fmt.Errorf("%s %s: %w", path, strings.Join(args, " "), err)
	}
	return out.kept.Bytes(), nil
}

// limited keeps the first max bytes of what is written to it. The rest is
// dropped, or an error that ends the command.
type limited struct {
	kept bytes.Buffer // not embedded: its ReadFrom would know no limit
	max  int
	drop bool
	full bool // something was left out
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.max-l.kept.Len())
	l.kept.Write(p[:n])
	if n < len(p) {
		l.full = true
		if !l.drop {
			return n, io.ErrShortWrite
		}
	}
	return len(p), nil
}
