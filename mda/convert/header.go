package convert

import (
	"bytes"
	"io"
	"mime"
	"net/mail"
	"strings"

	"github.com/mailspine/mailspine"
)

// fieldKind says how the value of a field is built.
type fieldKind uint8

const (
	unstructured fieldKind = iota // and everything that is not known
	addresses
	parameters // Content-Type, Content-Disposition
	structured // without a place for an encoded word
)

func kindOf(name string) fieldKind {
	switch strings.ToLower(name) {
	case "from", "sender", "reply-to", "to", "cc", "bcc", "resent-from", "resent-sender", "resent-reply-to", "resent-to",
		"resent-cc", "resent-bcc", "disposition-notification-to", "return-receipt-to", "errors-to", "mail-followup-to":
		return addresses
	case "content-type", "content-disposition":
		return parameters
	case "message-id", "in-reply-to", "references", "resent-message-id", "date", "resent-date", "received", "return-path",
		"delivered-to", "x-original-to", "mime-version", "content-transfer-encoding", "content-id", "content-md5", "content-location",
		"content-base", "content-language", "content-length", "lines", "original-message-id", "authentication-results", "received-spf",
		"dkim-signature", "arc-seal", "arc-message-signature", "arc-authentication-results", "autocrypt",
		"list-id", "list-help", "list-subscribe", "list-unsubscribe", "list-unsubscribe-post", "list-post", "list-owner", "list-archive",
		"auto-submitted", "precedence", "importance", "priority", "sensitivity", "original-recipient", "tls-required", "feedback-id":
		return structured
	}
	return unstructured
}

// field returns a field as the options want it, and whether that is another one. n is the part
// that it belongs to.
func (j *job) field(n *node, f mailspine.HeaderField) ([]byte, bool) {
	raw, changed := f.Raw, false
	kind := kindOf(f.Name)
	if j.o.UTF8 {
		switch kind {
		case addresses, unstructured:
			s, unknown := recodeWords(string(raw), j.nl)
			if s != string(raw) {
				raw, changed = []byte(s), true
				j.done[doneUTF8] = true
			}
			for _, u := range unknown {
				j.note(n, "field %q: encoded words in charset %.40q are left as they are", f.Name, u)
			}
		case parameters:
			if m, ok := parseMediaType(f.Value()); ok {
				if m, ok := m.recode(); ok {
					raw, changed = m.field(f.Name, j.nl), true
					j.done[doneUTF8] = true
				}
			}
		}
	}
	if j.o.SevenBit {
		g := mailspine.HeaderField{Name: f.Name, Raw: raw}
		if !isASCII(string(raw)) {
			raw, changed = j.downgrade(n, g, kind), true
			j.done[done7Bit] = true
		}
		if longLine(raw) {
			if folded := refold(raw, j.nl); !bytes.Equal(folded, raw) {
				raw, changed = folded, true
				j.done[done7Bit] = true
			}
			if longLine(raw) {
				j.note(n, "field %q has a line of over 998 octets, and no place to fold it", f.Name)
				j.res.EightBit = true
			}
		}
	}
	return raw, changed
}

// downgrade makes a field ASCII (RFC 6857 section 3).
func (j *job) downgrade(n *node, f mailspine.HeaderField, kind fieldKind) []byte {
	v := strings.ReplaceAll(f.Value(), "\r", "")
	switch kind {
	case unstructured:
		return fold(f.Name, encodeUnstructured(v), j.nl)
	case addresses:
		if out, ok := j.downgradeAddresses(n, f.Name, v); ok {
			return out
		}
	case parameters:
		if m, ok := parseMediaType(f.Value()); ok {
			return m.sevenBit().field(f.Name, j.nl)
		}
	}
	if isContent(f) || f.Is("MIME-Version") {
		// Under another name it would not say any more what the body is, not even that nobody knows.
		j.note(n, "field %q cannot be read, and its octets over 127 became question marks", f.Name)
		return []byte(ascii(string(f.Raw)))
	}
	// RFC 6857 section 3.1.10: what has no other way gets another name, so that nobody takes
	// an encoded word for an identifier.
	j.note(n, "field %q has no form in seven bits, and became Downgraded-%s", f.Name, f.Name)
	return fold("Downgraded-"+f.Name, encodeText(v), j.nl)
}

func (j *job) downgradeAddresses(n *node, name, v string) ([]byte, bool) {
	p := mail.AddressParser{WordDecoder: &mime.WordDecoder{CharsetReader: charsetReader}}
	list, err := p.ParseList(v)
	if err != nil {
		return nil, false
	}
	var words []string
	for i, a := range list {
		var display []string
		switch {
		case a.Name == "":
		case isASCII(a.Name) && !strings.ContainsFunc(a.Name, func(r rune) bool { return r < ' ' || r == 0x7f }):
			display = []string{quoteString(a.Name)}
		default:
			display = encodeText(a.Name)
		}
		at := strings.LastIndexByte(a.Address, '@')
		if at < 0 {
			return nil, false
		}
		addr := mailspine.Address{Local: a.Address[:at], Domain: a.Address[at+1:]}
		if !isASCII(addr.Domain) {
			d, err := addr.ASCIIDomain()
			if err != nil {
				return nil, false
			}
			addr.Domain = d
		}
		switch {
		case !isASCII(addr.Local):
			// RFC 6857 section 3.1.8: an empty group, named like the mailbox.
			j.note(n, "field %q: an address has no form in seven bits, and became the name of an empty group", name)
			text := addr.String()
			if len(display) > 0 && !isASCII(a.Name) {
				// In one with the name: white space between encoded words would vanish.
				display, text = nil, a.Name+" "+text
			}
			display = append(display, encodeText(text)...)
			display[len(display)-1] += ": ;"
		case len(display) > 0:
			display = append(display, addr.Path())
		default:
			display = []string{addr.String()}
		}
		if i < len(list)-1 {
			display[len(display)-1] += ","
		}
		words = append(words, display...)
	}
	return fold(name, words, j.nl), true
}

// charsetReader decodes what is small, and has been read already.
func charsetReader(label string, r io.Reader) (io.Reader, error) {
	c, err := lookupCharset(label)
	if err != nil || c.enc == nil {
		return r, err
	}
	return c.enc.NewDecoder().Reader(r), nil
}

func quoteString(s string) string {
	plain := true
	for i := 0; i < len(s); i++ {
		plain = plain && (isToken(s[i]) || s[i] == ' ') && s[i] != '.'
	}
	if plain && s == strings.TrimSpace(s) && !strings.Contains(s, "  ") && !strings.Contains(s, "=?") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func longLine(raw []byte) bool {
	for line := range bytes.Lines(raw) {
		if len(bytes.TrimRight(line, "\r\n")) > maxLine {
			return true
		}
	}
	return false
}

// refold folds the lines of a field that are too long at the white space that they have.
func refold(raw []byte, nl string) []byte {
	var out []byte
	for line := range bytes.Lines(raw) {
		for len(bytes.TrimRight(line, "\r\n")) > maxLine {
			cut := -1
			for i := maxLine; i > 0; i-- {
				// Not after white space alone: an empty line would end the header.
				if (line[i] == ' ' || line[i] == '\t') && len(bytes.TrimSpace(line[:i])) > 0 {
					cut = i
					break
				}
			}
			if cut < 0 {
				for i := maxLine + 1; i < len(line); i++ {
					if (line[i] == ' ' || line[i] == '\t') && len(bytes.TrimSpace(line[i:])) > 0 {
						cut = i
						break
					}
				}
			}
			if cut < 0 || len(bytes.TrimSpace(line[cut:])) == 0 {
				break
			}
			out = append(append(out, line[:cut]...), nl...)
			line = line[cut:]
		}
		out = append(out, line...)
	}
	return out
}

// withEnd returns a field with a line end: the last one of a message may have none.
func withEnd(raw []byte, nl string) []byte {
	if n := len(raw); n == 0 || raw[n-1] != '\n' {
		return append(bytes.Clone(raw), nl...)
	}
	return raw
}
