package imap

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A value is what a FETCH response is made of: an atom, a string, NIL, or a list.
type value struct {
	atom   string
	text   []byte
	isText bool
	isNil  bool
	list   []value
	isList bool
}

// parseValue reads a value off a response, as RFC 9051 section 9 has them.
func parseValue(s string, depth int) (v value, rest string, err error) {
	bad := func(why string) (value, string, error) { return value{}, "", fmt.Errorf("%s at %.40q", why, s) }
	if s == "" || depth > 500 {
		return bad("no value")
	}
	switch s[0] {
	case '(':
		v.isList = true
		s = s[1:]
		for !strings.HasPrefix(s, ")") {
			// Bodies of a multipart have no space between them.
			if len(v.list) > 0 && !v.list[len(v.list)-1].isList || len(v.list) > 0 && strings.HasPrefix(s, " ") {
				if !strings.HasPrefix(s, " ") {
					return bad("no space")
				}
				s = s[1:]
			}
			var e value
			if e, s, err = parseValue(s, depth+1); err != nil {
				return v, "", err
			}
			v.list = append(v.list, e)
		}
		return v, s[1:], nil
	case '"':
		v.isText = true
		for i := 1; i < len(s); i++ {
			switch c := s[i]; {
			case c == '"':
				return v, s[i+1:], nil
			case c == '\\':
				if i++; i >= len(s) || s[i] != '"' && s[i] != '\\' {
					return bad("an escape")
				}
				v.text = append(v.text, s[i])
			case c == '\r' || c == '\n' || c == 0 || c >= 0x80:
				return bad("an octet in a quoted string")
			default:
				v.text = append(v.text, c)
			}
		}
		return bad("a quoted string without end")
	case '{':
		head, tail, ok := strings.Cut(s[1:], "}\r\n")
		n, err := strconv.Atoi(head)
		if !ok || err != nil || n < 0 || n > len(tail) {
			return bad("a literal")
		}
		return value{isText: true, text: []byte(tail[:n])}, tail[n:], nil
	}
	i := strings.IndexAny(s, " ()\"{\r\n")
	if i < 0 {
		i = len(s)
	}
	if i == 0 {
		return bad("nothing")
	}
	return value{atom: s[:i], isNil: s[:i] == "NIL"}, s[i:], nil
}

func nstring(v value) bool { return v.isNil || v.isText }

func number(v value) bool { _, err := strconv.ParseUint(v.atom, 10, 63); return err == nil }

func params(v value) bool {
	if v.isNil {
		return true
	}
	if !v.isList || len(v.list) == 0 || len(v.list)%2 != 0 {
		return false
	}
	for _, p := range v.list {
		if !p.isText {
			return false
		}
	}
	return true
}

func checkEnvelope(v value) error {
	if !v.isList || len(v.list) != 10 {
		return fmt.Errorf("an envelope of %d fields", len(v.list))
	}
	for i, f := range v.list {
		if i < 2 || i > 7 {
			if !nstring(f) {
				return fmt.Errorf("field %d of an envelope", i)
			}
			continue
		}
		for _, a := range f.list {
			if !a.isList || len(a.list) != 4 || !nstring(a.list[0]) || !nstring(a.list[1]) || !nstring(a.list[2]) || !nstring(a.list[3]) {
				return fmt.Errorf("an address in field %d: %+v", i, a)
			}
		}
		if !f.isNil && len(f.list) == 0 {
			return fmt.Errorf("field %d of an envelope is an empty list", i)
		}
	}
	return nil
}

// checkBody checks body of RFC 9051 section 9, extended or not.
func checkBody(v value, extended bool) error {
	if !v.isList || len(v.list) == 0 {
		return fmt.Errorf("no body: %+v", v)
	}
	f := v.list
	ext := func(f []value) error {
		if !extended && len(f) == 0 {
			return nil
		}
		if !extended || len(f) != 3 {
			return fmt.Errorf("%d extension fields", len(f))
		}
		if d := f[0]; !d.isNil && (len(d.list) != 2 || !d.list[0].isText || !params(d.list[1])) {
			return fmt.Errorf("a disposition %+v", d)
		}
		for _, l := range f[1].list {
			if !l.isText {
				return fmt.Errorf("a language %+v", l)
			}
		}
		if !nstring(f[2]) {
			return fmt.Errorf("a location %+v", f[2])
		}
		return nil
	}
	if f[0].isList {
		for len(f) > 0 && f[0].isList {
			if err := checkBody(f[0], extended); err != nil {
				return err
			}
			f = f[1:]
		}
		if len(f) == 0 || !f[0].isText || len(f[0].text) == 0 {
			return fmt.Errorf("a multipart without a subtype")
		}
		if f = f[1:]; extended {
			if len(f) == 0 || !params(f[0]) {
				return fmt.Errorf("parameters of a multipart")
			}
			f = f[1:]
		}
		return ext(f)
	}
	if len(f) < 7 || !f[0].isText || !f[1].isText || len(f[0].text) == 0 || len(f[1].text) == 0 || !params(f[2]) || !nstring(f[3]) || !nstring(f[4]) || !f[5].isText || len(f[5].text) == 0 || !number(f[6]) {
		return fmt.Errorf("a part %+v", f)
	}
	kind := strings.ToLower(string(f[0].text) + "/" + string(f[1].text))
	f = f[7:]
	switch {
	case kind == "message/rfc822" || kind == "message/global":
		if len(f) < 3 {
			return fmt.Errorf("%s of %d fields", kind, len(f))
		}
		if err := checkEnvelope(f[0]); err != nil {
			return err
		}
		if err := checkBody(f[1], extended); err != nil {
			return err
		}
		if !number(f[2]) {
			return fmt.Errorf("lines of a message")
		}
		f = f[3:]
	case strings.HasPrefix(kind, "text/"):
		if len(f) == 0 || !number(f[0]) {
			return fmt.Errorf("lines of a text")
		}
		f = f[1:]
	}
	if !extended {
		return ext(f)
	}
	if len(f) != 4 || !nstring(f[0]) {
		return fmt.Errorf("%s with %d more fields", kind, len(f))
	}
	return ext(f[1:])
}

// What a live server says of any message keeps to the grammar.
func FuzzFetch(f *testing.F) {
	for _, s := range []string{
		letter, mixed, nested(3), nested(40), "", "\n", "Content-Type: multipart/mixed; boundary=x\r\n\r\n--x--\r\n", "Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\nb", "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nU3ViamVjdDogeAoK",
		"Content-Type: message/global\r\n\r\n\r\nx", "Content-Type: text/\"x\\\"\x00\xff\"; a=\"\xe4\"; b*=utf-8''%e2%82%ac; \x01=2\r\nContent-Disposition: \"; filename=\"\r\n\r\n", "From: \"a\x00\\\" <b@c>, =?x?q?y?= <@>, g:;, <>\r\nSubject: \xe4\r\nTo: u\r\nMessage-ID: <a\x00\"b>\r\nIn-Reply-To: <x> <y\r\nDate: x\r\n\r\n",
		"Content-Type: text/plain\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n", "Content-Type: multipart/; boundary=x\r\n\r\n--x\r\n\r\na", "Content-Type: message/\r\n\r\n", "Content-Language: \xe4, ,\"\r\nContent-ID: \x00\r\nContent-Transfer-Encoding:  \x01\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	b := newBench(f, nil)
	box := b.box("INBOX")
	f.Fuzz(func(t *testing.T, msg []byte) {
		bt := *b
		bt.t = t
		m, err := box.Append(t.Context(), mailspine.BytesContent(msg), mailbox.AppendOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer box.Expunge(t.Context(), []mailbox.UID{m.UID}, mailbox.ExpungeOptions{Any: true})
		c := bt.session()
		defer c.nc.Close()
		c.ok("EXAMINE INBOX")
		got := c.ok("FETCH * (BODY BODYSTRUCTURE ENVELOPE BODY.PEEK[HEADER] BODY.PEEK[TEXT] BODY.PEEK[1] BODY.PEEK[1.MIME])")
		head, rest, _ := strings.Cut(got, " FETCH ")
		v, rest, err := parseValue(rest, 0)
		if err != nil || rest != "" || !strings.HasPrefix(head, "* ") || len(v.list)%2 != 0 {
			t.Fatalf("%v, %q of %q", err, rest, got)
		}
		items := map[string]value{}
		for i := 0; i < len(v.list); i += 2 {
			items[v.list[i].atom] = v.list[i+1]
		}
		if err := checkEnvelope(items["ENVELOPE"]); err != nil {
			t.Fatalf("%v: %q", err, got)
		}
		if err := checkBody(items["BODY"], false); err != nil {
			t.Fatalf("%v: %q", err, got)
		}
		if err := checkBody(items["BODYSTRUCTURE"], true); err != nil {
			t.Fatalf("%v: %q", err, got)
		}
		if whole := append(items["BODY[HEADER]"].text, items["BODY[TEXT]"].text...); !bytes.Equal(whole, msg) {
			t.Fatalf("header and text are %q, not %q", whole, msg)
		}
	})
}
