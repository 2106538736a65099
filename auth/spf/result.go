package spf

import (
	"net/netip"
	"strconv"
	"strings"
)

// A Status is one of the results of RFC 7208 section 2.6.
type Status string

// The results. The zero Status is none of them: nothing was evaluated.
const (
	None      Status = "none"      // no domain to check, or it has no record
	Neutral   Status = "neutral"   // the domain says nothing about the host
	Pass      Status = "pass"      // the host may send for the domain
	Fail      Status = "fail"      // it may not
	SoftFail  Status = "softfail"  // it probably may not
	TempError Status = "temperror" // DNS did not answer: ask again later
	PermError Status = "permerror" // the record cannot be understood
)

// An Identity says which name of the SMTP session was checked.
type Identity string

// The identities of RFC 7208 sections 2.3 and 2.4.
const (
	MailFrom Identity = "mailfrom"
	Helo     Identity = "helo"
)

// A Result is the outcome of one evaluation. Its strings come from strangers in
// part: Explanation, Mechanism and Problem are printable ASCII of bounded
// length, the others are as they came in.
type Result struct {
	Status   Status
	Identity Identity
	// Domain is the domain that was evaluated, in lower case with A-labels;
	// as it came if it is no domain name.
	Domain string
	// Sender is the mailbox that was evaluated: "postmaster@" and the HELO name
	// for the HELO identity and for a null reverse-path.
	Sender string
	IP     netip.Addr // the client, IPv4-mapped addresses unmapped
	Helo   string     // the HELO name, as given

	// Mechanism is the directive that decided, as published and with its
	// qualifier: "-all", "ip4:192.0.2.0/24". It is "default" when none matched, and "" when
	// the record was not evaluated to the end.
	Mechanism string
	// Explanation is the text with which the domain owner explains a fail (exp=),
	// to be shown as a quotation of theirs, never as one's own words. "" if there is none.
	Explanation string
	// Problem says for people what led to none, temperror or permerror.
	Problem string

	Lookups int // terms that needed DNS (RFC 7208 section 4.6.4)
	Voids   int // lookups that found nothing
}

// Header returns the result as a Received-SPF field (RFC 7208 section 9.1), folded, ended by
// CRLF. receiver is the name of the host that checked.
func (r *Result) Header(receiver string) []byte {
	if receiver == "" {
		receiver = "unknown"
	}
	status := r.Status
	if status == "" {
		status = None
	}
	var b strings.Builder
	b.WriteString("Received-SPF: " + string(status) + "\r\n\t(")
	b.WriteString(commentText(receiver + ": " + r.sentence()))
	b.WriteString(")")
	sep := "\r\n\t"
	pair := func(key, value string) {
		if value == "" {
			return
		}
		b.WriteString(sep + key + "=" + quoteValue(value))
		sep = ";\r\n\t"
	}
	pair("receiver", receiver)
	if r.IP.IsValid() {
		pair("client-ip", r.IP.String())
	}
	if r.Identity == MailFrom {
		pair("envelope-from", r.Sender)
	}
	pair("helo", r.Helo)
	pair("identity", string(r.Identity))
	pair("mechanism", r.Mechanism)
	pair("problem", r.Problem)
	b.WriteString("\r\n")
	return []byte(b.String())
}

// sentence words the result as the examples of RFC 7208 section 9.1 do.
func (r *Result) sentence() string {
	ip, who := r.IP.String(), "domain of "+r.Sender
	switch r.Status {
	case Pass:
		return who + " designates " + ip + " as permitted sender"
	case Fail:
		return who + " does not designate " + ip + " as permitted sender"
	case SoftFail:
		return who + " says that " + ip + " is probably no permitted sender"
	case Neutral:
		return ip + " is neither permitted nor denied by " + who
	case TempError:
		return "temporary error in processing " + who
	case PermError:
		return "permanent error in processing " + who
	}
	return who + " does not provide an SPF record"
}

// maxValue bounds each value and the comment of the field, so that no line
// comes near the 998 octets of RFC 5322 section 2.1.1 even if all is escaped.
const maxValue = 320

// quoteValue writes a dot-atom as it is and everything else as a quoted string
// (RFC 7208 section 9.1, key-value-pair). Control characters cannot get through: the
// field is one field whatever strangers wrote into HELO.
func quoteValue(s string) string {
	atom := s != "" && len(s) <= maxValue
	for i := 0; atom && i < len(s); i++ {
		c := s[i]
		atom = isAlnum(c) || strings.IndexByte("!#$%&'*+-/=?^_`{|}~.:", c) >= 0 && c != ':'
	}
	if atom && s[0] != '.' && s[len(s)-1] != '.' && !strings.Contains(s, "..") {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range clip(s) {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case isControl(c):
			b.WriteByte('?')
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func commentText(s string) string {
	var b strings.Builder
	for _, c := range clip(s) {
		switch {
		case c == '(' || c == ')' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case isControl(c):
			b.WriteByte('?')
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// isControl reports what must not get into a header field: control characters,
// U+2028 and U+2029, which end lines for some readers, and what is not UTF-8.
func isControl(c rune) bool {
	return c < ' ' || c >= 0x7f && c < 0xa0 || c == 0x2028 || c == 0x2029 || c == 0xfffd
}

func clip(s string) string {
	if len(s) > maxValue {
		return strings.ToValidUTF8(s[:maxValue], "") + "..."
	}
	return s
}

// printable shows foreign bytes as ASCII of bounded length.
func printable(s string) string {
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}
