package smtpd

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestCutPath(t *testing.T) {
	for _, c := range []struct {
		in, path, rest string
		ok             bool
	}{
		{"<a@b>", "a@b", "", true}, {"<>", "", "", true}, {"<a@b> X=1", "a@b", " X=1", true},
		{`<"a>b"@c>`, `"a>b"@c`, "", true}, {`<"a\">"@c> X`, `"a\">"@c`, " X", true},
		{"<@x,@y:a@b>", "a@b", "", true}, {"<@x>", "", "", false}, {"a@b", "", "", false}, {"<a@b", "", "", false},
		{"<a@b>X", "", "", false}, {`<"a>`, "", "", false}, {"", "", "", false}, {`<"\`, "", "", false},
	} {
		path, rest, ok := cutPath(c.in)
		if path != c.path || rest != c.rest || ok != c.ok {
			t.Errorf("cutPath(%q) = %q, %q, %v", c.in, path, rest, ok)
		}
	}
}

func TestParseBy(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		in   string
		secs int
		ret  bool
		tr   bool
		ok   bool
	}{
		{"120;R", 120, true, false, true}, {"-5;N", -5, false, false, true}, {"0;NT", 0, false, true, true}, {"1;rt", 1, true, true, true},
		{"0;R", 0, false, false, false}, {"-1;R", 0, false, false, false}, {"1", 0, false, false, false}, {"1;X", 0, false, false, false},
		{"1234567890;N", 0, false, false, false}, {"x;N", 0, false, false, false}, {";N", 0, false, false, false}, {"1;", 0, false, false, false},
	} {
		by, ok := parseBy(c.in, now)
		if ok != c.ok || ok && (!by.Time.Equal(now.Add(time.Duration(c.secs)*time.Second)) || by.Return != c.ret || by.Trace != c.tr) {
			t.Errorf("parseBy(%q) = %+v, %v", c.in, by, ok)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		in, out string
		ok      bool
	}{
		{"abc", "abc", true}, {"a+2Bb+3D", "a+b=", true}, {"+20", " ", true}, {"", "", true},
		{"+2b", "", false}, {"+2", "", false}, {"+", "", false}, {"+0A", "", false}, {"+7F", "", false}, {"+80", "", false}, {"a=b", "", false}, {"a b", "", false}, {"é", "", false},
	} {
		if out, ok := decodeXtext(c.in); ok != c.ok || ok && out != c.out {
			t.Errorf("decodeXtext(%q) = %q, %v", c.in, out, ok)
		}
	}
	for _, c := range []struct {
		in, out string
		ok      bool
	}{
		{"é@x", "é@x", true}, {`\x{E9}\x{2B}@x`, "é+@x", true}, {`\x{1F600}`, "😀", true},
		{`\x{D800}`, "", false}, {`\x{0A}`, "", false}, {`\x{110000}`, "", false}, {`\x{e9}`, "", false}, {`\x{E9`, "", false}, {`\`, "", false}, {"a+b", "", false},
		{`\x{}`, "", false}, {"\xff", "", false},
	} {
		if out, ok := decodeUnitext(c.in); ok != c.ok || ok && out != c.out {
			t.Errorf("decodeUnitext(%q) = %q, %v", c.in, out, ok)
		}
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\r\nb\x00\x7fü\xff"); strings.ContainsAny(got, "\r\n\x00\x7f") || len(got) != 8 {
		t.Errorf("%q", got)
	}
}

// Whatever MAIL and RCPT say: no panic, a refusal or an envelope that others can rely on.
func FuzzParams(f *testing.F) {
	for _, s := range []string{"<joe@example.com> SIZE=10 BODY=8BITMIME RET=FULL ENVID=a+2Bb", "<> SMTPUTF8 BY=10;RT MT-PRIORITY=-3",
		`<"a>b"@[192.0.2.1]> NOTIFY=SUCCESS,DELAY ORCPT=utf-8;\x{E9}@x`, "<@a:b@c> AUTH=<>", "<postmaster> NOTIFY=NEVER", "<ü@ü.example> SMTPUTF8"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		s := &Server{Hostname: "mx.example.org", Extensions: Extensions{RequireTLS: true, DeliverBy: true, Priority: true}}
		s.init()
		c := &Conn{server: s, esmtp: true, sess: &recorderAuth{&recorderSession{r: &recorder{}}}}
		tx := &Transaction{Envelope: &mailspine.Envelope{ID: mailspine.NewMsgID()}}
		if err := c.parseMail(tx, arg, time.Now()); err != nil {
			if st := mailspine.Status(err); st.Temporary() {
				t.Errorf("%q: %v", arg, err)
			}
			tx = &Transaction{Envelope: &mailspine.Envelope{ID: mailspine.NewMsgID(), UTF8: true}}
		}
		c.tx = tx
		r, err := c.parseRcpt(arg)
		if err != nil {
			if st := mailspine.Status(err); st.Temporary() {
				t.Errorf("%q: %v", arg, err)
			}
			return
		}
		tx.Envelope.Recipients = []mailspine.Recipient{r}
		if err := tx.Envelope.Validate(); err != nil {
			t.Errorf("%q: %v", arg, err)
		}
	})
}

// Received is a well-formed field whatever the client said.
func FuzzReceived(f *testing.F) {
	f.Add("client.example", "ESMTP", "TLS_X (", "ann", true)
	f.Fuzz(func(t *testing.T, helo, proto, cipher, local string, utf8 bool) {
		env := &mailspine.Envelope{ID: "X", UTF8: utf8, Origin: mailspine.Origin{Helo: helo, Proto: proto, TLS: mailspine.TLSInfo{Version: "TLS 1.3", Cipher: cipher}}}
		if a := (mailspine.Address{Local: local, Domain: "example.org"}); a.Validate() == nil {
			env.Recipients = []mailspine.Recipient{{Address: a}}
		}
		field := Received(env, "mx.example.org", time.Unix(0, 0))
		h, err := mailspine.ParseHeader(bytes.NewReader(field), 0)
		if err != nil || len(h.Fields) != 1 || !h.Fields[0].Is("Received") || h.Body != int64(len(field)) {
			t.Fatalf("%q: %v, %v", field, h, err)
		}
		if bytes.ContainsAny(bytes.ReplaceAll(field, []byte("\r\n\t"), nil), "\x00") || bytes.Count(field, []byte("(")) > 2 && local == "" {
			t.Errorf("%q", field)
		}
	})
}

// The whole conversation: whatever a client sends, the server neither panics nor
// hangs, and all it says is well-formed replies.
func FuzzConversation(f *testing.F) {
	for _, s := range []string{
		"EHLO a\r\nMAIL FROM:<joe@example.com>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nSubject: x\r\n\r\n.\r\nQUIT\r\n",
		"EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\nabcBDAT 2 LAST\r\nxyRSET\r\n", "STARTTLS\r\n\x16\x03\x01", "EHLO a\r\nAUTH TEST\r\naGVsbG8=\r\nc2VjcmV0\r\n",
		"EHLO \xff\r\n", "NOOP\n\r\r\n\x00", "LHLO a\r\n", "MAIL FROM:<a@b>\r\nDATA\r\n\n.\n\r.\r\n", "BDAT 99999999999\r\n", "EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\na\n.\nMAIL\r\n.\r\n",
		strings.Repeat("A", 5000) + "\r\nRSET\r\n", "POST / HTTP/1.1\r\n",
	} {
		f.Add([]byte(s), byte(0))
		f.Add([]byte(s), byte(7))
	}
	f.Fuzz(func(t *testing.T, in []byte, how byte) {
		r := &recorder{login: how&1 != 0}
		l := Limits{MaxSize: 100, MaxRecipients: 2, MaxErrors: 5, MaxCommands: 50, Session: 5 * time.Second}
		s := &Server{Hostname: "mx.example.org", Handler: r, Logger: quiet(), Limits: l, LMTP: how&2 != 0, TLSConfig: testTLS(), AuthDelay: -1}
		s.init()
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			newConn(s, theirs, false).serve()
		}()
		go func() {
			step := 1 + int(how>>2)*7
			for rest := in; len(rest) > 0; {
				n := min(step, len(rest))
				if _, err := ours.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
			ours.Write([]byte("\r\n.\r\nQUIT\r\n"))
			time.AfterFunc(50*time.Millisecond, func() { ours.Close() })
		}()
		out, _ := io.ReadAll(ours)
		ours.Close()
		<-done
		if s.Stats().Panics > 0 {
			t.Fatal("panic")
		}
		// A handshake that fails leaves an alert in the stream, behind the 220.
		if i := bytes.Index(out, []byte("Ready to start TLS\r\n")); i >= 0 {
			out = out[:i+len("Ready to start TLS\r\n")]
		}
		for _, line := range strings.SplitAfter(string(out), "\r\n") {
			if line != "" && !replyLine.MatchString(line) && !strings.HasPrefix(line, "334 ") {
				t.Fatalf("malformed reply line %q", line)
			}
		}
		for _, m := range r.got() {
			if err := m.env.Validate(); err != nil {
				t.Errorf("%v", err)
			}
			if !sound(m.data, 1000) {
				t.Errorf("taken: %q", m.data)
			}
		}
	})
}

func ExampleReceived() {
	env := &mailspine.Envelope{
		ID:         "01JQZ",
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ann", Domain: "example.org"}}},
		Origin:     mailspine.Origin{Addr: netip.MustParseAddrPort("192.0.2.7:2525"), Helo: "mail.example.com", Proto: "ESMTP"},
	}
	field := Received(env, "mx.example.org", time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC))
	fmt.Print(strings.ReplaceAll(string(field), "\r\n", "\n"))
	// Output:
	// Received: from mail.example.com ([192.0.2.7])
	// 	by mx.example.org with ESMTP
	// 	id 01JQZ
	// 	for <ann@example.org>;
	// 	Wed, 04 Mar 2026 05:06:07 +0000
}
