// Package mtamap says which maps there are: the name that an MTA asks with
// stands for what that MTA can do, and so for how a reply is to look. Package
// config changes maps and adds others, tlsmap answers for them, recipe
// recommends them. How a reply is made is not known here.
package mtamap

import (
	"errors"
	"fmt"
	"strings"
)

// The formats of a reply.
const (
	FormatPostfix = "postfix" // Postfix's smtp_tls_policy_maps
	FormatExim    = "exim"    // a list of hosts, as a route_data of Exim's takes it
)

// MaxName bounds a map's name, in bytes.
const MaxName = 64

// A Map is what an MTA can do, under the name that it asks with. Names are
// case-sensitive.
type Map struct {
	Name       string `json:"name"`
	Format     string `json:"format"`     // FormatPostfix or FormatExim
	DANE       bool   `json:"dane"`       // DANE goes first where it protects the domain (FormatPostfix only)
	TLSRPT     bool   `json:"tlsrpt"`     // the reply carries the policy's attributes (Postfix 3.10 and later)
	Servername bool   `json:"servername"` // the reply asks for SNI (RFC 8461, 7.1); means nothing to Exim
	Testing    bool   `json:"testing"`    // testing policies are treated as enforced ones
	Enforce    bool   `json:"enforce"`    // false: a rehearsal, the reply is NOTFOUND
}

// New returns a map of that name as it is where nothing is said of it.
func New(name string) Map {
	return Map{Name: name, Format: FormatPostfix, Servername: true, Enforce: true}
}

// Builtin returns the maps that are there without configuration.
func Builtin() []Map {
	return []Map{
		{Name: "postfix", Format: FormatPostfix, Servername: true, Enforce: true},
		{Name: "postfix-tlsrpt", Format: FormatPostfix, Servername: true, Enforce: true, TLSRPT: true},
		{Name: "postfix-dane", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true},
		{Name: "postfix-dane-tlsrpt", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true, TLSRPT: true},
		{Name: "QUERY", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true},
		{Name: "QUERYwithTLSRPT", Format: FormatPostfix, Servername: true, Enforce: true, DANE: true, TLSRPT: true},
		{Name: "exim", Format: FormatExim, Servername: true, Enforce: true},
	}
}

// aliases are the names that other policy servers answer to, and the map that
// each stands for.
var aliases = map[string]string{"QUERY": "postfix-dane", "QUERYwithTLSRPT": "postfix-dane-tlsrpt"}

// StandsFor returns the name of the map that an alias stands for: it is like
// that one, with what is said of the alias itself. Empty: name is no alias.
func StandsFor(name string) string { return aliases[name] }

// CheckName returns an error if an MTA could not ask for the name.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("a map's name has 1 to %d characters", MaxName)
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (c < '0' || c > '9') && strings.IndexByte("-_.", c) < 0 {
			return errors.New("a map's name has letters, digits, '-', '_' and '.' only")
		}
	}
	return nil
}

// Check returns an error if there is no way to answer for the map.
func (m *Map) Check() error {
	if err := CheckName(m.Name); err != nil {
		return err
	}
	if m.Format != FormatPostfix && m.Format != FormatExim {
		return fmt.Errorf("format %q is not known; known: %q, %q", m.Format, FormatPostfix, FormatExim)
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
	return errs
}
