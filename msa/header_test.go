package msa

import (
	"context"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
)

func TestHeaderRefused(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	s.Limits.MaxErrors = -1
	c := loggedIn(t, start(t, s, s.Serve), "joe@example.org")
	for _, tc := range []struct{ msg, want string }{
		{"", "554 5.6.0 Message has no header"},
		{"\r\nbody\r\n", "554 5.6.0 Message has no header"},
		{"just a text\r\n", "554 5.6.0 Message has no header"},
		{"Subject: x\r\n\r\nbody\r\n", "554 5.6.0 Header has no From field"},
		{"From: joe@example.org\r\nFrom: joe@example.org\r\n\r\n", "554 5.6.0 Header has 2 From fields"},
		{"From: joe@example.org\r\nFROM : ann@example.org\r\n\r\n", "554 5.6.0 Header has 2 From fields"},
		{"From: joe@example.org\r\nSubject: a\r\nSubject: b\r\n\r\n", "554 5.6.0 Header has 2 Subject fields"},
		{"From: joe@example.org\r\nDate: a\r\nDate: b\r\n\r\n", "554 5.6.0 Header has 2 Date fields"},
		{"From: joe@example.org\r\nSubject: x\r\nthis is no field\r\n\r\nbody\r\n", "554 5.6.0 Header line 3 is neither a field nor empty"},
		{"From: joe@example.org\r\n\tfolded\r\n@: x\r\n \r\nbody\r\n", "554 5.6.0 "},
		{"From:\r\n\r\n", "554 5.6.0 From field has no address list"},
		{"From: joe\r\n\r\n", "554 5.6.0 From field has no address list"},
		{"From: joe@example.org, \r\n <\r\n\r\n", "554 5.6.0 From field has no address list"},
		{"From: team:;\r\n\r\n", "554 5.6.0 From field has no address list"},
		{"From: " + strings.Repeat("joe@example.org,\r\n ", 100) + "joe@example.org\r\n\r\n", "554 5.6.0 From field has no address list"},
		{"From: ann@example.org\r\n\r\n", "554 5.7.1 Address in the From field is not yours"},
		{"From: joe@example.org <ann@example.org>\r\n\r\n", "554 5."},
		{"From: \"joe@example.org\" <ann@example.org>\r\n\r\n", "554 5.7.1 "},
		{"From: joe@example.org, ann@example.org\r\n\r\n", "554 5.7.1 "},
		{"From: joe@example.org\r\nSender: ann@example.org\r\n\r\n", "554 5.7.1 Address in the Sender field"},
		{"From: joe@example.org\r\nSender: joe@example.org, sales@example.org\r\n\r\n", "554 5.6.0 Sender field has more than one"},
		{"From: joe@example.org\r\nResent-From: ann@example.org\r\n\r\n", "554 5.7.1 Address in the Resent-From field"},
		{"From: joe@example.org\r\n" + strings.Repeat("Received: x\r\n", 101) + "\r\n", "554 5.4.6 "},
	} {
		if r := c.submit("joe@example.org", tc.msg, "bob@example.com"); !strings.HasPrefix(r, tc.want) {
			t.Errorf("%.60q: got %q, want %q", tc.msg, r, tc.want)
		}
	}
	if b.count() != 0 {
		t.Errorf("%d messages came through", b.count())
	}
}

func TestHeaderTaken(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	c := loggedIn(t, start(t, s, s.Serve), "joe@example.org")
	const added = "Date: Wed, 04 Mar 2026 05:06:07 +0000\r\nMessage-ID: <ID@mail.example.org>\r\n"
	for _, tc := range []struct{ msg, want string }{
		{"From: joe@example.org\r\n", "From: joe@example.org\r\n" + added},
		{"From: Joe <JOE@example.org>, sales@example.org\r\nSender: joe@example.org\r\n\r\nx\r\n", "From: Joe <JOE@example.org>, sales@example.org\r\nSender: joe@example.org\r\n" + added + "\r\nx\r\n"},
		{"from: =?utf-8?q?J=C3=B6?= <x@joe.example>\r\nDATE: never\r\nmessage-id: y\r\n\r\n", "from: =?utf-8?q?J=C3=B6?= <x@joe.example>\r\nDATE: never\r\nmessage-id: y\r\n\r\n"},
		{"Return-Path: <a@b>\r\nBcc: a@b,\r\n c@d\r\nFrom: joe@example.org\r\nX-Mailspine-Tenant: evil\r\nResent-Bcc: x@y\r\nAuthentication-Results: mail.example.org; spf=pass\r\nx-mailspine-pool: gold\r\nX-Keep: 1\r\n\r\nBcc: in the body\r\n",
			"From: joe@example.org\r\nX-Keep: 1\r\n" + added + "\r\nBcc: in the body\r\n"},
		// Broken MIME is not ours to repair.
		{"From: joe@example.org\r\nContent-Type: multipart/mixed; boundary=\"\r\nContent-Transfer-Encoding: bogus\r\n\r\n--\r\n--x\r\n\r\n=ZZ\xff\xfe\r\n--x-",
			"From: joe@example.org\r\nContent-Type: multipart/mixed; boundary=\"\r\nContent-Transfer-Encoding: bogus\r\n" + added + "\r\n--\r\n--x\r\n\r\n=ZZ\xff\xfe\r\n--x-\r\n"},
	} {
		msg := tc.msg
		if !strings.HasSuffix(msg, "\r\n") {
			msg += "\r\n"
		}
		if r := c.submit("joe@example.org", msg, "bob@example.com"); !strings.HasPrefix(r, "250 2.0.0 Ok: queued as ") {
			t.Errorf("%q: %s", tc.msg, r)
			continue
		}
		env, data := b.last(t)
		_, got, ok := strings.Cut(data, " +0000\r\n")
		got = strings.ReplaceAll(got, string(env.ID), "ID")
		if !ok || !strings.HasPrefix(data, "Received: ") || got != tc.want {
			t.Errorf("%q:\n got %q\nwant %q", tc.msg, got, tc.want)
		}
		if strings.Contains(msg, "\xff") != (env.Body == mailspine.Body8Bit) {
			t.Errorf("%q: body %d", tc.msg, env.Body)
		}
	}
}

// A header field of addresses that anybody may write: no panic, and only addresses that others can rely on.
func FuzzMailboxes(f *testing.F) {
	for _, s := range []string{"joe@example.org", "Joe <joe@example.org>, \"A B\" <ann@example.org>", "team: a@b, c@d;", "\"a@b\"@c", "=?utf-8?q?=C3?= <a@b>", "<@a:b@c>", "a@[192.0.2.1]", "(c(c)) a@b", "a b@c", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		list, err := mailboxes(v)
		if err != nil {
			return
		}
		if len(list) == 0 || len(list) > maxMailboxes {
			t.Errorf("%d addresses", len(list))
		}
		for _, a := range list {
			if a.IsZero() || a.Validate() != nil {
				t.Errorf("%q: %q", v, a)
			}
			if b, err := mailspine.ParseAddress(a.String()); err != nil || b != a {
				t.Errorf("%q: %q, %v", v, a, err)
			}
		}
	})
}

// Any header: refused, or what comes out has one From that is the sender's, and nothing that was to go.
func FuzzHeader(f *testing.F) {
	for _, s := range []string{plainMessage, "From: joe@example.org\nBcc: x\n\ny", "From : joe@example.org\r\n x\r\n\r\n", "\r\n", "a", "From: joe@example.org\r\nX-Mailspine-A: b\r\nfoo\r\n"} {
		f.Add([]byte(s))
	}
	s := &Server{Hostname: "mail.example.org", Now: fixedNow}
	f.Fuzz(func(t *testing.T, in []byte) {
		ctx := context.Background()
		msg := mailspine.BytesContent(in)
		h, err := mailspine.ReadHeader(ctx, msg, 0)
		if err != nil {
			return
		}
		env := &mailspine.Envelope{ID: mailspine.NewMsgID()}
		out, err := s.fix(ctx, &mailspine.Login{Name: "joe@example.org"}, "mail.example.org", env, msg, h)
		if err != nil {
			if st := mailspine.Status(err); st.Code != 554 {
				t.Errorf("%q: %v", in, err)
			}
			return
		}
		g, err := mailspine.ReadHeader(ctx, out, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"From", "Date", "Message-ID"} {
			if n := len(g.Values(name)); n != 1 {
				t.Errorf("%q: %d %s fields", in, n, name)
			}
		}
		for _, field := range g.Fields {
			if drop(field) {
				t.Errorf("%q: %s is left", in, field.Name)
			}
		}
	})
}

// A display name in a character set that Go does not know is no reason to refuse
// a message: only the addresses matter.
func TestForeignCharsetTaken(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	c := loggedIn(t, start(t, s, s.Serve), "joe@example.org")
	for _, name := range []string{"=?gb2312?B?1tDOxA==?=", "=?ISO-2022-JP?B?GyRCRnxLXBsoQg==?=", "=?koi8-r?Q?=C1?="} {
		if r := c.submit("joe@example.org", "From: "+name+" <joe@example.org>\r\n\r\nx\r\n", "bob@example.com"); !strings.HasPrefix(r, "250 ") {
			t.Errorf("%s: %s", name, r)
		}
		if r := c.submit("joe@example.org", "From: "+name+" <ann@example.org>\r\n\r\nx\r\n", "bob@example.com"); !strings.HasPrefix(r, "554 5.7.1 ") {
			t.Errorf("%s: %s", name, r)
		}
	}
}

// What a header can make the server ask of Senders is bounded for the message,
// not only for each field.
func TestSendersAskedBounded(t *testing.T) {
	b := &box{}
	s := newServer(t, b)
	asked := 0
	s.Senders = SendersFunc(func(context.Context, *mailspine.Login, mailspine.Address) error { asked++; return nil })
	s.Limits.MaxSize = 1 << 20
	c := loggedIn(t, start(t, s, s.Serve), "joe@example.org")
	msg := "From: joe@example.org\r\n" + strings.Repeat("Resent-From: a@b.c\r\n", 4000) + "\r\nx\r\n"
	if r := c.submit("joe@example.org", msg, "bob@example.com"); !strings.HasPrefix(r, "554 5.6.0 ") {
		t.Errorf("got %s", r)
	}
	if asked > maxMailboxes+1 {
		t.Errorf("Senders were asked %d times", asked)
	}
}
