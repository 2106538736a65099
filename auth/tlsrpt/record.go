package tlsrpt

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/mailspine/mailspine"
)

// The bounds of a record.
const (
	MaxRecord       = 16 << 10 // octets
	MaxDestinations = 10       // of a record; further ones are left out
	maxURI          = 2048
	maxFields       = 100
)

// ErrNoRecord means that a domain wants no reports: it publishes no record, or more than one, or the text is
// none (it does not begin with v=TLSRPTv1).
var ErrNoRecord = errors.New("tlsrpt: no TLSRPT record")

// A SyntaxError says what is wrong in a record.
type SyntaxError struct {
	Offset int // where, in octets
	Reason string
}

// Error puts the parts together.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("tlsrpt: octet %d: %s (RFC 8460 section 3)", e.Offset, e.Reason)
}

// A Record says where a domain wants reports about it (RFC 8460 section 3).
type Record struct {
	// Destinations are those of rua= that can be used, in their order, at most MaxDestinations of them. There may be
	// none.
	Destinations []Destination
	// Ignored are the URIs of rua= that cannot be used: of other schemes, and broken ones. They are text of a stranger.
	Ignored []string
}

// A Destination is one place that takes reports.
type Destination struct {
	// URI is as it was written.
	URI string
	// Address is that of a mailto URI, in ASCII; zero for a https one.
	Address mailspine.Address
}

// String returns the record as it is published, without what was ignored. Characters of a URI that separate fields and URIs are
// encoded. A record without destinations is none, and is "".
func (r Record) String() string {
	var list []string
	for _, d := range r.Destinations {
		list = append(list, separators.Replace(d.URI))
	}
	if len(list) == 0 {
		return ""
	}
	return "v=TLSRPTv1; rua=" + strings.Join(list, ",")
}

// separators must be encoded in a tlsrpt-uri (RFC 8460 section 3).
var separators = strings.NewReplacer(",", "%2C", "!", "%21", ";", "%3B", " ", "%20")

// ParseRecord parses a record, the strings of a TXT record joined. The error is ErrNoRecord for what is to be
// ignored, and a *SyntaxError for a record that is broken or names no destination at all. Unknown fields are
// ignored. White space around names and values is let pass where the grammar has none, and several rua= fields
// are taken together.
func ParseRecord(txt string) (Record, error) {
	var rec Record
	version, rest, ok := strings.Cut(txt, ";")
	if trimRight(version) != "v=TLSRPTv1" || !ok {
		return rec, ErrNoRecord
	}
	if len(txt) > MaxRecord {
		return rec, &SyntaxError{MaxRecord, fmt.Sprintf("the record is longer than %d octets", MaxRecord)}
	}
	found := false
	for n := 0; rest != ""; n++ {
		offset := len(txt) - len(rest)
		var field string
		field, rest, _ = strings.Cut(rest, ";")
		if trim(field) == "" && rest == "" {
			break // after the last semicolon
		}
		if n >= maxFields {
			return Record{}, &SyntaxError{offset, fmt.Sprintf("more than %d fields", maxFields)}
		}
		name, value, ok := strings.Cut(field, "=")
		name, value = trim(name), trim(value)
		switch {
		case !ok:
			return Record{}, &SyntaxError{offset, "a field without ="}
		case !isFieldName(name):
			return Record{}, &SyntaxError{offset, "not the name of a field"}
		case name != "rua":
			continue
		}
		// Bounded by the length of the record.
		for u := range strings.SplitSeq(value, ",") {
			u = trim(u)
			if u == "" {
				continue
			}
			found = true
			d, ok := parseDestination(u)
			switch {
			case ok && len(rec.Destinations) < MaxDestinations:
				rec.Destinations = append(rec.Destinations, d)
			case len(rec.Ignored) < MaxDestinations:
				rec.Ignored = append(rec.Ignored, u)
			}
		}
	}
	if !found {
		return Record{}, &SyntaxError{len(txt), "rua= is missing"}
	}
	return rec, nil
}

// parseDestination takes a mailto or a https URI.
func parseDestination(s string) (Destination, bool) {
	var none Destination
	if len(s) > maxURI || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return none, false
	}
	u, err := url.Parse(s)
	if err != nil {
		return none, false
	}
	switch strings.ToLower(u.Scheme) {
	case "mailto":
		// RFC 6068: header fields after the question mark are not for us to set.
		to, _, _ := strings.Cut(u.Opaque, "?")
		to, err := url.PathUnescape(to)
		if err != nil {
			return none, false
		}
		a, err := mailspine.ParseAddress(to)
		if err != nil {
			return none, false
		}
		if a.Domain, err = cleanDomain(a.Domain); err != nil || !a.IsASCII() {
			return none, false
		}
		return Destination{URI: s, Address: a}, true
	case "https":
		// A user name would be sent as a password; a fragment never is.
		if u.Hostname() == "" || u.User != nil || u.Opaque != "" {
			return none, false
		}
		return Destination{URI: s}, true
	}
	return none, false
}

// isFieldName is tlsrpt-ext-name.
func isFieldName(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '-' && c != '.') {
			return false
		}
	}
	return true
}

func trim(s string) string      { return strings.Trim(s, " \t") }
func trimRight(s string) string { return strings.TrimRight(s, " \t") }

// RecordName is the name at which a domain publishes its record.
func RecordName(domain string) string { return "_smtp._tls." + domain }

// LookupRecord finds the record of a domain, in any form that mailspine.ASCIIDomain takes. The error is ErrNoRecord (or wraps it) if there is none or several, a *SyntaxError
// for one that is broken, and otherwise that of the resolver, which means that it could not be found out.
func LookupRecord(ctx context.Context, r mailspine.Resolver, domain string) (Record, error) {
	domain, err := cleanDomain(domain)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrNoRecord, err)
	}
	list, err := mailspine.LookupTXT(ctx, r, RecordName(domain))
	if mailspine.IsNotFound(err) {
		return Record{}, ErrNoRecord
	}
	if err != nil {
		return Record{}, fmt.Errorf("tlsrpt: %w", err)
	}
	var txt string
	n := 0
	for _, t := range list {
		if v, _, ok := strings.Cut(t, ";"); ok && trimRight(v) == "v=TLSRPTv1" {
			txt = t
			n++
		}
	}
	if n != 1 {
		// Section 3: with any other number of records the domain does not take part.
		return Record{}, fmt.Errorf("%w: %s has %d", ErrNoRecord, RecordName(domain), n)
	}
	return ParseRecord(txt)
}
