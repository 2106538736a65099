package dkim

import (
	"mime"
	"slices"
	"strings"
)

// Service types, of Record.Services and Verifier.Services.
const (
	ServiceEmail  = "email"  // RFC 6376 section 3.6.1
	ServiceTLSRPT = "tlsrpt" // reports about TLS: RFC 8460 section 3
)

// isService reports whether a service type has the form of one: hyphenated-word of RFC 6376 section 2.10.
func isService(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if letter := 'a' <= c|0x20 && c|0x20 <= 'z'; !letter && (i == 0 || !('0' <= c && c <= '9') && (c != '-' || i == len(s)-1)) {
			return false
		}
	}
	return s != ""
}

// services returns Services with e-mail first, if it is one of them.
func (v *Verifier) services() []string {
	switch i := slices.Index(v.Services, ServiceEmail); {
	case len(v.Services) == 0:
		return []string{ServiceEmail}
	case i > 0:
		return slices.Concat([]string{ServiceEmail}, v.Services[:i], v.Services[i+1:])
	}
	return v.Services
}

// maxType is how long a Content-Type may be to be looked at.
const maxType = 8 << 10

// isTLSReport reports whether a header is that of a report about TLS (RFC 8460 section 5.3), for every reader: of two
// Content-Type fields one may be believed that the other one contradicts, and a line that is no field ends the header for some.
func (bl *block) isTLSReport() bool {
	if slices.ContainsFunc(bl.fields, func(f field) bool { return f.name == "" }) {
		return false
	}
	all := bl.byName["content-type"]
	if len(all) != 1 || len(bl.fields[all[0]].raw) > maxType {
		return false
	}
	kind, params, err := mime.ParseMediaType(strings.ReplaceAll(bl.fields[all[0]].value(), "\r\n", ""))
	return err == nil && kind == "multipart/report" && strings.EqualFold(params["report-type"], ServiceTLSRPT)
}

// reportProblem says what is wrong with a signature whose key is for reports about TLS only; report says that the message is one. The status is "" if nothing is.
func (s *signature) reportProblem(report bool) (Status, string) {
	switch {
	case !report:
		return PermError, "the key is for TLS reports, and the message is none (RFC 8460 section 3)"
	case !slices.ContainsFunc(s.Headers, func(n string) bool { return strings.EqualFold(n, "Content-Type") }):
		return Policy, "Content-Type, which makes the message a TLS report, is not signed"
	case s.Length >= 0:
		return Policy, "l= in the signature of a TLS report (RFC 8460 section 3)"
	}
	return "", ""
}
