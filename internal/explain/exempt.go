package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
)

// exemptions returns the entries that exempt the domain; none: it is not exempt.
// A daemon that was asked knows them all: what stands in the file may not be in
// force.
func (r *Report) exemptions(s Sources) []control.ExemptEntry {
	var entries []control.ExemptEntry
	if !r.Cache.asked() {
		entries = s.Exempt(r.Domain)
	}
	if h := r.Cache.Held; h != nil && h.Exempt {
		for _, e := range r.exemptByHeld() {
			if !slices.Contains(entries, e) {
				entries = append(entries, e)
			}
		}
	}
	return entries
}

// exemptByHeld is exemptions for what is held. A daemon of a version that did
// not tell the entry says only until when.
func (r *Report) exemptByHeld() []control.ExemptEntry {
	h := r.Cache.Held
	if len(h.ExemptBy) == 0 {
		return []control.ExemptEntry{{Entry: r.Domain, Until: h.ExemptUntil}}
	}
	return h.ExemptBy
}

// exemptWord says how the domain comes to be exempt.
func (r *Report) exemptWord() string {
	words := make([]string, len(r.exemptBy))
	for i, e := range r.exemptBy {
		words[i] = byEntry(e, r.Domain) + " ([exempt] in the configuration)"
		if !e.Until.IsZero() {
			words[i] = byEntry(e, r.Domain) + " until " + clock(e.Until) + " (-exempt)"
		}
	}
	return "the domain is exempt" + strings.Join(words, ", and")
}

// byEntry names an entry that is not the domain's own.
func byEntry(e control.ExemptEntry, domain string) string {
	if e.Entry == domain {
		return ""
	}
	return " by " + e.Entry
}

// nextOfExempt says how the exemption is ended: by its entries, every one of
// them.
func (r *Report) nextOfExempt() string {
	var listed, timed []string
	wide := ""
	for _, e := range r.exemptBy {
		if e.Until.IsZero() {
			listed = append(listed, e.Entry)
		} else {
			timed = append(timed, fmt.Sprintf("sts-tlsmap -exempt %s -for 0", e.Entry))
		}
		if e.Entry != r.Domain {
			wide = fmt.Sprintf(" (an entry that begins with a dot is for all below it, not for %s alone)", r.Domain)
		}
	}
	if len(listed) == 0 {
		return "The domain is exempt for a time: its policy is not applied. To end that: " + strings.Join(timed, "; ") + wide
	}
	next := fmt.Sprintf("The domain is exempt: its policy is not applied. Take %s out of [exempt] and reload to end that", strings.Join(listed, " and "))
	if len(timed) > 0 {
		next += ", and for what is exempt for a time: " + strings.Join(timed, "; ")
	}
	return next + wide
}
