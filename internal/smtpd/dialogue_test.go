package smtpd

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mailspine/mailspine"
)

func small() Limits { return Limits{MaxSize: 10_000, MaxRecipients: 3} }

func TestDialogueMain(t *testing.T) {
	r := &recorder{}
	addr := start(t, &Server{Handler: r, Limits: small(), TLSConfig: testTLS()})
	transcript(t, addr, "main")
	got := r.got()
	if len(got) != 1 {
		t.Fatalf("%d messages", len(got))
	}
	if want := "Subject: dots\r\n\r\n.one\r\n..two\r\n"; got[0].data != want {
		t.Errorf("data %q, want %q", got[0].data, want)
	}
	var to []string
	for _, rcpt := range got[0].env.Recipients {
		to = append(to, rcpt.Address.String())
	}
	want := []string{"ann@example.org", "Postmaster@mx.example.org", `"a b\"c"@[192.0.2.1]`}
	if diff := cmp.Diff(want, to); diff != "" {
		t.Error(diff)
	}
	if p := got[0].env.Origin.Proto; p != "ESMTP" {
		t.Errorf("proto %s", p)
	}
	calls := []string{"new", "mail <joe@example.com>", "rcpt <ann@example.org>", "rcpt <Postmaster@mx.example.org>",
		`rcpt <"a b\"c"@[192.0.2.1]>`, "data", "reset", "mail <>", "reset", "close"}
	waitFor(t, func() bool { return len(r.noted()) >= len(calls) })
	if diff := cmp.Diff(calls, r.noted()); diff != "" {
		t.Error(diff)
	}
}

func (r *recorder) noted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.calls...)
}

// waitFor waits for what another goroutine is about to do.
func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestDialogueParams(t *testing.T) {
	r := &recorder{}
	limits := small()
	limits.MaxErrors = -1
	addr := start(t, &Server{Handler: r, Limits: limits, TLSConfig: testTLS()})
	transcript(t, addr, "params")
	got := r.got()
	if len(got) != 1 {
		t.Fatalf("%d messages", len(got))
	}
	want := mailspine.Envelope{
		From: mailspine.Address{Local: "joe", Domain: "example.com"}, Ret: mailspine.RetHdrs, EnvID: "q+1", UTF8: true, Body: mailspine.Body8Bit,
		Recipients: []mailspine.Recipient{
			{Address: mailspine.Address{Local: "änn", Domain: "bücher.example"}, Notify: mailspine.NotifySuccess | mailspine.NotifyFailure, ORcpt: "utf-8;änn@example.org"},
			{Address: mailspine.Address{Local: "ann", Domain: "example.org"}, Notify: mailspine.NotifyNever, ORcpt: "rfc822;ann+x@example.org"},
		},
	}
	if diff := cmp.Diff(want, got[0].env, cmpopts.IgnoreFields(mailspine.Envelope{}, "ID", "Origin")); diff != "" {
		t.Error(diff)
	}
	if err := got[0].env.Validate(); err != nil {
		t.Error(err)
	}
	o := got[0].env.Origin
	if o.Proto != "UTF8SMTP" || o.Helo != "a" || !o.Addr.Addr().IsLoopback() || o.Time.IsZero() || o.Local.Port() == 0 {
		t.Errorf("origin %+v", o)
	}
}

func TestDialogueLMTP(t *testing.T) {
	r := &recorder{
		rcpt: func(_ *Transaction, rcpt *mailspine.Recipient) error {
			if rcpt.Address.Local == "no" {
				return mailspine.Errorf(550, "5.1.1", "No such user")
			}
			return nil
		},
		data: func(tx *Transaction, r io.Reader) (string, error) {
			if _, err := io.ReadAll(r); err != nil {
				return "", err
			}
			res := make(mailspine.RecipientErrors, len(tx.Envelope.Recipients))
			for i, rcpt := range tx.Envelope.Recipients {
				switch rcpt.Address.Local {
				case "full":
					res[i] = mailspine.Errorf(452, "4.2.2", "Mailbox full")
				case "broken":
					res[i] = errors.New("secret")
				}
			}
			return "", res.Err()
		},
	}
	addr := start(t, &Server{Handler: r, LMTP: true, Limits: Limits{MaxSize: 10_000}})
	transcript(t, addr, "lmtp")
}

func TestDialogueChunking(t *testing.T) {
	r := &recorder{}
	addr := start(t, &Server{Handler: r, Limits: small(), TLSConfig: testTLS()})
	transcript(t, addr, "chunking")
	var got []string
	for _, m := range r.got() {
		got = append(got, m.data)
	}
	if diff := cmp.Diff([]string{"abc\r\n.\r\n", ""}, got); diff != "" {
		t.Error(diff)
	}
}

func TestDialogueTLS(t *testing.T) {
	r := &recorder{login: true}
	addr := start(t, &Server{Handler: r, Limits: small(), TLSConfig: testTLS(),
		Extensions: Extensions{RequireTLS: true, DeliverBy: true, Priority: true}})
	transcript(t, addr, "tls")
	got := r.got()
	if len(got) != 1 {
		t.Fatalf("%d messages", len(got))
	}
	env := got[0].env
	if env.Origin.Proto != "ESMTPSA" || env.Origin.Login != "joe" || env.Origin.TLS.Version != "TLS 1.3" || !strings.HasPrefix(env.Origin.TLS.Cipher, "TLS_") {
		t.Errorf("origin %+v", env.Origin)
	}
	if !env.RequireTLS || env.Priority != -3 || !env.DeliverBy.Return || time.Until(env.DeliverBy.Time) < 50*time.Minute {
		t.Errorf("envelope %+v", env)
	}
}
