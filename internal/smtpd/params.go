package smtpd

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// cutPath takes the path off the front of an argument of MAIL or RCPT: what is
// between the angle brackets, without a source route, and the rest.
func cutPath(s string) (path, rest string, ok bool) {
	if s == "" || s[0] != '<' {
		return "", "", false
	}
	quoted := false
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if quoted {
				i++
			}
		case '"':
			quoted = !quoted
		case '>':
			if quoted {
				continue
			}
			path, rest = s[1:i], s[i+1:]
			if rest != "" && rest[0] != ' ' {
				return "", "", false
			}
			if strings.HasPrefix(path, "@") {
				// A source route is accepted and ignored (RFC 5321 section 4.1.1.3).
				_, after, found := strings.Cut(path, ":")
				if !found {
					return "", "", false
				}
				path = after
			}
			return path, rest, true
		}
	}
	return "", "", false
}

// maxParams bounds the parameters of one command; nobody defines more.
const maxParams = 20

// params splits esmtp-params (RFC 5321 section 4.1.2), keywords in upper case.
func params(s string) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	m := map[string]string{}
	for _, p := range strings.Fields(s) {
		k, v, hasValue := strings.Cut(p, "=")
		k = strings.ToUpper(k)
		valid := k != "" && isLetDig(k[0]) && (!hasValue || v != "") && strings.IndexByte(v, '=') < 0
		for i := 0; i < len(k); i++ {
			valid = valid && (isLetDig(k[i]) || k[i] == '-')
		}
		if _, twice := m[k]; !valid || twice || len(m) >= maxParams {
			return nil, mailspine.Errorf(501, "5.5.4", "Malformed or repeated parameter")
		}
		m[k] = v
	}
	return m, nil
}

func badParam(name string) error {
	return mailspine.Errorf(501, "5.5.4", "Malformed %s parameter", name)
}

// parseMail fills tx from the argument behind "FROM:".
func (c *Conn) parseMail(tx *Transaction, arg string, now time.Time) error {
	path, rest, ok := cutPath(arg)
	if !ok {
		return mailspine.Errorf(501, "5.1.7", "Malformed sender address")
	}
	env := tx.Envelope
	if path != "" {
		var err error
		if env.From, err = mailspine.ParseAddress(path); err != nil {
			return mailspine.Errorf(501, "5.1.7", "Malformed sender address").WithCause(err)
		}
	}
	ps, err := params(rest)
	if err != nil {
		return err
	}
	if len(ps) > 0 && !c.esmtp {
		return mailspine.Errorf(555, "5.5.4", "Parameters need EHLO")
	}
	for k, v := range ps {
		if err := c.mailParam(tx, k, v, now); err != nil {
			return err
		}
	}
	if !env.From.IsASCII() && !env.UTF8 { // RFC 6531 section 3.5
		return mailspine.Errorf(553, "5.6.7", "Address is not ASCII, and SMTPUTF8 was not asked for")
	}
	return nil
}

func (c *Conn) mailParam(tx *Transaction, k, v string, now time.Time) error {
	env := tx.Envelope
	switch ext := c.server.Extensions; {
	case k == "SIZE": // RFC 1870 section 3: up to 20 digits
		if v == "" || len(v) > 20 || strings.Trim(v, "0123456789") != "" {
			return badParam(k)
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if m := c.server.limits.MaxSize; m > 0 && (err != nil || n > m) {
			return errTooBig(m)
		}
		if err == nil {
			tx.Size = n
		}
	case k == "BODY": // RFC 6152
		switch strings.ToUpper(v) {
		case "7BIT":
			env.Body = mailspine.Body7Bit
		case "8BITMIME":
			env.Body = mailspine.Body8Bit
		case "BINARYMIME":
			return mailspine.Errorf(555, "5.5.4", "BINARYMIME is not supported")
		default:
			return badParam(k)
		}
	case k == "SMTPUTF8": // RFC 6531
		if v != "" {
			return badParam(k)
		}
		env.UTF8 = true
	case k == "RET": // RFC 3461 section 4.3
		switch strings.ToUpper(v) {
		case "FULL":
			env.Ret = mailspine.RetFull
		case "HDRS":
			env.Ret = mailspine.RetHdrs
		default:
			return badParam(k)
		}
	case k == "ENVID": // RFC 3461 section 4.4
		id, ok := decodeXtext(v)
		if !ok || id == "" || len(v) > 100 {
			return badParam(k)
		}
		env.EnvID = id
	case k == "AUTH" && c.offersAuth(): // RFC 4954 section 5; checked, not trusted, not passed on
		a, ok := decodeXtext(v)
		if ok && a != "<>" {
			_, err := mailspine.ParseAddress(a)
			ok = err == nil
		}
		if !ok {
			return badParam(k)
		}
	case k == "REQUIRETLS" && ext.RequireTLS:
		if v != "" {
			return badParam(k)
		}
		if c.tls == nil { // RFC 8689 section 2: not offered, and worth nothing, in the clear
			return mailspine.Errorf(530, "5.7.10", "REQUIRETLS needs TLS")
		}
		env.RequireTLS = true
	case k == "BY" && ext.DeliverBy:
		by, ok := parseBy(v, now)
		if !ok {
			return badParam(k)
		}
		env.DeliverBy = by
	case k == "MT-PRIORITY" && ext.Priority: // RFC 6710 section 4
		n, err := strconv.Atoi(v)
		if err != nil || n < -9 || n > 9 || len(v) > 2 || v[0] == '+' {
			return badParam(k)
		}
		env.Priority = n
	default: // RFC 5321 section 4.1.1.11
		return mailspine.Errorf(555, "5.5.4", "Parameter not recognized")
	}
	return nil
}

func (c *Conn) offersAuth() bool {
	_, ok := c.sess.(AuthSession)
	return ok
}

// parseBy parses by-time;by-mode (RFC 2852 section 4).
func parseBy(v string, now time.Time) (mailspine.DeliverBy, bool) {
	secs, mode, ok := strings.Cut(strings.ToUpper(v), ";")
	mode, trace := strings.CutSuffix(mode, "T")
	n, err := strconv.Atoi(secs)
	// The by-time has up to nine digits and a sign.
	if !ok || err != nil || len(strings.TrimLeft(secs, "+-")) > 9 || mode != "R" && mode != "N" || mode == "R" && n <= 0 {
		return mailspine.DeliverBy{}, false
	}
	return mailspine.DeliverBy{Time: now.Add(time.Duration(n) * time.Second), Return: mode == "R", Trace: trace}, true
}

// parseRcpt parses the argument behind "TO:".
func (c *Conn) parseRcpt(arg string) (mailspine.Recipient, error) {
	var r mailspine.Recipient
	path, rest, ok := cutPath(arg)
	if !ok {
		return r, mailspine.Errorf(501, "5.1.3", "Malformed recipient address")
	}
	if strings.EqualFold(path, "postmaster") {
		// RFC 5321 section 4.5.1: without a domain it is ours.
		r.Address = mailspine.Address{Local: path, Domain: c.server.name}
	} else {
		a, err := mailspine.ParseAddress(path)
		if err != nil {
			return r, mailspine.Errorf(501, "5.1.3", "Malformed recipient address").WithCause(err)
		}
		r.Address = a
	}
	if !r.Address.IsASCII() && !c.tx.Envelope.UTF8 {
		return r, mailspine.Errorf(553, "5.6.7", "Address is not ASCII, and SMTPUTF8 was not asked for")
	}
	ps, err := params(rest)
	if err != nil {
		return r, err
	}
	if len(ps) > 0 && !c.esmtp {
		return r, mailspine.Errorf(555, "5.5.4", "Parameters need EHLO")
	}
	for k, v := range ps {
		switch k {
		case "NOTIFY":
			if r.Notify, ok = parseNotify(v); !ok {
				return r, badParam(k)
			}
		case "ORCPT":
			if r.ORcpt, ok = parseORcpt(v); !ok {
				return r, badParam(k)
			}
		default:
			return r, mailspine.Errorf(555, "5.5.4", "Parameter not recognized")
		}
	}
	return r, nil
}

// parseNotify parses notify-esmtp-value (RFC 3461 section 4.1).
func parseNotify(v string) (mailspine.Notify, bool) {
	var n mailspine.Notify
	for _, w := range strings.Split(strings.ToUpper(v), ",") {
		var bit mailspine.Notify
		switch w {
		case "NEVER":
			bit = mailspine.NotifyNever
		case "SUCCESS":
			bit = mailspine.NotifySuccess
		case "FAILURE":
			bit = mailspine.NotifyFailure
		case "DELAY":
			bit = mailspine.NotifyDelay
		}
		if bit == 0 || n&bit != 0 {
			return 0, false
		}
		n |= bit
	}
	return n, n&mailspine.NotifyNever == 0 || n == mailspine.NotifyNever
}

// parseORcpt parses original-recipient-address (RFC 3461 section 4.2, RFC 6533 section 3) and decodes it.
func parseORcpt(v string) (string, bool) {
	typ, enc, ok := strings.Cut(v, ";")
	if !ok || typ == "" || enc == "" || len(v) > 500 {
		return "", false
	}
	for i := 0; i < len(typ); i++ {
		if !isLetDig(typ[i]) && typ[i] != '-' {
			return "", false
		}
	}
	var addr string
	if strings.EqualFold(typ, "utf-8") {
		addr, ok = decodeUnitext(enc)
	} else {
		addr, ok = decodeXtext(enc)
	}
	return typ + ";" + addr, ok && addr != ""
}

// decodeXtext decodes xtext (RFC 3461 section 4): printable ASCII in which "+" is
// followed by two upper-case hexadecimal digits. The result is printable ASCII, too.
func decodeXtext(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		ch := s[i]
		if ch == '=' || ch < 0x21 || ch > 0x7e {
			return "", false
		}
		if ch == '+' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", false
			}
			n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if ch = byte(n); ch < 0x20 || ch > 0x7e {
				return "", false
			}
			i += 2
		}
		b.WriteByte(ch)
	}
	return b.String(), true
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }

// decodeUnitext decodes utf-8-addr-xtext and utf-8-addr-unitext (RFC 6533
// section 3): UTF-8 in which \x{HEX} stands for a character.
func decodeUnitext(s string) (string, bool) {
	if !utf8.ValidString(s) {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		ch := s[i]
		if ch != '\\' {
			if ch <= ' ' || ch == '+' || ch == '=' || ch == 0x7f {
				return "", false
			}
			b.WriteByte(ch)
			continue
		}
		hex, _, ok := strings.Cut(strings.TrimPrefix(s[i:], `\x{`), "}")
		n, err := strconv.ParseUint(hex, 16, 32)
		if !strings.HasPrefix(s[i:], `\x{`) || !ok || err != nil || len(hex) < 2 || len(hex) > 6 || strings.ToUpper(hex) != hex ||
			n < 0x20 || n == 0x7f || n > utf8.MaxRune || !utf8.ValidRune(rune(n)) {
			return "", false
		}
		b.WriteRune(rune(n))
		i += len(`\x{`) + len(hex)
	}
	return b.String(), true
}
