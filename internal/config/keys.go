package config

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// A key is one key of the file and the field that it sets.
type key struct {
	name  string // in full: "cache.path"
	field reflect.Value
	tag   reflect.StructTag
}

// Keys returns the full name of every key, those of [map.NAME] as
// "map.NAME.format".
func Keys() []string {
	var names []string
	for _, k := range keysOf(new(Config)) {
		names = append(names, k.name)
	}
	for _, k := range mapKeys("map.NAME", new(mta.Map), new(string)) {
		names = append(names, k.name)
	}
	slices.Sort(names)
	return names
}

// keysOf returns every key outside [map.NAME].
func keysOf(c *Config) []key { return fieldKeys("", reflect.ValueOf(c).Elem()) }

func fieldKeys(prefix string, v reflect.Value) []key {
	var keys []key
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := f.Tag.Get("key")
		switch {
		case name == "":
		case f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[endpoint.Endpoint]():
			keys = append(keys, fieldKeys(prefix+name+".", v.Field(i))...)
		default:
			keys = append(keys, key{prefix + name, v.Field(i), f.Tag})
		}
	}
	return keys
}

// setDefault gives the key the value of its default tag.
func (k key) setDefault() {
	text, given := k.tag.Lookup("default")
	if !given {
		return
	}
	var v any = text
	switch k.field.Interface().(type) {
	case int:
		v, _ = strconv.ParseInt(text, 10, 64)
	case bool:
		v = text == "true"
	}
	if k.field.Kind() == reflect.Slice {
		v = []any{text}
	}
	d := new(document)
	if k.set(d, v); len(d.errs) > 0 {
		panic("default: " + d.errs.Error())
	}
}

// set gives the key a value of the file, or notes what is wrong with it.
func (k key) set(d *document, v any) {
	if k.field.Kind() == reflect.Slice {
		k.setList(d, v)
		return
	}
	value, expected := take(k.field.Type(), k.tag, v)
	if expected != "" {
		d.fail(k.name, "is %s; expected %s", describe(v), expected)
		return
	}
	k.field.Set(reflect.ValueOf(value))
}

func (k key) setList(d *document, v any) {
	list, ok := v.([]any)
	least, _ := strconv.Atoi(k.tag.Get("min"))
	most, _ := strconv.Atoi(k.tag.Get("max"))
	if !ok || len(list) < least || len(list) > most {
		count := fmt.Sprintf("at most %d", most)
		if least > 0 {
			count = fmt.Sprintf("%d to %d", least, most)
		}
		d.fail(k.name, `is %s; expected a list of %s, as ["..."]`, describe(v), count)
		return
	}
	t := k.field.Type()
	values := reflect.Zero(t) // nil, also for an empty list
	for i, v := range list {
		value, expected := take(t.Elem(), k.tag, v)
		if expected != "" {
			d.fail(element(k.name, i), "is %s; expected %s", describe(v), expected)
			value = reflect.Zero(t.Elem()).Interface() // keeps the index of the others
		}
		values = reflect.Append(values, reflect.ValueOf(value))
	}
	k.field.Set(values)
}

// take makes of a TOML value one of type t. If the key does not take the value,
// expected says what it takes. The tags:
//
//	min, max  the range of a number, size or duration; of a list its length
//	is        of an endpoint "unix" or "inet"; of a string "path", "domain",
//	          "submit", "engine" or the words that it may be; without the tag it is any text
//
// A string or endpoint may be empty if its default is.
func take(t reflect.Type, tag reflect.StructTag, v any) (value any, expected string) {
	s, isString := v.(string)
	isNone := isString && s == "" && tag.Get("default") == ""
	least, most := tag.Get("min"), tag.Get("max")
	span := " from " + least + " to " + most
	switch reflect.Zero(t).Interface().(type) {
	case bool:
		b, ok := v.(bool)
		return b, unless(ok, "true or false, without quotes")
	case *bool:
		b, ok := v.(bool)
		return &b, unless(ok, "true or false, without quotes")
	case int:
		n, ok := v.(int64)
		low, _ := strconv.ParseInt(least, 10, 64)
		high, _ := strconv.ParseInt(most, 10, 64)
		return int(n), unless(ok && low <= n && n <= high, "a whole number"+span)
	case int64:
		n, ok := v.(int64)
		if isString {
			n, ok = ParseSize(s)
		}
		low, _ := ParseSize(least)
		high, _ := ParseSize(most)
		return n, unless(ok && low <= n && n <= high, "a size"+span+`, as "512MiB" or "4GiB"`)
	case time.Duration:
		d, ok := ParseDuration(s)
		low, _ := ParseDuration(least)
		high, _ := ParseDuration(most)
		return d, unless(ok && low <= d && d <= high, "a duration"+span+`, as "90s", "1h30m" or "2d"`)
	case slog.Level:
		var level slog.Level
		err := level.UnmarshalText([]byte(s))
		return level, unless(err == nil, `"debug", "info", "warn" or "error"`)
	case fs.FileMode:
		n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
		return fs.FileMode(n), unless(err == nil && n <= 0o777, `an octal file mode in quotes, as "0666"`)
	case netip.AddrPort:
		server, ok := parseServer(s)
		return server, unless(ok, `the address of a DNS server, as "127.0.0.1:53"`)
	case endpoint.Endpoint:
		if isNone {
			return endpoint.Endpoint{}, ""
		}
		return takeEndpoint(s, tag.Get("is"))
	}
	switch kind := tag.Get("is"); kind {
	case "":
		return s, unless(isString, "text in quotes")
	case "path":
		return s, unless(isNone || s != "" && !strings.ContainsRune(s, 0), "the path of a file")
	case "domain":
		domain, err := exempt.Parse(s)
		return domain, unless(err == nil, wantExempt)
	case "submit":
		e, err := endpoint.Parse(strings.Replace(s, "smtp:", "inet:", 1))
		isSMTP := strings.HasPrefix(s, "smtp:") && err == nil && !e.AnyPort()
		isCommand := strings.HasPrefix(s, "sendmail:/") && !strings.ContainsRune(s, 0)
		return s, unless(isSMTP || isCommand, `"smtp:HOST:PORT", as "smtp:127.0.0.1:25", or "sendmail:/PATH"`)
	case "engine":
		return s, unless(isNone || engineURL.MatchString(s), `"valkey://USER@HOST:6379", "sentinel://HOST,HOST/NAME" or "cluster://HOST,HOST"`)
	default:
		words := strings.Fields(kind)
		return s, unless(slices.Contains(words, s), `"`+strings.Join(words, `" or "`)+`"`)
	}
}

// engineURL is what a url of [fleet] looks like; package fleet parses it.
var engineURL = regexp.MustCompile(`^(valkeys?|rediss?|sentinels?|clusters?|unix)://[^\s/]*[\w\])/]+\S*$`)

// unless returns the text, or nothing if the value is good.
func unless(good bool, text string) string {
	if good {
		return ""
	}
	return text
}

// takeEndpoint reads an endpoint of one kind, or of either. A host is an
// address or "localhost": the daemon listens before it can resolve names.
func takeEndpoint(s, kind string) (any, string) {
	e, err := endpoint.Parse(s)
	isUnix := e.Network == "unix"
	isLocal := true
	if host, _, _ := net.SplitHostPort(e.Address); !isUnix && host != "localhost" {
		_, addrErr := netip.ParseAddr(host)
		isLocal = addrErr == nil
	}
	good := err == nil && isLocal
	switch kind {
	case "unix":
		return e, unless(good && isUnix, `a unix socket, as "unix:/run/sts-tlsmap/control.sock"`)
	case "inet":
		return e, unless(good && !isUnix, `"inet:ADDRESS:PORT", as "inet:127.0.0.1:9461", or "" for none`)
	}
	return e, unless(good, `"inet:ADDRESS:PORT", as "inet:127.0.0.1:8461", or "unix:/PATH" of at most 107 bytes`)
}

// parseServer reads the address of a DNS server; the port is 53 if not given.
func parseServer(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), true
	}
	ap, err := netip.ParseAddrPort(s)
	return ap, err == nil && ap.Port() != 0
}
