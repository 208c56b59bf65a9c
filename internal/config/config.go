// Package config is the TOML file: its keys, their defaults and their errors.
// A file is read as a whole: all that is wrong with it is reported at once,
// each error with the file, the line, the key and what was expected. What the
// values are used for is the callers' business; the proxy for policy hosts
// (HTTPS_PROXY) comes from the environment and is not known here.
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
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// DefaultPath is the file that is read when none is named; it may be absent.
const DefaultPath = "/etc/sts-tlsmap/sts-tlsmap.toml"

// MaxFile bounds a configuration file, in bytes.
const MaxFile = 1 << 20

// A Config is a configuration with every default filled in.
type Config struct {
	File string // where it was read from; empty: built-in defaults only

	Listen   []endpoint.Endpoint
	Control  endpoint.Endpoint // unix
	Metrics  endpoint.Endpoint // zero: not served
	LogLevel slog.Level

	Socket  Socket
	Cache   Cache
	DNS     DNS
	Fetch   Fetch
	Lookup  Lookup
	Refresh Refresh
	Exempt  Exempt
	Maps    []mta.Map // the built-in ones first, then those of the file by name
}

// Socket is [socket].
type Socket struct {
	Mode           fs.FileMode // of unix listeners
	MaxConnections int
}

// Cache is [cache].
type Cache struct {
	Path    string
	MaxSize int64 // bytes
}

// DNS is [dns].
type DNS struct {
	Servers []netip.AddrPort // empty: resolv.conf
	TrustAD *bool            // nil: as libc decides
	Timeout time.Duration
}

// Fetch is [fetch].
type Fetch struct {
	Timeout      time.Duration
	CAFile       string // empty: the system's roots
	AllowPrivate bool

	caLine int // of ca_file; zero: it is not set
}

// Lookup is [lookup].
type Lookup struct {
	Timeout     time.Duration
	Concurrency int // discoveries at once
}

// Refresh is [refresh].
type Refresh struct {
	Interval    time.Duration
	Recheck     time.Duration
	UnusedAfter time.Duration
	CheckRate   int // TXT records a second
	FetchRate   int // policies a second
	Concurrency int // of each
}

// Exempt is [exempt].
type Exempt struct {
	// Domains are those of the key and of the file together, as exempt.Parse
	// returns them.
	Domains []string
	File    string
}

// Default returns the configuration of an empty file.
func Default() *Config {
	return &Config{
		Listen:   []endpoint.Endpoint{{Network: "tcp", Address: "127.0.0.1:8461"}},
		Control:  endpoint.Endpoint{Network: "unix", Address: "/run/sts-tlsmap/control.sock"},
		LogLevel: slog.LevelInfo,
		Socket:   Socket{Mode: 0o666, MaxConnections: 4096},
		Cache:    Cache{Path: "/var/lib/sts-tlsmap/cache.db", MaxSize: 4 << 30},
		DNS:      DNS{Timeout: 5 * time.Second},
		Fetch:    Fetch{Timeout: 30 * time.Second},
		Lookup:   Lookup{Timeout: 20 * time.Second, Concurrency: 256},
		Refresh: Refresh{
			Interval:    day,
			Recheck:     5 * time.Minute,
			UnusedAfter: 90 * day,
			CheckRate:   50,
			FetchRate:   20,
			Concurrency: 32,
		},
		Maps: mta.Builtin(),
	}
}

// Load reads the file at path. An empty path stands for DefaultPath, whose
// absence is no error. The error is an Errors if the file could be read.
func Load(path string) (*Config, error) {
	if path == "" {
		return load(DefaultPath, false)
	}
	return load(path, true)
}

func load(path string, named bool) (*Config, error) {
	text, err := readFile(path, MaxFile)
	if err != nil {
		if !named && errors.Is(err, fs.ErrNotExist) {
			return Default(), nil
		}
		return nil, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	return Parse(path, text)
}

// Parse reads the text of a configuration file. path is for error messages,
// and relative paths in the file are taken from its folder. The error is an
// Errors.
func Parse(path string, text []byte) (*Config, error) {
	d, errs := newDocument(path, text)
	if errs != nil {
		return nil, errs
	}
	c := Default()
	c.File = path
	d.apply(c)
	d.finish(c)
	if len(d.errs) > 0 {
		d.errs.sort()
		return nil, d.errs
	}
	return c, nil
}

// finish resolves relative paths and checks what concerns several keys, or
// other files. A key that has a mistake already is left out: what stands in its
// place in c is not what the file says.
func (d *document) finish(c *Config) {
	dir, err := filepath.Abs(filepath.Dir(d.file))
	if err != nil {
		d.fail("", "the folder of the file is not known: %v", err)
		return
	}
	for _, p := range []*string{&c.Cache.Path, &c.Fetch.CAFile, &c.Exempt.File} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	d.finishSockets(c, dir)
	if c.Fetch.CAFile != "" {
		c.Fetch.caLine = d.line(keyCAFile)
		if err := checkCAFile(c.Fetch.CAFile); err != nil {
			d.errs = append(d.errs, c.CAFileError(err))
		}
	}
	if c.Exempt.File != "" {
		domains, errs := readExempt(c.Exempt.File)
		c.Exempt.Domains = append(c.Exempt.Domains, domains...)
		for _, e := range errs {
			if e.Line == 0 { // the file itself: it is the key that must change
				e.File, e.Line = d.file, d.line("exempt.file")
			}
			d.errs = append(d.errs, e)
		}
	}
	if n := len(c.Exempt.Domains); n > MaxExempt {
		d.fail("exempt", "%d domains; expected at most %d", n, MaxExempt)
	}
}

// finishSockets takes the sockets from the folder dir, and fails where two of
// them are the same.
func (d *document) finishSockets(c *Config, dir string) {
	c.Control = c.Control.In(dir)
	d.fits("control", c.Control)
	seen := map[endpoint.Endpoint]bool{}
	for i := range c.Listen {
		name := element("listen", i)
		if d.failed(name) {
			continue
		}
		c.Listen[i] = c.Listen[i].In(dir)
		d.fits(name, c.Listen[i])
		if e := c.Listen[i]; seen[e] && !e.AnyPort() {
			d.fail(name, "%s is there twice", e)
		}
		seen[c.Listen[i]] = true
	}
	if d.failed("listen") { // the defaults are in its place
		return
	}
	if seen[c.Control] && !d.failed("control") {
		d.fail("control", "%s is in listen too; the two need sockets of their own", c.Control)
	}
	if c.Metrics.Network != "" && seen[c.Metrics] && !c.Metrics.AnyPort() && !d.failed("metrics") {
		d.fail("metrics", "%s is in listen too; the two need ports of their own", c.Metrics)
	}
}

// keyCAFile is the key whose file is read again after the configuration.
const keyCAFile = "fetch.ca_file"

// CAFileError is an error of the file of certificates, with the place of the
// key that names it.
func (c *Config) CAFileError(err error) *Error {
	return &Error{File: c.File, Line: c.Fetch.caLine, Key: keyCAFile, Text: fmt.Sprintf("%v; expected a file of PEM certificates", err)}
}

// checkCAFile looks whether a file has certificates. One that only others may
// read is theirs to check: who asks a daemon something needs no certificates.
func checkCAFile(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	pem, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		err = fmt.Errorf("there is no certificate in PEM form in %s", path)
	}
	return err
}

// fits fails where a socket's path is too long once it is taken from the
// file's folder.
func (d *document) fits(name string, e endpoint.Endpoint) {
	if e.Network == "unix" && len(e.Address) > endpoint.MaxPath {
		d.fail(name, "the path %s has %d bytes; expected at most %d, with the folder of the file", e.Address, len(e.Address), endpoint.MaxPath)
	}
}

// byteOrderMark is what some editors write in front of UTF-8.
const byteOrderMark = "\xef\xbb\xbf"

// readFile reads a file of at most limit bytes, without its byte order mark.
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
	return bytes.TrimPrefix(text, []byte(byteOrderMark)), nil
}
