package memory_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/mailboxtest"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

func TestStore(t *testing.T) {
	mailboxtest.Run(t, mailboxtest.Harness{Open: func(t *testing.T, c mailboxtest.Config) mailbox.Store {
		return memory.New(&memory.Options{MaxTombs: c.MaxTombs, MaxMessage: c.MaxMessage})
	}})
}

func TestModel(t *testing.T) {
	mailboxtest.RunModel(t, mailboxtest.Harness{Open: func(_ *testing.T, c mailboxtest.Config) mailbox.Store {
		return memory.New(&memory.Options{MaxTombs: c.MaxTombs})
	}})
}

// Memory is bounded, each body counts once, and what goes gives its memory back.
func TestMaxBytes(t *testing.T) {
	s := memory.New(&memory.Options{MaxBytes: 1000, MaxAccounts: 2})
	defer s.Close()
	a, err := s.Account(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Account(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Account(t.Context(), "c"); !errors.Is(err, mailbox.ErrLimit) {
		t.Errorf("a third account: %v", err)
	}
	msg := mailspine.StringContent(strings.Repeat("x", 600))
	d, err := a.Deliver(t.Context(), msg, mailbox.DeliverOptions{Mailboxes: []string{"INBOX", "Copy", "Other"}, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Deliver(t.Context(), msg, mailbox.DeliverOptions{})
	if st := mailspine.Status(err); st == nil || st.Reply() != "452 4.3.1 Insufficient system storage" {
		t.Errorf("over the bound: %v", err)
	}
	for _, c := range d.Copies {
		m, err := a.Open(t.Context(), c.Mailbox)
		if err != nil {
			t.Fatal(err)
		}
		if c.Mailbox == "Other" {
			err = a.Delete(t.Context(), "Other")
		} else {
			_, err = m.Expunge(t.Context(), []mailbox.UID{c.UID}, mailbox.ExpungeOptions{Any: true})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Deliver(t.Context(), msg, mailbox.DeliverOptions{}); err != nil {
		t.Errorf("after the others are gone: %v", err)
	}
}
