// Package mta is what an MTA asks with: the name of a map, which stands for what
// that MTA can do, and a key, which is a next-hop. Package config changes maps and
// adds others, recipe recommends them, tlsmap answers for them. How a reply is
// made is not known here.
package mta

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The formats of a reply.
const (
	FormatPostfix  = "postfix"  // a TLS policy for smtp_tls_policy_maps
	FormatExim     = "exim"     // a list of hosts for a manualroute's route_data
	FormatSendmail = "sendmail" // Postfix's, as FEATURE(sts) reads it
)

// MaxName bounds a map's name, in bytes.
const MaxName = 64

// A Map is what an MTA can do, under the name that it asks with.
type Map struct {
	Name       string `json:"name"`
	Format     string `json:"format"`     // FormatPostfix, FormatExim or FormatSendmail
	DANE       bool   `json:"dane"`       // DANE goes first where it protects the domain (FormatPostfix only)
	TLSRPT     bool   `json:"tlsrpt"`     // the reply carries the policy's attributes (Postfix 3.10 and later)
	Servername bool   `json:"servername"` // the reply asks for SNI (RFC 8461, 7.1); no effect with FormatExim
	Testing    bool   `json:"testing"`    // testing policies are treated as enforced ones
	Enforce    bool   `json:"enforce"`    // false: a rehearsal, the reply is NOTFOUND
}

// New returns a map with the settings that a configuration starts from.
func New(name string) Map {
	return Map{Name: name, Format: FormatPostfix, Servername: true, Enforce: true}
}

// Builtin returns the maps that exist without configuration.
func Builtin() []Map {
	return []Map{
		{Name: "postfix", Format: FormatPostfix, Servername: true, Enforce: true},
		{Name: "postfix-tlsrpt", Format: FormatPostfix, Servername: true, Enforce: true, TLSRPT: true},
		{Name: "postfix-dane", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true},
		{Name: "postfix-dane-tlsrpt", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true, TLSRPT: true},
		{Name: "exim", Format: FormatExim, Servername: true, Enforce: true},
		{Name: "sts", Format: FormatSendmail, Servername: true, Enforce: true},
	}
}

// aliases are names that other policy servers use, and the built-in map that each
// stands for. Their case does not count.
var aliases = []struct{ name, target string }{
	{"QUERY", "postfix-dane"}, {"QUERYwithTLSRPT", "postfix-dane-tlsrpt"}, {"sts", "sts"},
}

// AliasFor returns the name of the built-in map that an alias stands for, empty
// if name is no alias.
func AliasFor(name string) string {
	for _, a := range aliases {
		if strings.EqualFold(name, a.name) {
			return a.target
		}
	}
	return ""
}

// Find returns the index of the map that an MTA means by name: the map of that
// name, or else the one that an alias stands for. It returns -1 for an unknown
// name.
func Find(maps []Map, name string) int {
	for _, n := range []string{name, AliasFor(name)} {
		if i := slices.IndexFunc(maps, func(m Map) bool { return m.Name == n }); i >= 0 {
			return i
		}
	}
	return -1
}

// ValidName reports whether an MTA could ask for the name: letters, digits, '-',
// '_' and '.', at most MaxName.
func ValidName(name string) bool {
	const valid = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
	return name != "" && len(name) <= MaxName && strings.Trim(name, valid) == ""
}

// Check returns an error if there is no way to answer for the map.
func (m *Map) Check() error {
	if !ValidName(m.Name) {
		return fmt.Errorf("a map's name has 1 to %d letters, digits, '-', '_' and '.'", MaxName)
	}
	if !slices.Contains([]string{FormatPostfix, FormatExim, FormatSendmail}, m.Format) {
		return fmt.Errorf("format %q is not known; known: %q, %q, %q", m.Format, FormatPostfix, FormatExim, FormatSendmail)
	}
	return errors.Join(m.Conflicts()...)
}

// Conflicts returns which of the map's settings do not go with its format.
func (m *Map) Conflicts() []error {
	var errs []error
	if m.Format == FormatExim && m.DANE {
		errs = append(errs, fmt.Errorf("dane does not go with format %q: Exim does DANE by itself (hosts_try_dane)", FormatExim))
	}
	if m.Format == FormatExim && m.TLSRPT {
		errs = append(errs, fmt.Errorf("tlsrpt does not go with format %q: Exim takes no attributes", FormatExim))
	}
	if m.Format == FormatSendmail && (m.DANE || m.TLSRPT || !m.Servername) {
		errs = append(errs, fmt.Errorf("format %q goes with servername, and not with dane or tlsrpt: sendmail does DANE by itself (confDANE), and takes no attributes", FormatSendmail))
	}
	return errs
}
