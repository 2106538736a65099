package dmarc

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mailspine/mailspine"
)

// The reasons why a message has no author domain.
var (
	ErrNoFrom      = errors.New("dmarc: there is no From field")
	ErrManyFrom    = errors.New("dmarc: there are several From fields (RFC 5322 section 3.6)")
	ErrBadFrom     = errors.New("dmarc: the From field cannot be read in one way only (RFC 5322 section 3.6.2)")
	ErrManyAuthors = errors.New("dmarc: the From field names several domains (RFC 9989 section 5.3.1)")
)

// maxFrom bounds the From field, in octets.
const maxFrom = 16 << 10

// Author returns the author domain of a message, the domain of the addresses
// in its From field (RFC 9989 section 5.3.1), in lower case with A-labels. Any other
// number of domains than one is an error that is or wraps ErrNoFrom, ErrManyFrom, ErrBadFrom or ErrManyAuthors.
//
// The field is read strictly, since it protects what a reader sees: an address
// in the display name that is not quoted, a route, an address literal,
// a control character, all make the field unreadable. Several addresses of one domain are fine.
// Encoded words are not decoded: they can stand in names only, and a local part that looks like one
// makes the field unreadable.
func Author(h *mailspine.Header) (string, error) {
	var from *mailspine.HeaderField
	for i := range h.Fields {
		if h.Fields[i].Is("From") {
			if from != nil {
				return "", ErrManyFrom
			}
			from = &h.Fields[i]
		}
	}
	if from == nil {
		return "", ErrNoFrom
	}
	if len(from.Raw) > maxFrom {
		return "", fmt.Errorf("%w: it is too long", ErrBadFrom)
	}
	domains, err := parseFrom(from.Value())
	if err != nil {
		return "", err
	}
	domain := ""
	for _, d := range domains {
		a, err := mailspine.ASCIIDomain(d)
		if err != nil || !validName(a) {
			return "", fmt.Errorf("%w: not a domain name", ErrBadFrom)
		}
		if domain != "" && a != domain {
			return "", ErrManyAuthors
		}
		domain = a
	}
	if domain == "" {
		return "", fmt.Errorf("%w: it has no address", ErrBadFrom)
	}
	return domain, nil
}

// A fromToken is an element of an address list: an atom (with dots), a quoted
// string, or a single special character.
type fromToken struct {
	kind byte // 'a' atom, 'q' quoted string, or the special itself
	text string
}

// scanFrom splits an address list into tokens; comments and white space go.
func scanFrom(s string) ([]fromToken, error) {
	var toks []fromToken
	bad := func(why string) ([]fromToken, error) { return nil, fmt.Errorf("%w: %s", ErrBadFrom, why) }
	// Nowhere, be it quoted or in a comment: for some readers a lone CR ends the field.
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return bad("control character")
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ' ' || c == '\t':
			i++
			continue
		case c == '(':
			depth := 0
			for ; ; i++ {
				if i >= len(s) {
					return bad("a comment is not closed")
				}
				switch s[i] {
				case '\\':
					i++
					continue
				case '(':
					depth++
				case ')':
					depth--
				}
				if depth == 0 {
					break
				}
			}
			i++
			continue
		case c == '"':
			var b strings.Builder
			for i++; ; i++ {
				if i >= len(s) {
					return bad("a quoted string is not closed")
				}
				if s[i] == '"' {
					break
				}
				if s[i] == '\\' {
					if i++; i >= len(s) {
						return bad("a quoted string is not closed")
					}
				}
				b.WriteByte(s[i])
			}
			i++
			toks = append(toks, fromToken{'q', b.String()})
		case strings.IndexByte("<>@,;:", c) >= 0:
			toks = append(toks, fromToken{c, string(c)})
			i++
		case strings.IndexByte(`)[]\`, c) >= 0:
			return bad("unexpected " + string(c))
		default:
			start := i
			for i < len(s) && s[i] > ' ' && s[i] != 0x7f && strings.IndexByte(`<>@,;:()[]\"`, s[i]) < 0 {
				i++
			}
			toks = append(toks, fromToken{'a', s[start:i]})
		}
	}
	return toks, nil
}

// parseFrom returns the domain of each address of a mailbox list, in which
// groups are allowed (RFC 6854).
func parseFrom(s string) ([]string, error) {
	toks, err := scanFrom(s)
	if err != nil {
		return nil, err
	}
	bad := func(why string) ([]string, error) { return nil, fmt.Errorf("%w: %s", ErrBadFrom, why) }
	var domains []string
	inGroup := false
	for i := 0; i < len(toks); {
		// One element: up to a comma, or the colon or semicolon of a group.
		end := i
		angle := false
		for end < len(toks) {
			k := toks[end].kind
			if k == '<' {
				angle = true
			}
			if k == ',' || k == ';' || k == ':' && !angle {
				break
			}
			end++
		}
		el := toks[i:end]
		var stop byte
		if end < len(toks) {
			stop = toks[end].kind
		}
		i = end + 1
		if stop == ':' {
			if inGroup || len(el) == 0 {
				return bad("a group inside of a group")
			}
			for _, t := range el {
				if t.kind != 'a' && t.kind != 'q' {
					return bad("not the name of a group")
				}
			}
			inGroup = true
			continue
		}
		if len(el) > 0 {
			found, err := parseMailbox(el)
			if err != nil {
				return nil, err
			}
			domains = append(domains, found...)
		}
		if stop == ';' {
			if !inGroup {
				return bad("unexpected ;")
			}
			inGroup = false
			if i < len(toks) && toks[i].kind != ',' {
				return bad("text after a group")
			}
		}
	}
	if inGroup {
		return bad("a group is not closed")
	}
	return domains, nil
}

// parseMailbox reads "name <local@domain>" or "local@domain". An address
// in the name that is not quoted is read as well: people would take it for the author.
func parseMailbox(el []fromToken) ([]string, error) {
	bad := func(why string) ([]string, error) { return nil, fmt.Errorf("%w: %s", ErrBadFrom, why) }
	open := -1
	for i, t := range el {
		if t.kind == '<' {
			open = i
			break
		}
	}
	if open < 0 {
		d, ok := addrSpec(el)
		if !ok {
			return bad("not an address")
		}
		return []string{d}, nil
	}
	last := len(el) - 1
	if el[last].kind != '>' {
		return bad("text after the address, or no >")
	}
	d, ok := addrSpec(el[open+1 : last])
	if !ok {
		return bad("not an address")
	}
	domains := []string{d}
	name := el[:open]
	for i, t := range name {
		switch t.kind {
		case 'a', 'q':
		case '@':
			if i == 0 || i+1 >= len(name) || name[i+1].kind != 'a' {
				return bad("an @ in the name")
			}
			domains = append(domains, strings.Trim(name[i+1].text, "."))
		default:
			return bad("unexpected " + string(t.kind) + " in the name")
		}
	}
	return domains, nil
}

// addrSpec reads local@domain. White space and comments between its parts are
// obsolete (RFC 5322 section 4.4); they are let pass around dots and the @ only.
func addrSpec(el []fromToken) (domain string, ok bool) {
	at := -1
	for i, t := range el {
		switch t.kind {
		case '@':
			if at >= 0 {
				return "", false
			}
			at = i
		case 'a':
		case 'q':
			if at >= 0 {
				return "", false
			}
		default:
			return "", false
		}
	}
	if at < 1 || at == len(el)-1 {
		return "", false
	}
	join := func(toks []fromToken) (string, bool) {
		var b strings.Builder
		for i, t := range toks {
			if i > 0 && !strings.HasSuffix(toks[i-1].text, ".") && !strings.HasPrefix(t.text, ".") {
				return "", false
			}
			b.WriteString(t.text)
		}
		return b.String(), true
	}
	// Readers that decode encoded words before they parse would see another address.
	if local, ok := join(el[:at]); !ok || strings.Contains(local, "=?") {
		return "", false
	}
	return join(el[at+1:])
}
