package fbl

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// A taken is a message that a next got.
type taken struct {
	env *mailspine.Envelope
	msg string
}

// A next takes messages, or answers with err.
type next struct {
	got []taken
	err func(*mailspine.Envelope) error // nil: none
}

func (n *next) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	b, err := mailspine.ReadContent(ctx, msg, 10<<20)
	if err != nil {
		return err
	}
	if n.err != nil {
		if err := n.err(env); err != nil {
			return err
		}
	}
	n.got = append(n.got, taken{env, string(b)})
	return nil
}

func TestStamp(t *testing.T) {
	now := t0
	tokens := newTokens(&now)
	const text = "Subject: Hello\r\nx-feedback-token: forged\r\nTo: all\r\n\r\nX-Feedback-Token: in the body\r\n"
	for _, path := range []bool{false, true} {
		n := &next{}
		s := &Stamp{Next: n, Tokens: tokens, ReturnPath: path}
		env := letter("ann@example.com", "bob@example.com", "cid@example.net")
		for range 2 { // again, as after a crash
			if err := s.Deliver(t.Context(), env, mailspine.StringContent(text)); err != nil {
				t.Fatal(err)
			}
		}
		if len(n.got) != 6 || env.From != addr("news@example.org") || len(env.Recipients) != 3 {
			t.Fatalf("Next got %d", len(n.got))
		}
		ids := map[mailspine.MsgID]bool{env.ID: true}
		for i, got := range n.got[:3] {
			if got.env.ID != n.got[i+3].env.ID || got.msg != n.got[i+3].msg {
				t.Error("a repetition is another message")
			}
			if ids[got.env.ID] || got.env.ID.Validate() != nil {
				t.Errorf("the ID %s", got.env.ID)
			}
			ids[got.env.ID] = true
			rest, ok := strings.CutSuffix(got.msg, "Subject: Hello\r\nTo: all\r\n\r\nX-Feedback-Token: in the body\r\n")
			token, ok2 := strings.CutPrefix(strings.TrimSuffix(rest, "\r\n"), Header+": ")
			if !ok || !ok2 {
				t.Fatalf("%q", got.msg)
			}
			o, err := tokens.OpenToken(t.Context(), token)
			if err != nil || !o.For(env.Recipients[i].Address) || o.Message != env.ID || o.Scope.Sender != env.From {
				t.Errorf("%+v, %v", o, err)
			}
			if len(got.env.Recipients) != 1 || got.env.Recipients[0] != env.Recipients[i] {
				t.Errorf("%+v", got.env)
			}
			if path != (got.env.From != env.From) || path && got.env.From.Local != "b-"+token {
				t.Errorf("the return path is %s", got.env.From)
			}
		}
		// One recipient: the ID stays.
		n.got = nil
		env = letter("ann@example.com")
		if err := s.Deliver(t.Context(), env, mailspine.StringContent(text)); err != nil || n.got[0].env.ID != env.ID {
			t.Errorf("%v, %v", err, n.got)
		}
		// A notification is not touched.
		n.got = nil
		env.From = mailspine.Address{}
		if err := s.Deliver(t.Context(), env, mailspine.StringContent(text)); err != nil || n.got[0].msg != text || n.got[0].env != env {
			t.Errorf("%v, %v", err, n.got)
		}
	}
}

func TestStampErrors(t *testing.T) {
	now := t0
	n := &next{err: func(env *mailspine.Envelope) error {
		if env.Recipients[0].Address.Local == "bob" {
			return mailspine.RecipientErrors{mailspine.Errorf(452, "4.3.1", "Full")}
		}
		return nil
	}}
	s := &Stamp{Next: n, Tokens: newTokens(&now)}
	err := s.Deliver(t.Context(), letter("ann@example.com", "bob@example.com"), mailspine.StringContent("A: b\r\n\r\n"))
	if mailspine.ErrorAt(err, 0) != nil || mailspine.Status(mailspine.ErrorAt(err, 1)).Code != 452 {
		t.Error(err)
	}
	for name, s := range map[string]*Stamp{
		"no next": {Tokens: s.Tokens}, "no tokens": {Next: n}, "bad tokens": {Next: n, Tokens: &Tokens{}},
		"no domain": {Next: n, ReturnPath: true, Tokens: &Tokens{Keys: s.Tokens.Keys, Scopes: s.Tokens.Scopes}},
	} {
		n.got = nil
		err := s.Deliver(t.Context(), letter("ann@example.com"), mailspine.StringContent("A: b\r\n\r\n"))
		if err == nil || !mailspine.Status(err).Temporary() || n.got != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	huge := "X: " + strings.Repeat("y", mailspine.MaxHeader) + "\r\n\r\n"
	if err := s.Deliver(t.Context(), letter("ann@example.com"), mailspine.StringContent(huge)); mailspine.Status(err).Code != 552 {
		t.Error(err)
	}
}

// The copies of a message that a queue on disk has staged are all whole.
func TestStampStaged(t *testing.T) {
	now := t0
	store, err := filequeue.Open(filepath.Join(t.TempDir(), "queue"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	q := &queue.Queue{Store: store}
	s := &Stamp{Next: q, Tokens: newTokens(&now), ReturnPath: true}
	for _, size := range []int{10, 300 << 10} {
		env := letter("ann@example.com", "bob@example.com", "cid@example.net")
		body := "Subject: x\r\n\r\n" + strings.Repeat("0123456789abcdef", size/16) + "\r\n"
		st, err := mailspine.StagerOf(s).Stage(t.Context(), int64(len(body)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
		c, err := st.Content()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Deliver(t.Context(), env, c), st.Close()); err != nil {
			t.Fatal(err)
		}
		leases, err := store.Lease(t.Context(), queue.LeaseRequest{Max: 10, TTL: time.Minute})
		if err != nil || len(leases) != 3 {
			t.Fatalf("%d items, %v", len(leases), err)
		}
		for _, l := range leases {
			r, err := store.Open(t.Context(), l.Envelope.ID)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			_, err = b.ReadFrom(r)
			if err := errors.Join(err, r.Close()); err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(b.String(), "\r\n"+body) || !strings.HasPrefix(b.String(), Header) {
				t.Errorf("a copy of %d octets has %d", len(body), b.Len())
			}
		}
	}
}
