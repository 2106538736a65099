package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
)

// What receivers would refuse stays at home, for now if the set-up is to blame and for good if the message is.
func TestSelfCheck(t *testing.T) {
	other := key("example.org")
	other.Key = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	late := key("example.org")
	late.Selector = "next"
	esp := key("esp.example")
	strict := world()
	strict["_dmarc.example.org"] = "v=DMARC1; p=none; adkim=s"
	broken := world()
	broken["_dmarc.example.org"] = "!"
	down := world()
	down["s._domainkey.example.org"] = "!"
	espZone := world()
	espZone["s._domainkey.esp.example"] = esp.Record().String()
	bare := world()
	delete(bare, "_dmarc.example.org")
	for _, c := range []struct {
		name string
		zone zone
		keys []dkim.SigningKey
		from string
		want string
	}{
		{"in order", world(), []dkim.SigningKey{key("example.org")}, "joe@example.org", ""},
		{"no policy", bare, []dkim.SigningKey{key("example.org")}, "joe@example.org", ""},
		{"both published", espZone, []dkim.SigningKey{key("example.org"), esp}, "joe@example.org", ""},
		{"subdomain", world(), []dkim.SigningKey{key("example.org")}, "joe@news.example.org", ""},
		{"not published", world(), []dkim.SigningKey{late}, "joe@example.org", "451 4.7.20 The signing key of example.org is not in order"},
		{"one of two not published", world(), []dkim.SigningKey{key("example.org"), esp}, "joe@example.org", "451 4.7.20 The signing key of esp.example"},
		{"another key published", world(), []dkim.SigningKey{other}, "joe@example.org", "451 4.7.20"},
		{"name server down", down, []dkim.SigningKey{key("example.org")}, "joe@example.org", "451 4.7.20"},
		{"of another domain", espZone, []dkim.SigningKey{esp}, "joe@example.org", "550 5.7.22 Message would not pass DMARC: no signature is aligned with example.org"},
		{"strict, and a subdomain", strict, []dkim.SigningKey{key("example.org")}, "joe@news.example.org", "550 5.7.22"},
		{"policy not known, own domain", broken, []dkim.SigningKey{key("example.org")}, "joe@example.org", ""},
		{"policy not known", broken, []dkim.SigningKey{key("example.org")}, "joe@news.example.org", "451 4.7.1"},
	} {
		var got *Outgoing
		taken := false
		s := &Signer{
			Keys:      KeysFunc(func(context.Context, *mailspine.Envelope, string) ([]dkim.SigningKey, error) { return c.keys, nil }),
			SelfCheck: &SelfCheck{Resolver: c.zone},
			Comply:    func(_ context.Context, _ *mailspine.Envelope, m *Outgoing) error { got = m; return nil },
			Next: mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
				taken = true
				return nil
			}),
		}
		err := s.Deliver(t.Context(), &mailspine.Envelope{}, mailspine.StringContent(from(c.from)))
		switch {
		case c.want != "":
			if !strings.HasPrefix(mailspine.Status(err).Reply(), c.want) || taken || got != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		case err != nil || !taken || len(got.Signatures) != len(c.keys) || got.Signatures[0].Status != dkim.Pass || got.DMARC.Status == "" ||
			"joe@"+got.Author != c.from || got.Header.Get("Subject") != "x":
			t.Errorf("%s: %v %+v", c.name, err, got)
		}
	}
}

// A message that is changed below the Signer's hands breaks its signature; that is the message's fault.
func TestSelfCheckChanged(t *testing.T) {
	n := 0
	msg := changing{func() string { n++; return from("joe@example.org") + strings.Repeat("more\r\n", n) }}
	s := &Signer{Keys: KeyMap{"example.org": {key("example.org")}}, SelfCheck: &SelfCheck{Resolver: world()}}
	s.Next = mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return errors.New("delivered") })
	if err := s.Deliver(t.Context(), &mailspine.Envelope{}, msg); !strings.HasPrefix(mailspine.Status(err).Reply(), "550 5.7.20 Message would not pass") {
		t.Error(err)
	}
}

// Comply sees what is not signed, too, and what it says is the answer.
func TestComply(t *testing.T) {
	no := mailspine.Errorf(550, "5.7.1", "List-Unsubscribe is missing")
	for _, f := range []string{"joe@example.org", "joe@example.com", "a@b.example, c@d.example"} {
		var seen *Outgoing
		s := &Signer{
			Keys: KeyMap{"example.org": {key("example.org")}}, Logger: slog.New(slog.DiscardHandler), SelfCheck: &SelfCheck{Resolver: world()},
			Comply: func(_ context.Context, _ *mailspine.Envelope, m *Outgoing) error { seen = m; return no },
			Next:   mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return errors.New("delivered") }),
		}
		err := s.Deliver(t.Context(), &mailspine.Envelope{}, mailspine.StringContent(from(f)))
		signed := f == "joe@example.org"
		if !errors.Is(err, no) || seen == nil || (seen.DMARC.Status == dmarc.Pass) != signed || (len(seen.Signatures) == 1) != signed {
			t.Errorf("%s: %v %+v", f, err, seen)
		}
	}
}

// changing content is another one each time that it is opened.
type changing struct{ text func() string }

func (c changing) Open(ctx context.Context) (io.ReadCloser, error) {
	return mailspine.StringContent(c.text()).Open(ctx)
}
func (c changing) Size() int64 { return int64(len(from("joe@example.org"))) }
