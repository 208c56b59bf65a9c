// Package config reads the daemon's TOML file: its keys, their defaults and
// their ranges. It reports every mistake in a file at once, each with the file,
// the line, the key and what was expected. It leaves out the environment
// (HTTPS_PROXY) and does not know what the values are used for.
package config

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// DefaultPath is the file that is read when none is named; it may be absent.
const DefaultPath = "/etc/sts-tlsmap/sts-tlsmap.toml"

const (
	// MaxExempt bounds the exempt domains, those in the file included.
	MaxExempt = 100_000
	// MaxExemptFile bounds the file of exempt domains, in bytes.
	MaxExemptFile = 8 << 20

	maxFile   = 1 << 20  // bytes of a configuration file
	maxCAFile = 16 << 20 // bytes of fetch.ca_file
)

// A Config is a configuration with every default filled in. A field with a key
// is a key of the file, or a table of keys where it is a struct. The other tags
// say which values the key takes: see take. A new table is a struct here, and a
// field for it.
type Config struct {
	File     string   // where the configuration was read from; empty: built-in defaults
	Warnings []string // about keys that have no effect

	Listen   []endpoint.Endpoint `key:"listen" default:"inet:127.0.0.1:8461" min:"1" max:"32"`
	Control  endpoint.Endpoint   `key:"control" default:"unix:/run/sts-tlsmap/control.sock" is:"unix"`
	Metrics  endpoint.Endpoint   `key:"metrics" is:"inet"` // zero: not served
	LogLevel slog.Level          `key:"log_level" default:"info"`

	Socket  Socket  `key:"socket"`
	Cache   Cache   `key:"cache"`
	DNS     DNS     `key:"dns"`
	Fetch   Fetch   `key:"fetch"`
	Lookup  Lookup  `key:"lookup"`
	Refresh Refresh `key:"refresh"`
	Exempt  Exempt  `key:"exempt"`
	TLSRPT  TLSRPT  `key:"tlsrpt"`
	Fleet   Fleet   `key:"fleet"`

	Maps []mta.Map // the built-in ones first, then those of the file by name

	caLine int // the line of fetch.ca_file
}

// Socket is [socket].
type Socket struct {
	Mode           fs.FileMode `key:"mode" default:"0666"` // of unix listeners
	MaxConnections int         `key:"max_connections" default:"4096" min:"1" max:"65536"`
}

// Cache is [cache].
type Cache struct {
	Path    string `key:"path" default:"/var/lib/sts-tlsmap/cache.db" is:"path"`
	MaxSize int64  `key:"max_size" default:"4GiB" min:"1MiB" max:"1TiB"`
}

// DNS is [dns].
type DNS struct {
	Servers []netip.AddrPort `key:"servers" max:"16"` // empty: resolv.conf
	TrustAD *bool            `key:"trust_ad"`         // nil: as libc decides
	Timeout time.Duration    `key:"timeout" default:"5s" min:"100ms" max:"1m"`
}

// Fetch is [fetch].
type Fetch struct {
	Timeout      time.Duration `key:"timeout" default:"30s" min:"1s" max:"5m"`
	CAFile       string        `key:"ca_file" is:"path"` // empty: the system's roots
	AllowPrivate bool          `key:"allow_private"`
}

// Lookup is [lookup]. Postfix gives up after 100 s, hence the longest timeout.
type Lookup struct {
	Timeout     time.Duration `key:"timeout" default:"20s" min:"100ms" max:"1m30s"`
	Concurrency int           `key:"concurrency" default:"256" min:"1" max:"4096"` // discoveries at once
}

// Refresh is [refresh].
type Refresh struct {
	Recheck     time.Duration `key:"recheck" default:"5m" min:"1s" max:"30d"`
	UnusedAfter time.Duration `key:"unused_after" default:"90d" min:"1h" max:"3650d"`
	FetchRate   int           `key:"fetch_rate" default:"20" min:"1" max:"10000"` // policies a second
	Concurrency int           `key:"concurrency" default:"32" min:"1" max:"1024"`
}

// Exempt is [exempt]. Domains are those of the key and of the file together, as
// exempt.Parse returns them.
type Exempt struct {
	Domains []string `key:"domains" is:"domain" max:"100000"`
	File    string   `key:"file" is:"path"`
}

// TLSRPT is [tlsrpt]: TLS reports (RFC 8460).
type TLSRPT struct {
	Organization      string            `key:"organization"`
	Contact           string            `key:"contact"`
	Sender            string            `key:"sender"`
	PostfixSocket     endpoint.Endpoint `key:"postfix_socket" default:"unix:/var/spool/postfix/sts-tlsmap-tlsrpt/tlsrpt.sock" is:"unix"`
	EximSocket        endpoint.Endpoint `key:"exim_socket" is:"unix"` // zero: none
	Path              string            `key:"path" default:"/var/lib/sts-tlsmap/reports.db" is:"path"`
	MaxSize           int64             `key:"max_size" default:"2GiB" min:"16MiB" max:"1TiB"`
	Keep              time.Duration     `key:"keep" default:"14d" min:"2d" max:"365d"`
	Window            time.Duration     `key:"window" default:"4h" min:"1m" max:"12h"`
	Submit            string            `key:"submit" default:"smtp:127.0.0.1:25" is:"submit"`
	Collect           bool              `key:"collect"`
	DKIMKey           string            `key:"dkim_key" is:"path"` // empty: the MTA signs
	DKIMSelector      string            `key:"dkim_selector"`
	HTTPSVerify       bool              `key:"https_verify"`
	MaxPerDestination int               `key:"max_per_destination" default:"1000" min:"1" max:"1000000"`
	Report            string            `key:"report" default:"all" is:"all failures"`
	ProbeTesting      bool              `key:"probe_testing" default:"true"`
	Skip              []string          `key:"skip" is:"domain" max:"10000"`

	File string // that Load read
	Errs Errors // mistakes in the table, by Load: they turn TLS reports off, and cost no mail
}

// Mistake is an error about the value of a key of the table.
func (t *TLSRPT) Mistake(key string, err error) error {
	d := &document{file: t.File}
	if text, err := readFile(t.File, maxFile); err == nil {
		d.findLines(text)
	}
	return fmt.Errorf("%s:%d: tlsrpt.%s: %w", t.File, d.line("tlsrpt."+key), key, err)
}

// Reports says whether reports are sent.
func (t *TLSRPT) Reports() bool { return t.Organization != "" && t.Contact != "" && t.Sender != "" }

// Fleet is [fleet]: the server by which relays share what they learn.
type Fleet struct {
	URL          string `key:"url" is:"engine"` // empty: this relay is alone
	PasswordFile string `key:"password_file" is:"path"`
	KeyFile      string `key:"key_file" is:"path"`
	CAFile       string `key:"ca_file" is:"path"` // empty: the system's roots
	Prefix       string `key:"prefix" default:"sts-tlsmap:"`
	Name         string `key:"name"` // empty: the host name

	Errs Errors // mistakes in the table, by Load: they turn the fleet off, and cost no mail
}

// On says whether TLS sessions are collected, or are to be once Errs are corrected.
func (t *TLSRPT) On() bool { return t.Collect || t.Reports() || len(t.Errs) > 0 }

// removed are keys of earlier versions. They cause a warning, not an error, so
// that an upgrade does not stop the daemon.
var removed = map[string]string{
	"refresh.interval":   "TXT records are no longer checked on a schedule; each policy is fetched again long before it expires",
	"refresh.check_rate": "TXT records are no longer checked on a schedule; fetch_rate bounds the fetches",
}

// Default returns the configuration of an empty file.
func Default() *Config {
	c := &Config{Maps: mta.Builtin()}
	for _, k := range keysOf(c) {
		k.setDefault()
	}
	return c
}

// Load reads the file at path. An empty path stands for DefaultPath, whose
// absence is no error. If the file could be read, the error is an Errors, without the
// mistakes in [tlsrpt] and [fleet]. Beside
// any error the Config has the default in place of what is missing or wrong.
func Load(path string) (*Config, error) {
	name := path
	if name == "" {
		name = DefaultPath
	}
	text, err := readFile(name, maxFile)
	if path == "" && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Default(), fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	c, err := Parse(name, text)
	c.TLSRPT.File = name
	var all, others Errors
	if !errors.As(err, &all) {
		return c, err
	}
	for _, e := range all {
		switch table, _, _ := strings.Cut(e.Key, "."); table {
		case "tlsrpt":
			c.TLSRPT.Errs = append(c.TLSRPT.Errs, e)
		case "fleet":
			c.Fleet.Errs = append(c.Fleet.Errs, e)
		default:
			others = append(others, e)
		}
	}
	if others == nil {
		return c, nil
	}
	return c, others
}

// Parse reads the text of a configuration file. path is for error messages, and
// its folder is where relative paths in the file start. The error is an Errors;
// the Config then has the default in place of each mistake, and of all below one in
// the syntax.
func Parse(path string, text []byte) (*Config, error) {
	c := Default()
	c.File = path
	d := &document{file: path}
	root := map[string]any{}
	err := toml.Unmarshal(text, &root) // beside an error, root has what is above the broken line
	d.findLines(text)
	d.apply(c, root)
	d.finish(c)
	if err != nil {
		d.errs = Errors{syntaxError(path, text, err)} // others may come of what is missing
	}
	for _, w := range d.warnings.sorted() {
		c.Warnings = append(c.Warnings, w.Error())
	}
	if len(d.errs) == 0 {
		return c, nil
	}
	if c.Listen = slices.DeleteFunc(c.Listen, func(e endpoint.Endpoint) bool { return e.Network == "" }); len(c.Listen) == 0 {
		c.Listen = Default().Listen
	}
	return c, d.errs.sorted()
}

// finish resolves relative paths and checks what concerns several keys or other
// files. It skips keys that have a mistake already.
func (d *document) finish(c *Config) {
	dir, err := filepath.Abs(filepath.Dir(d.file))
	if err != nil {
		d.fail("", "the folder of the file is unknown: %v", err)
		return
	}
	for _, k := range keysOf(c) {
		if path, ok := k.field.Addr().Interface().(*string); ok && k.tag.Get("is") == "path" && *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	d.checkSockets(c, dir)
	d.checkReports(&c.TLSRPT)
	if c.Fetch.CAFile != "" {
		c.caLine = d.line(keyCAFile)
		if err := checkCAFile(c.Fetch.CAFile); err != nil {
			d.errs = append(d.errs, c.CAFileError(err))
		}
	}
	if c.Exempt.File != "" {
		c.Exempt.Domains = append(c.Exempt.Domains, d.readExempt(c.Exempt.File)...)
	}
	if n := len(c.Exempt.Domains); n > MaxExempt {
		d.fail("exempt", "%d domains; expected at most %d", n, MaxExempt)
	}
}

// checkSockets makes the paths of sockets absolute, and fails where two sockets
// are the same.
func (d *document) checkSockets(c *Config, dir string) {
	seen := map[endpoint.Endpoint]bool{}
	check := func(name string, e *endpoint.Endpoint) {
		if d.failed(name) || *e == (endpoint.Endpoint{}) {
			return
		}
		*e = e.In(dir)
		switch {
		case e.Network == "unix" && len(e.Address) > endpoint.MaxPath:
			d.fail(name, "the path %s has %d bytes; expected at most %d, with the folder of the file", e.Address, len(e.Address), endpoint.MaxPath)
		case seen[*e] && !e.AnyPort():
			d.fail(name, "%s is used twice; each socket needs an endpoint of its own", e)
		}
		seen[*e] = true
	}
	if !d.failed("listen") {
		for i := range c.Listen {
			check(element("listen", i), &c.Listen[i])
		}
	}
	check("control", &c.Control)
	check("metrics", &c.Metrics)
	check("tlsrpt.postfix_socket", &c.TLSRPT.PostfixSocket)
	check("tlsrpt.exim_socket", &c.TLSRPT.EximSocket)
}

// checkReports fails for keys of [tlsrpt] that are missing beside others.
func (d *document) checkReports(t *TLSRPT) {
	for _, together := range [][]struct{ key, value string }{
		{{"organization", t.Organization}, {"contact", t.Contact}, {"sender", t.Sender}},
		{{"dkim_key", t.DKIMKey}, {"dkim_selector", t.DKIMSelector}},
	} {
		given := ""
		for _, k := range together {
			if given == "" && k.value != "" {
				given = k.key
			}
		}
		for _, k := range together {
			if name := "tlsrpt." + k.key; given != "" && k.value == "" && !d.failed(name) {
				d.fail(name, "is missing; %s is set, and needs it", given)
			}
		}
	}
}

const keyCAFile = "fetch.ca_file"

// CAFileError is an error about the file of certificates. It names the key.
func (c *Config) CAFileError(err error) *Error {
	return &Error{File: c.File, Line: c.caLine, Key: keyCAFile, Text: fmt.Sprintf("%v; expected a file of PEM certificates", err)}
}

// checkCAFile looks for a certificate in a file. A file that only the daemon
// may read passes: the commands need no certificates.
func checkCAFile(path string) error {
	pem, err := readFile(path, maxCAFile)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil
	case err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem):
		return fmt.Errorf("there is no certificate in PEM form in %s", path)
	}
	return err
}

// readFile reads a file of at most limit bytes, without the byte order mark
// that some editors write.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), nil
}

// Changed names the keys whose values differ, as the file has them:
// "cache.path", and "[map.NAME]" for a map as a whole.
func Changed(was, is *Config) []string {
	var names []string
	now := keysOf(is)
	for i, k := range keysOf(was) {
		if !reflect.DeepEqual(k.field.Interface(), now[i].field.Interface()) {
			names = append(names, k.name)
		}
	}
	return append(names, changedMaps(was, is)...)
}
