package config

import (
	"bytes"
	"errors"
	"io/fs"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

const (
	// MaxExempt bounds the exempt domains of a configuration, file included.
	MaxExempt = 100_000
	// MaxExemptFile bounds the file of exempt domains, in bytes.
	MaxExemptFile = 8 << 20
	// maxExemptErrors bounds what is reported of one such file: it may be
	// something else altogether.
	maxExemptErrors = 20
)

const wantExempt = `a domain, as "example.com", or ".example.com" for all below it`

// parseExempt is exempt.Parse. What is wrong with an entry is said as it is of
// any other key: by what was expected.
func parseExempt(s string) (string, bool) {
	entry, err := exempt.Parse(s)
	return entry, err == nil
}

// readExempt reads a file with one domain a line; what follows a # is a
// comment. An error without a line concerns the file itself.
func readExempt(path string) ([]string, Errors) {
	text, err := readFile(path, MaxExemptFile)
	if err != nil {
		what := err.Error()
		if errors.Is(err, fs.ErrNotExist) {
			what += "; create it, or leave the key out"
		}
		return nil, Errors{{File: path, Key: "exempt.file", Text: what}}
	}
	var domains []string
	var errs Errors
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line, _, _ = bytes.Cut(line, []byte("#"))
		s := string(bytes.TrimSpace(line))
		if s == "" {
			continue
		}
		domain, ok := parseExempt(s)
		if !ok {
			errs = append(errs, &Error{File: path, Line: n, Text: describe(s) + "; expected " + wantExempt})
			if len(errs) == maxExemptErrors {
				return nil, errs
			}
			continue
		}
		domains = append(domains, domain)
	}
	return domains, errs
}
