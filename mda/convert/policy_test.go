package convert_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/convert"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

func TestByMailbox(t *testing.T) {
	rule := func(o convert.Options) *convert.Rule { return &convert.Rule{Options: o} }
	p := convert.ByMailbox{
		{Account: "ann", Name: "Old"}: rule(convert.Options{SevenBit: true}),
		{Account: "ann"}:              rule(convert.Options{UTF8: true}),
		{Name: "Old"}:                 rule(convert.Options{Text: true}),
		{Name: "Raw"}:                 rule(convert.Options{}),
		{}:                            {Options: convert.Options{Text: true, KeepHTML: true}, Originals: "Kept"},
	}
	for _, c := range []struct{ account, name, want string }{
		{"ann", "Old", "7bit"}, {"ann", "INBOX", "utf-8"}, {"ann", "Raw", "utf-8"}, {"bob", "Old", "text"}, {"bob", "Raw", ""}, {"bob", "INBOX", "text+html"},
	} {
		f, err := p.Format(t.Context(), mda.Destination{Account: c.account, Mailbox: c.name}, nil, nil)
		if err != nil || f.Name != c.want || (f.Convert == nil) != (c.want == "") {
			t.Errorf("%s/%s: %q, %v; want %q", c.account, c.name, f.Name, err, c.want)
		}
	}
	if f, _ := p.Format(t.Context(), mda.Destination{Account: "bob", Mailbox: "INBOX"}, nil, nil); f.Originals != "Kept" {
		t.Errorf("originals go to %q", f.Originals)
	}
	if f, err := (convert.ByMailbox)(nil).Format(t.Context(), mda.Destination{}, nil, nil); f.Name != "" || err != nil {
		t.Errorf("no policy: %+v, %v", f, err)
	}
}

// read returns the messages of a mailbox.
func read(t *testing.T, s mailbox.Store, account, name string) []string {
	t.Helper()
	acct, err := s.Account(t.Context(), account)
	if err != nil {
		t.Fatal(err)
	}
	m, err := acct.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range snap.Messages {
		b, err := m.Body(t.Context(), x.UID)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(raw))
	}
	return out
}

// With an Agent: the original octet for octet, the derived message in seven bits even where
// the trace fields are not, and what cannot be taken apart as it is.
func TestAgent(t *testing.T) {
	s := memory.New(nil)
	defer s.Close()
	var reports []convert.Result
	a := &mda.Agent{
		Mailboxes: s, Concurrency: 1,
		Directory: mda.MapDirectory{"ü@example.org": {{Account: "ann"}}},
		Formats: convert.ByMailbox{{Account: "ann"}: {
			Options: convert.Options{UTF8: true, Text: true, SevenBit: true},
			Report:  func(_ context.Context, r convert.Result) { reports = append(reports, r) },
		}},
	}
	deliver := func(msg string) {
		t.Helper()
		err := a.Deliver(t.Context(), &mailspine.Envelope{
			ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "joe", Domain: "example.com"}, UTF8: true,
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ü", Domain: "example.org"}}},
		}, mailspine.StringContent(msg))
		if err != nil {
			t.Fatal(err)
		}
	}
	const trace = "Return-Path: <joe@example.com>\r\nDelivered-To: ü@example.org\r\n"
	html := "Subject: grüße\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=koi8-r\r\n\r\n<p>\xc0 <script>x</script>\r\n"
	deliver(html)
	if got := read(t, s, "ann", "Originals"); len(got) != 1 || got[0] != trace+html {
		t.Errorf("Originals has %q", got)
	}
	want := "Return-Path: <joe@example.com>\r\nDowngraded-Delivered-To: =?utf-8?b?w7xAZXhhbXBsZS5vcmc=?=\r\nSubject: =?utf-8?b?Z3LDvMOfZQ==?=\r\n" +
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\nX-Mailspine-Converted: text, 7bit\r\n\r\n=D1=8E\r\n"
	if got := read(t, s, "ann", "INBOX"); len(got) != 1 || got[0] != want {
		t.Errorf("INBOX has %q, want %q", got, want)
	}
	broken := "Content-Type: multipart/mixed\r\n\r\n--\r\n\xff\r\n"
	deliver(broken)
	if got := read(t, s, "ann", "INBOX"); len(got) != 2 || got[1] != trace+broken {
		t.Errorf("INBOX has %q", got)
	}
	if n := len(read(t, s, "ann", "Originals")); n != 1 {
		t.Errorf("Originals has %d messages", n)
	}
	if len(reports) != 2 || !reports[0].Changed || reports[1].Changed || !strings.Contains(reports[1].Problem.Error(), "boundary") {
		t.Errorf("reports: %+v", reports)
	}
}
