package config

import (
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// A key is one key of the file, by its full name.
type key struct {
	name string
	place
}

// A place is where a key's value goes, and how it is taken.
type place struct {
	at  any // a pointer into a Config
	set func(d *document, name string, v any)
}

const (
	day = 24 * time.Hour

	// MaxListeners bounds listen.
	MaxListeners = 32
	// MaxServers bounds dns.servers.
	MaxServers = 16
	// MaxLookup is the longest lookup.timeout: Postfix gives up after 100 s.
	MaxLookup = 90 * time.Second
)

// keysOf returns every key outside [map.NAME], each bound to its place in c.
func keysOf(c *Config) []key {
	return []key{
		{"listen", listOf(&c.Listen, MaxListeners, 1, parseEndpoint, wantEndpoint)},
		{"control", scalar(&c.Control, parseUnix, `a unix socket, as "unix:/run/sts-tlsmap/control.sock"`)},
		{"metrics", scalar(&c.Metrics, parseMetrics, `"inet:ADDRESS:PORT", as "inet:127.0.0.1:9461", or "" for none`)},
		{"log_level", scalar(&c.LogLevel, parseLevel, `"debug", "info", "warn" or "error"`)},

		{"socket.mode", scalar(&c.Socket.Mode, parseMode, `an octal file mode in quotes, as "0666"`)},
		{"socket.max_connections", number(&c.Socket.MaxConnections, 1, 65536)},

		{"cache.path", scalar(&c.Cache.Path, notEmpty, "the path of a file")},
		{"cache.max_size", sizeBetween(&c.Cache.MaxSize, 1<<20, 1<<40)},

		{"dns.servers", listOf(&c.DNS.Servers, MaxServers, 0, parseServer, `the address of a DNS server, as "127.0.0.1:53"`)},
		{"dns.trust_ad", place{&c.DNS.TrustAD, func(d *document, name string, v any) {
			c.DNS.TrustAD = new(bool)
			boolean(c.DNS.TrustAD).set(d, name, v)
		}}},
		{"dns.timeout", between(&c.DNS.Timeout, 100*time.Millisecond, time.Minute)},

		{"fetch.timeout", between(&c.Fetch.Timeout, time.Second, 5*time.Minute)},
		{keyCAFile, scalar(&c.Fetch.CAFile, anyString, "the path of a file of PEM certificates")},
		{"fetch.allow_private", boolean(&c.Fetch.AllowPrivate)},

		{"lookup.timeout", between(&c.Lookup.Timeout, 100*time.Millisecond, MaxLookup)},
		{"lookup.concurrency", number(&c.Lookup.Concurrency, 1, 4096)},

		{"refresh.interval", between(&c.Refresh.Interval, time.Minute, 30*day)},
		{"refresh.recheck", between(&c.Refresh.Recheck, time.Second, 30*day)},
		{"refresh.unused_after", between(&c.Refresh.UnusedAfter, time.Hour, 3650*day)},
		{"refresh.check_rate", number(&c.Refresh.CheckRate, 1, 10000)},
		{"refresh.fetch_rate", number(&c.Refresh.FetchRate, 1, 10000)},
		{"refresh.concurrency", number(&c.Refresh.Concurrency, 1, 1024)},

		{"exempt.domains", listOf(&c.Exempt.Domains, MaxExempt, 0, parseExempt, wantExempt)},
		{"exempt.file", scalar(&c.Exempt.File, anyString, "the path of a file with one domain a line")},
	}
}

// scalar takes a string that parse understands. want says what that is.
func scalar[T any](dst *T, parse func(string) (T, bool), want string) place {
	return place{dst, func(d *document, name string, v any) {
		if s, ok := v.(string); ok {
			if t, ok := parse(s); ok {
				*dst = t
				return
			}
		}
		d.fail(name, "is %s; expected %s", describe(v), want)
	}}
}

// listOf takes an array of strings, from least to most of them.
func listOf[T any](dst *[]T, most, least int, parse func(string) (T, bool), want string) place {
	return place{dst, func(d *document, name string, v any) {
		a, ok := v.([]any)
		switch {
		case !ok:
			d.fail(name, `is %s; expected an array, as ["..."]`, describe(v))
			return
		case len(a) < least:
			d.fail(name, "is empty; expected %s", want)
			return
		case len(a) > most:
			d.fail(name, "has %d elements; expected at most %d", len(a), most)
			return
		}
		*dst = nil // if it stays empty, too: no list and an empty one are the same
		for i, v := range a {
			var t T
			scalar(&t, parse, want).set(d, element(name, i), v)
			*dst = append(*dst, t)
		}
	}}
}

func boolean(dst *bool) place {
	return place{dst, func(d *document, name string, v any) {
		b, ok := v.(bool)
		if !ok {
			d.fail(name, "is %s; expected true or false, without quotes", describe(v))
			return
		}
		*dst = b
	}}
}

func number(dst *int, least, most int) place {
	return place{dst, func(d *document, name string, v any) {
		n, ok := v.(int64)
		if !ok || n < int64(least) || n > int64(most) {
			d.fail(name, "is %s; expected a whole number from %d to %d", describe(v), least, most)
			return
		}
		*dst = int(n)
	}}
}

func between(dst *time.Duration, least, most time.Duration) place {
	return place{dst, func(d *document, name string, v any) {
		if s, ok := v.(string); ok {
			if t, ok := ParseDuration(s); ok && t >= least && t <= most {
				*dst = t
				return
			}
		}
		d.fail(name, `is %s; expected a duration from %s to %s, as "90s", "1h30m" or "2d"`,
			describe(v), FormatDuration(least), FormatDuration(most))
	}}
}

func sizeBetween(dst *int64, least, most int64) place {
	return place{dst, func(d *document, name string, v any) {
		n, ok := v.(int64)
		if s, isString := v.(string); isString {
			n, ok = ParseSize(s)
		}
		if !ok || n < least || n > most {
			d.fail(name, `is %s; expected a size from %s to %s, as "512MiB" or "4GiB"`,
				describe(v), FormatSize(least), FormatSize(most))
			return
		}
		*dst = n
	}}
}

func anyString(s string) (string, bool) { return s, !strings.ContainsRune(s, 0) }

func notEmpty(s string) (string, bool) { return s, s != "" && !strings.ContainsRune(s, 0) }

func parseLevel(s string) (slog.Level, bool) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	l, ok := levels[s]
	return l, ok
}

func parseMode(s string) (fs.FileMode, bool) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	return fs.FileMode(n), err == nil && n <= 0o777
}

// parseServer reads the address of a DNS server; the port is 53 if not given.
func parseServer(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), true
	}
	ap, err := netip.ParseAddrPort(s)
	return ap, err == nil && ap.Port() != 0
}

// Keys returns the full name of every key, [map.NAME]'s as "map.NAME.format".
func Keys() []string {
	var names []string
	for _, k := range keysOf(Default()) {
		names = append(names, k.name)
	}
	for _, k := range mapKeys(&mta.Map{}) {
		names = append(names, "map.NAME."+k.name)
	}
	slices.Sort(names)
	return names
}
