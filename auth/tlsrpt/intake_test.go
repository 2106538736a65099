package tlsrpt

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
)

func TestIntake(t *testing.T) {
	mail, err := sampleMessage().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pass := &mailspine.Verdict{DKIM: "pass", DKIMDomains: []string{"other.example", "Mail.Example.COM"}, Disposition: "none"}
	var got []*Received
	var handleErr, reviewErr error
	var reviewed []*mailspine.Envelope
	in := &Intake{
		Logger: quiet, Addresses: []mailspine.Address{addr("tlsrpt@example.org"), addr("tls@bücher.example")},
		Handle: func(_ context.Context, r *Received) error { got = append(got, r); return handleErr },
	}
	review := mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
		reviewed = append(reviewed, env.Clone())
		r, err := msg.Open(ctx)
		if err != nil {
			return err
		}
		r.Close()
		return reviewErr
	})
	deliver := func(v *mailspine.Verdict, msg string, rcpts ...string) error {
		env := &mailspine.Envelope{ID: "X1", From: addr("a@example.com"), Verdict: v, Origin: mailspine.Origin{Addr: netip.MustParseAddrPort("192.0.2.1:25")}}
		for _, r := range rcpts {
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(r)})
		}
		return in.Deliver(context.Background(), env, mailspine.StringContent(msg))
	}
	const mine = "tlsrpt@example.org"

	// Once, for however many addresses.
	if err := deliver(pass, string(mail), mine, "TLS@xn--bcher-kva.example"); err != nil || len(got) != 1 {
		t.Fatalf("%d reports, %v", len(got), err)
	}
	if r := got[0]; r.Vouched != "mail.example.com" || r.Report.ID != sample().ID || r.Message.Report != nil || r.Message.Domain != "example.org" || r.Remote != "192.0.2.1:25" {
		t.Errorf("%+v", r)
	}
	err = deliver(pass, string(mail), "x@example.org", mine, "tlsrpt@example.net")
	if len(got) != 2 || mailspine.ErrorAt(err, 1) != nil || mailspine.Status(mailspine.ErrorAt(err, 0)).Code != 550 || mailspine.Status(mailspine.ErrorAt(err, 2)).Code != 550 {
		t.Errorf("%d reports, %v", len(got), err)
	}

	// What is not believed, or is no report, is dropped, or reviewed.
	for _, to := range []mailspine.Deliverer{nil, review} {
		in.Review = to
		n := len(reviewed)
		for name, c := range map[string]struct {
			v   *mailspine.Verdict
			msg string
		}{
			"not checked":         {nil, string(mail)},
			"no signature":        {&mailspine.Verdict{DKIM: "none", SPF: "pass", DMARC: "pass"}, string(mail)},
			"a stranger's":        {&mailspine.Verdict{DKIM: "pass", DKIMDomains: []string{"example.net", "notexample.com", "", "a b"}}, string(mail)},
			"disowned":            {&mailspine.Verdict{DKIM: "pass", DKIMDomains: []string{"example.com"}, Disposition: "quarantine"}, string(mail)},
			"text":                {pass, "From: a@example.com\r\n\r\nhello\r\n"},
			"a report in a bomb":  {pass, "From: a@example.com\r\nContent-Type: application/tlsrpt+gzip\r\n\r\n" + string(bomb()[:len(bomb())/8])},
			"a report cut in two": {pass, string(mail[:len(mail)/2])},
		} {
			if err := deliver(c.v, c.msg, mine); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if len(got) != 2 {
				t.Fatalf("%s: it is taken", name)
			}
		}
		if want := n + 7; to != nil && len(reviewed) != want {
			t.Errorf("%d reviewed, not %d", len(reviewed), want)
		}
	}
	if e := reviewed[0]; len(e.Recipients) != 1 || e.Recipients[0].Address != addr(mine) || e.ID == "X1" || e.Validate() != nil {
		t.Errorf("%+v", e)
	}

	// Our own failures are for now, whatever they are.
	temporary := func(err error) {
		t.Helper()
		if s := mailspine.Status(err); s == nil || s.Code != 451 || strings.Contains(s.Reply(), "secret") {
			t.Errorf("%v", err)
		}
	}
	reviewErr = mailspine.Errorf(550, "5.1.1", "secret")
	temporary(deliver(nil, string(mail), mine))
	handleErr = mailspine.Errorf(554, "5.0.0", "secret")
	temporary(deliver(pass, string(mail), mine))
	temporary(in.Deliver(context.Background(), &mailspine.Envelope{Recipients: []mailspine.Recipient{{Address: addr(mine)}}}, brokenContent{}))
	temporary(in.Deliver(context.Background(), &mailspine.Envelope{Recipients: []mailspine.Recipient{{Address: addr(mine)}}}, brokenContent{open: true}))
	temporary((&Intake{}).Deliver(context.Background(), &mailspine.Envelope{}, nil))

	// Trust is the application's to decide.
	handleErr = nil
	in.Trust = func(v *mailspine.Verdict, m *Message) (string, error) {
		if v == nil && m.Submitter == "example.com" {
			return "trusted", nil
		}
		return "", errors.New("no")
	}
	if err := deliver(nil, string(mail), mine); err != nil || got[len(got)-1].Vouched != "trusted" {
		t.Errorf("%v", err)
	}

	for a, ok := range map[string]bool{mine: true, "TLSRPT@Example.Org": true, "tls@xn--bcher-kva.example": true, "a@example.org": false, "tlsrpt@example.com": false} {
		if err := in.CheckRecipient(context.Background(), nil, mailspine.Recipient{Address: addr(a)}); (err == nil) != ok {
			t.Errorf("%s: %v", a, err)
		}
	}
	in.Addresses = nil
	if err := in.CheckRecipient(context.Background(), nil, mailspine.Recipient{Address: addr("a@b.example")}); err != nil {
		t.Error(err)
	}
}

// A brokenContent cannot be read.
type brokenContent struct{ open bool }

func (c brokenContent) Open(context.Context) (io.ReadCloser, error) {
	if c.open {
		return c, nil
	}
	return nil, errors.New("secret")
}
func (brokenContent) Size() int64              { return 100 }
func (brokenContent) Read([]byte) (int, error) { return 0, errors.New("secret") }
func (brokenContent) Close() error             { return nil }
