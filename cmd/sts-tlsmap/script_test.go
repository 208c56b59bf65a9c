package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// The scripts under testdata run the real program against a small internet of
// their own. The configuration sts-tlsmap.toml is there at their start; what
// a script has in extra.toml is added to it.

// goRace keeps a program that was built with the race detector from sleeping
// for a second when it ends, as it does in case of late findings: the scripts
// start some seventy of them.
const goRace = "atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", goRace) // of the programs that the tests start
	}
	testscript.Main(m, map[string]func(){"sts-tlsmap": main})
}

func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:      "testdata",
		Setup:    setUpScript,
		Deadline: time.Now().Add(20 * patience), // of all scripts: with the race detector on a busy machine they take minutes
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"lab":      labCommand,
			"notified": notifiedCommand,
			"signal":   signalCommand,
			"exits":    exitsCommand,
			"damage":   damageCommand,
			"unserved": unservedCommand,
			"ahead":    aheadCommand,
			"sessions": sessionsCommand,
			"closed":   closedCommand,
			"mta-asks": mtaAsksCommand,
		},
	})
}

// patience bounds every wait of a script.
const patience = 20 * time.Second

// writeLabConfig writes the configuration of a daemon in a lab. Its paths are
// relative to the file.
func writeLabConfig(file string, lab *testlab.Lab, c testlab.DaemonConfig) error {
	c.DNS, c.CA, c.Fetch = lab.DNS.Addr, "lab.pem", `timeout = "10s"`
	c.Tables = "[lookup]\ntimeout = \"10s\"\n" + c.Tables
	return c.Write(file, "")
}

func setUpScript(env *testscript.Env) error {
	lab, err := testlab.Start(testlab.Options{})
	if err != nil {
		return err
	}
	env.Defer(func() { lab.Close() })
	dir := env.WorkDir
	if err := lab.CA.WritePEM(filepath.Join(dir, "lab.pem")); err != nil {
		return err
	}
	extra := map[string]string{}
	for _, name := range []string{"top.toml", "extra.toml"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		extra[name] = string(text)
	}
	config := testlab.DaemonConfig{Top: extra["top.toml"], Tables: extra["extra.toml"]}
	if err := writeLabConfig(filepath.Join(dir, "sts-tlsmap.toml"), lab, config); err != nil {
		return err
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "notify.sock")})
	if err != nil {
		return err
	}
	env.Defer(func() { notify.Close() })
	env.Values["lab"], env.Values["notify"], env.Values["domains"] = lab, notify, map[string]*testlab.Domain{}
	env.Setenv("NOTIFY_SOCKET", notify.LocalAddr().String())
	env.Setenv("HTTPS_PROXY", lab.Proxy.URL())
	env.Setenv("NO_PROXY", "")
	env.Setenv("TZ", "UTC")
	completion, err := filepath.Abs("../../packaging/completion/sts-tlsmap.bash")
	if err != nil {
		return err
	}
	env.Setenv("COMPLETION", completion)
	env.Setenv("GORACE", os.Getenv("GORACE"))
	return nil
}

var policyFaults = map[string]testlab.PolicyFault{
	"404": testlab.Status404, "redirect": testlab.Redirect, "html": testlab.HTML, "stall": testlab.StallRequest,
}

var policyCerts = map[string]testlab.CertKind{
	"expired": testlab.CertExpired, "self-signed": testlab.CertSelfSigned, "wrong-name": testlab.CertWrongName,
	"no-intermediate": testlab.CertNoIntermediate,
}

// labCommand changes the internet:
//
//	lab domain NAME [mode=M] [id=ID] [mx=PATTERN] [record=TEXT] [policy=TEXT] [fault=F] [cert=C] [big] [norecord]
//	lab publish NAME ID MODE    a new policy and its id
//	lab record NAME [TEXT...]   the TXT records at _mta-sts
//	lab down NAME               its policy host answers 404
//	lab servfail NAME           every question about its policy fails
//	lab resolver validates|lies|blind
//	                            what the resolver's AD bit is worth
//	lab signs NAME              answers for it and all below it are authenticated
//	lab set RECORD...           DNS records, in zone-file form
//	lab fails NAME TYPE         that question fails
//	lab drops edns              questions with EDNS get no answer
func labCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: lab domain|publish|record|down|servfail NAME ...")
	}
	lab, domains := ts.Value("lab").(*testlab.Lab), ts.Value("domains").(map[string]*testlab.Domain)
	name := args[1]
	switch args[0] {
	case "domain":
		d, err := addDomain(lab, name, args[2:])
		ts.Check(err)
		domains[name] = d
		return
	case "resolver":
		validatingLab(ts, lab, name)
		return
	case "signs":
		lab.DNS.Sign(name, true)
		return
	case "set":
		ts.Check(lab.DNS.Set(args[1:]...))
		return
	case "drops":
		lab.DNS.Break("*", "", testlab.SilentToEDNS)
		return
	case "fails":
		lab.DNS.Break(name, args[2], testlab.ServFail)
		return
	}
	d := domains[name]
	if d == nil {
		ts.Fatalf("lab: there is no domain %s", name)
	}
	switch args[0] {
	case "publish":
		d.SetPolicy(testlab.PolicyText(args[3], 24*time.Hour, d.Mail[0].Name), args[2])
	case "record":
		d.SetRecord(args[2:]...)
	case "down":
		d.Policy.Behave(testlab.Status404)
	case "servfail":
		lab.DNS.Break("_mta-sts."+name, "TXT", testlab.ServFail)
	default:
		ts.Fatalf("lab: %s is not known", args[0])
	}
}

// validatingLab has the lab answer what the probe of the resolver asks: the
// root is signed, and what is unsigned for good is not, as is all below test.
func validatingLab(ts *testscript.TestScript, lab *testlab.Lab, how string) {
	for _, name := range []string{".", "com", "org", "home.arpa", "10.in-addr.arpa"} {
		ts.Check(lab.DNS.Set(dns.Fqdn(name) + " 300 IN SOA a. b. 1 1 1 1 1"))
	}
	lab.DNS.Sign(".", how != "blind")
	lab.DNS.Sign("arpa", how == "lies")
	lab.DNS.Sign("test", how == "lies")
}

func addDomain(lab *testlab.Lab, name string, options []string) (*testlab.Domain, error) {
	var w testlab.With
	record := ""
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "mode":
			w.Mode = value
		case "id":
			w.ID = value
		case "mx":
			w.MX = append(w.MX, value)
		case "policy":
			w.Policy = strings.NewReplacer(`\n`, "\n", `\e`, "\x1b", `\ufeff`, "\ufeff", `\u009b`, "\u009b", `\u202e`, "\u202e").Replace(value)
		case "record":
			record = strings.ReplaceAll(value, `\e`, "\x1b")
		case "fault":
			w.PolicyFault = policyFaults[value]
		case "cert":
			w.PolicyCert = policyCerts[value]
		case "nopolicy":
			w.NoPolicy = true
		case "big": // near the limit of 64 KiB; after mode=M
			w.Policy = testlab.PolicyText(cmp.Or(w.Mode, "enforce"), 24*time.Hour, "mx1."+name) + strings.Repeat("x: "+strings.Repeat("y", 100)+"\n", 600)
		default:
			return nil, fmt.Errorf("option %s is not known", o)
		}
	}
	d, err := lab.Domain(name, w)
	if err == nil && record != "" {
		d.SetRecord(record)
	}
	return d, err
}

// notifiedCommand waits until the daemon has told systemd the words.
func notifiedCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: notified WORDS")
	}
	conn := ts.Value("notify").(*net.UnixConn)
	ts.Check(conn.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 1024)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			ts.Fatalf("systemd was not told %s: %v", args[0], err)
		}
		if strings.HasPrefix(string(buf[:n]), args[0]) {
			return
		}
	}
}

// signalCommand sends a signal to the background commands.
func signalCommand(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}
	sig, ok := signals[strings.Join(args, " ")]
	if neg || !ok {
		ts.Fatalf("usage: signal HUP|TERM")
	}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(sig))
	}
}

// mtaAsksCommand asks the daemon as Postfix does, and ignores the reply.
func mtaAsksCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: mta-asks SOCKET MAP KEY")
	}
	at, err := endpoint.Parse("unix:" + ts.MkAbs(args[0]))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err = socketmap.Query(ctx, at, args[1], args[2])
	ts.Check(err)
}

// exitsCommand runs the program and compares its exit code.
func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("it exited with %d, not %s", code, args[0])
	}
}

// unservedCommand listens at a unix socket and answers nobody, as systemd does
// for a daemon that cannot start.
func unservedCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: unserved PATH")
	}
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// aheadCommand makes a cache that was written when the clock was a day ahead.
func aheadCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ahead FILE")
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	store, err := cache.Open(ts.MkAbs(args[0]), cache.Options{Now: func() time.Time { return tomorrow }})
	ts.Check(err)
	_, err = store.Write([]cache.Op{{Put: &cache.Record{
		Domain: "ahead.test", Mode: policy.ModeEnforce, ID: "1", Text: []byte(testlab.PolicyText("enforce", 7*24*time.Hour, "mx.ahead.test")),
		Fetched: tomorrow, Checked: tomorrow, Used: tomorrow, Expires: tomorrow.Add(7 * 24 * time.Hour), Due: tomorrow.Add(time.Hour),
	}}})
	ts.Check(errors.Join(err, store.Close()))
}

// damageCommand overwrites a file from its middle on.
func damageCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage FILE")
	}
	path := ts.MkAbs(args[0])
	text, err := os.ReadFile(path)
	ts.Check(err)
	for i := range text[:min(len(text), 16<<10)] {
		text[i] = 'x'
	}
	ts.Check(os.WriteFile(path, text, 0o600))
}
