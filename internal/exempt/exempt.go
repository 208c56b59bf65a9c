// Package exempt is the rule for exemptions: domains whose policy is not
// applied. An entry is "example.com", that domain alone, or ".example.com", all
// below it. Parse says what an entry is, a Set which domains it is for.
//
// It also keeps those that an administrator sets while the daemon runs (List):
// until a time, for the night when a domain's own mistake holds up its mail.
// They are in force at once, kept over restarts, and end by themselves. How
// they are stored is package cache's business, and how the configuration lists
// those that are for good is package config's.
package exempt

import (
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// MaxTimed bounds the exemptions that are in force until a time: they are for
// emergencies. The list in the configuration has a bound of its own.
const MaxTimed = 1000

// An Exemption is an entry that is in force until a time.
type Exemption struct {
	Domain string // as Parse returns it
	Until  time.Time
}

// Parse returns an entry in canonical form (hostname.Canonical), or an error
// that says what is wrong with it.
func Parse(entry string) (string, error) {
	name, below := strings.CutPrefix(entry, ".")
	canonical, err := hostname.Canonical([]byte(name), nil)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q %w", entry, err)
	case strings.HasPrefix(name, "*."):
		return "", fmt.Errorf("%q is no domain; all below a domain is written %q", entry, name[1:])
	case !hostname.Valid(string(canonical)):
		return "", fmt.Errorf("%q is no domain; expected \"example.com\", or \".example.com\" for all below it", entry)
	case below:
		return "." + string(canonical), nil
	}
	return string(canonical), nil
}
