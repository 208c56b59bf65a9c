package tlsmap_test

import (
	"errors"
	"fmt"
	"strings"
)

// This file reads a reply as Postfix does, for the tests: smtp_tls_policy.c
// over mystrtokq(3), extpar(3) and split_nameval(3). It shares nothing with
// the code under test.

// An attribute is one name=value of a policy.
type attribute struct{ name, value string }

// A tlsPolicy is what Postfix makes of the value that a table returned.
type tlsPolicy struct {
	level      string
	attributes []attribute
}

// values returns the values of the attributes of that name, in order.
func (p tlsPolicy) values(name string) []string {
	var values []string
	for _, a := range p.attributes {
		if a.name == name {
			values = append(values, a.value)
		}
	}
	return values
}

const postfixSeparators = ", \t\r\n"

// parsePostfixPolicy reads the value of a table. It fails where Postfix calls
// the policy invalid.
func parsePostfixPolicy(value string) (tlsPolicy, error) {
	for i := 0; i < len(value); i++ {
		if value[i] == 0 {
			return tlsPolicy{}, errors.New("a NUL ends the string")
		}
	}
	level, rest, ok := postfixToken(value)
	if !ok {
		return tlsPolicy{}, errors.New("invalid empty policy")
	}
	p := tlsPolicy{level: level}
	for {
		var token string
		if token, rest, ok = postfixToken(rest); !ok {
			return p, nil
		}
		if token[0] == '{' {
			var err error
			if token, err = postfixBraces(token); err != nil {
				return p, err
			}
		}
		a, err := postfixNameValue(token)
		if err != nil {
			return p, err
		}
		if err := a.check(); err != nil {
			return p, err
		}
		p.attributes = append(p.attributes, a)
	}
}

// check fails for what Postfix does not know, or does not take.
func (a attribute) check() error {
	if a.value == "" {
		return fmt.Errorf("attribute %s has an empty value", a.name)
	}
	switch a.name {
	case "match", "servername", "policy_domain", "policy_string", "mx_host_pattern":
		return nil
	case "policy_type":
		if a.value != "sts" {
			return fmt.Errorf("policy_type %q is not sts", a.value)
		}
		return nil
	}
	return fmt.Errorf("invalid attribute name: %q", a.name)
}

// postfixToken is mystrtokq(): the next token, at whose separators no brace is
// open.
func postfixToken(s string) (token, rest string, ok bool) {
	s = strings.TrimLeft(s, postfixSeparators)
	if s == "" {
		return "", "", false
	}
	level := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '{':
			level++
		case level > 0 && c == '}':
			level--
		case level == 0 && strings.IndexByte(postfixSeparators, c) >= 0:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", true
}

// postfixBraces is extpar() with EXTPAR_FLAG_STRIP: what is between the braces.
func postfixBraces(token string) (string, error) {
	level := 0
	for i := 0; i < len(token); i++ {
		switch token[i] {
		case '{':
			level++
		case '}':
			level--
		}
		if level == 0 {
			if strings.Trim(token[i+1:], " \t\r\n") != "" {
				return "", fmt.Errorf("syntax error after '}' in %q", token)
			}
			return strings.Trim(token[1:i], " \t\r\n"), nil
		}
	}
	return "", fmt.Errorf("missing '}' in %q", token)
}

// postfixNameValue is split_nameval().
func postfixNameValue(s string) (attribute, error) {
	const space = " \t\r\n\v\f"
	s = strings.Trim(s, space)
	end := strings.IndexAny(s, space+"=")
	if end <= 0 {
		return attribute{}, fmt.Errorf("missing attribute name or '=' in %q", s)
	}
	rest := strings.TrimLeft(s[end:], space)
	if !strings.HasPrefix(rest, "=") {
		return attribute{}, fmt.Errorf("missing '=' after attribute name in %q", s)
	}
	return attribute{s[:end], strings.Trim(rest[1:], space)}, nil
}
