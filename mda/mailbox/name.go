package mailbox

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// The rules of names.
const (
	// Separator stands between the parts of a mailbox name.
	Separator = "/"
	// Inbox is the one mailbox that every account has.
	Inbox = "INBOX"
	// MaxName is the longest name of a mailbox, in octets.
	MaxName = 1000
	// MaxDepth is the largest number of parts of a mailbox name.
	MaxDepth = 32
	// MaxUser is the longest name of a user, in octets.
	MaxUser = 255
)

// CleanName returns the canonical form of a mailbox name, or an error that
// is ErrBadName and says why.
//
// A name is valid UTF-8 in Unicode's normalisation form C (it is converted), at
// most [MaxName] octets and [MaxDepth] parts with [Separator] between them. No part is
// empty, "." or "..", none has control characters, line or paragraph
// separators, or the wildcards '*' and '%' of IMAP's LIST, and none begins or
// ends with white space. "INBOX" is recognised in any case, alone and as the
// first part; apart from that, names that differ in case are different.
func CleanName(name string) (string, error) {
	bad := func(why string) (string, error) { return "", badName(name, why) }
	switch {
	case name == "":
		return bad("it is empty")
	case len(name) > MaxName:
		return bad("it is too long")
	case !utf8.ValidString(name):
		return bad("it is not valid UTF-8")
	}
	name = norm.NFC.String(name)
	if len(name) > MaxName {
		return bad("it is too long")
	}
	parts := strings.Split(name, Separator)
	if len(parts) > MaxDepth {
		return bad("it has too many parts")
	}
	for _, p := range parts {
		switch {
		case p == "":
			return bad("a part of it is empty")
		case p == "." || p == "..":
			return bad(`a part of it is "." or ".."`)
		case p != strings.TrimSpace(p):
			return bad("a part of it begins or ends with white space")
		}
		for _, r := range p {
			switch {
			case unicode.IsControl(r) || r == '\u2028' || r == '\u2029':
				return bad("it has a control character")
			case r == '*' || r == '%':
				return bad("it has a wildcard")
			}
		}
	}
	if asciiEqualFold(parts[0], Inbox) {
		parts[0] = Inbox
		name = strings.Join(parts, Separator)
	}
	return name, nil
}

// CheckUser reports, with ErrBadName, a user name that no account can have:
// empty, over [MaxUser] octets, not valid UTF-8, or with control characters.
// Everything else is a name, "../x" and "a/b" included.
func CheckUser(user string) error {
	switch {
	case user == "":
		return badName(user, "it is empty")
	case len(user) > MaxUser:
		return badName(user, "it is too long")
	case !utf8.ValidString(user):
		return badName(user, "it is not valid UTF-8")
	case strings.ContainsFunc(user, unicode.IsControl):
		return badName(user, "it has a control character")
	}
	return nil
}

// badName quotes the name, so that it cannot reach a log raw, and cuts it.
func badName(name, why string) error {
	if len(name) > 80 {
		name = name[:77] + "..."
	}
	return fmt.Errorf("%w: %q: %s", ErrBadName, name, why)
}

// Above returns the names of the mailboxes above one, the outermost first:
// "a" and "a/b" for "a/b/c".
func Above(name string) []string {
	var up []string
	for i := 0; i < len(name); i++ {
		if name[i] == Separator[0] {
			up = append(up, name[:i])
		}
	}
	return up
}

// asciiEqualFold is EqualFold for ASCII: strings.EqualFold would take the
// Kelvin sign for a k.
func asciiEqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
