package ledger

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A fakeDriver keeps nothing. Each Load is an account that has lost everything, under a new UIDValidity.
type fakeDriver struct {
	Driver
	loads  int
	linked func()
}

func (d *fakeDriver) Load() (*State, error) {
	d.loads++
	s := NewState(10)
	_, err := s.Apply(Entry{
		{Kind: KindMake, Box: 1, Name: mailbox.Inbox, Validity: uint32(2 * d.loads)},
		{Kind: KindAdd, Box: 1, UIDs: []mailbox.UID{1}, ModSeq: 2, Flags: [][]mailbox.Flag{nil}, Size: 1, Key: "k", EmailID: "e", File: "f"},
	})
	if err == nil && d.loads == 1 {
		_, err = s.Apply(Entry{{Kind: KindMake, Box: 2, Name: "a", Validity: 3}})
	}
	return s, err
}

func (d *fakeDriver) Commit([]Entry) error          { return nil }
func (d *fakeDriver) Settle(*State, []Effect) error { return nil }
func (d *fakeDriver) Stage(context.Context, mailspine.Content) (Staged, error) {
	return fakeStaged{}, nil
}
func (d *fakeDriver) Place(_ Staged, to []Place) error {
	for i := range to {
		to[i].File = to[i].Key
	}
	d.linked()
	return nil
}
func (d *fakeDriver) Link(_ *Box, _ *Msg, to *Place) error { to.File = to.Key; return nil }
func (d *fakeDriver) Sync([]Place) error                   { d.linked(); return nil }
func (d *fakeDriver) Unplace([]Place)                      {}
func (d *fakeDriver) Close(*State) error                   { return nil }

type fakeStaged struct{}

func (fakeStaged) Size() int64 { return 1 }
func (fakeStaged) Discard()    {}

// A pin is not waited for by Close. What comes through it afterwards finds the account
// closed, and does not open its driver again.
func TestPinAfterClose(t *testing.T) {
	d := &fakeDriver{}
	s := &Store{Open: func(string) (Driver, error) { return d, nil }, Limits: Limits{}.WithDefaults()}
	a, done, err := s.use(t.Context(), "ann", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.view(t.Context(), func(*State) error { return nil }); !errors.Is(err, mailbox.ErrClosed) {
		t.Errorf("view: %v", err)
	}
	if err := a.update(t.Context(), func(*State) (Entry, error) { return nil, nil }); !errors.Is(err, mailbox.ErrClosed) {
		t.Errorf("update: %v", err)
	}
	done()
	if d.loads != 1 {
		t.Errorf("%d loads", d.loads)
	}
}

// The account is loaded again, and has lost its log, while a delivery or a copy is under way. They fail,
// and do not stop the account for good.
func TestLogLostMeanwhile(t *testing.T) {
	for name, do := range map[string]func(a mailbox.Account, m mailbox.Mailbox) error{
		"deliver": func(a mailbox.Account, _ mailbox.Mailbox) error {
			_, err := a.Deliver(t.Context(), mailspine.StringContent("x"), mailbox.DeliverOptions{Mailboxes: []string{"a"}})
			return err
		},
		"deliver to INBOX": func(a mailbox.Account, _ mailbox.Mailbox) error {
			_, err := a.Deliver(t.Context(), mailspine.StringContent("x"), mailbox.DeliverOptions{})
			return err
		},
		"move": func(_ mailbox.Account, m mailbox.Mailbox) error {
			_, err := m.MoveTo(t.Context(), []mailbox.UID{1}, "a")
			return err
		},
		"copy": func(_ mailbox.Account, m mailbox.Mailbox) error {
			_, err := m.CopyTo(t.Context(), []mailbox.UID{1}, "INBOX")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &fakeDriver{}
			s := &Store{Open: func(string) (Driver, error) { return d, nil }, Limits: Limits{}.WithDefaults(), MaxIdle: -1}
			defer s.Close()
			acct, err := s.Account(t.Context(), "ann")
			if err != nil {
				t.Fatal(err)
			}
			m, err := acct.Open(t.Context(), "INBOX")
			if err != nil {
				t.Fatal(err)
			}
			d.linked = func() {
				a := s.slots["ann"].acct
				a.mu.Lock()
				a.st = nil
				a.mu.Unlock()
			}
			if err := do(acct, m); !errors.Is(err, mailbox.ErrNoMailbox) {
				t.Errorf("error %v", err)
			}
			if err := acct.SetSubscribed(t.Context(), "x", true); err != nil {
				t.Error(err)
			}
		})
	}
}

// Taking back what did not become messages takes back that, and nothing else,
// however much it is: quadratic, it would never end.
func TestUnplaceMany(t *testing.T) {
	const n = mailbox.MaxUIDs
	s := NewState(10)
	if _, err := s.Apply(Entry{{Kind: KindMake, Box: 1, Name: mailbox.Inbox, Validity: 1}}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	var kept, to []Place
	for i := range n {
		key := newKey(now, 1, "")
		if _, err := s.Apply(Entry{{Kind: KindAdd, Box: 1, UIDs: []mailbox.UID{mailbox.UID(i + 1)}, ModSeq: 2, Flags: [][]mailbox.Flag{nil}, Size: 1, Key: key}}); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, Place{Box: mailbox.Inbox, Key: key, File: key})
		to = append(to, Place{Box: mailbox.Inbox, Key: key + "x", File: key})
	}
	d := &unplacer{}
	a := newAccount(d, Limits{}, nil)
	a.st = s
	a.unplace(append(kept[:5], to...))
	if d.n != n {
		t.Errorf("%d taken back, want %d", d.n, n)
	}
}

type unplacer struct {
	Driver
	n int
}

func (d *unplacer) Unplace(to []Place) { d.n = len(to) }

// One change that is too large for a log is refused by itself, and does not take those that wait with it
// along.
func TestChangeTooLarge(t *testing.T) {
	if e := ops(); e.bound() < len(e.Append(nil)) {
		t.Errorf("the bound is %d, the encoding has %d octets", e.bound(), len(e.Append(nil)))
	}
	var flags []mailbox.Flag
	for i := range mailbox.MaxKeywords {
		flags = append(flags, mailbox.Flag(fmt.Sprintf("%0*d", mailbox.MaxKeywordLen, i)))
	}
	d := &crowded{n: 3000}
	s := &Store{Open: func(string) (Driver, error) { return d, nil }, Limits: Limits{}.WithDefaults()}
	defer s.Close()
	acct, err := s.Account(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	m, err := acct.Open(t.Context(), "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	var uids []mailbox.UID
	for i := range d.n {
		uids = append(uids, mailbox.UID(i+1))
	}
	if _, err := m.SetFlags(t.Context(), uids, mailbox.FlagChange{Flags: flags}); !errors.Is(err, mailbox.ErrLimit) || d.largest != 0 {
		t.Errorf("error %v, want ErrLimit; %d octets committed", err, d.largest)
	}
	if r, err := m.SetFlags(t.Context(), uids[:d.n/2], mailbox.FlagChange{Flags: flags}); err != nil || len(r.Changed) != d.n/2 {
		t.Errorf("half of it: %d changed, %v", len(r.Changed), err)
	}
	if d.largest == 0 || d.largest > maxEntry {
		t.Errorf("%d octets committed", d.largest)
	}
}

// crowded is a driver of an account with n messages.
type crowded struct {
	fakeDriver
	n, largest int
}

func (d *crowded) Load() (*State, error) {
	s := NewState(10)
	e := Entry{{Kind: KindMake, Box: 1, Name: mailbox.Inbox, Validity: 1}}
	for i := range d.n {
		e = append(e, Op{Kind: KindAdd, Box: 1, UIDs: []mailbox.UID{mailbox.UID(i + 1)}, ModSeq: 2, Flags: [][]mailbox.Flag{nil}, Size: 1, Key: "k"})
	}
	_, err := s.Apply(e)
	return s, err
}

func (d *crowded) Commit(entries []Entry) error {
	for _, e := range entries {
		d.largest = max(d.largest, len(e.Append(nil)))
	}
	return nil
}
