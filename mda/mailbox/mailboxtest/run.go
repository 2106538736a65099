package mailboxtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A Harness opens stores for the kit.
type Harness struct {
	// Open returns a new store with nothing in it. The kit closes it.
	Open func(t *testing.T, c Config) mailbox.Store
	// Reopen closes a store and opens one on the same data. nil: the store
	// forgets when it is closed, and the cases about that are skipped.
	Reopen func(t *testing.T, s mailbox.Store, c Config) mailbox.Store
}

// A Config is what a case wants of a store. A zero field means the driver's default.
type Config struct {
	MaxTombs   int   // UIDs of expunged messages that a mailbox remembers
	MaxMessage int64 // octets of a message
}

// Run runs all cases, each against a store of its own.
func Run(t *testing.T, h Harness) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("the contract says: %s", c.rule)
				}
			}()
			if c.reopen && h.Reopen == nil {
				t.Skip("the store forgets when it is closed")
			}
			f := &fixture{T: t, h: h, config: c.config}
			f.store = h.Open(t, c.config)
			t.Cleanup(func() { f.store.Close() })
			f.acct = f.account("ann@example.org")
			c.run(f)
		})
	}
}

func cases() []testCase {
	return slices.Concat(messageCases, changeCases, nameCases, accountCases)
}

// A Rule is what one case enforces.
type Rule struct {
	Name     string // of the subtest
	Sentence string // of the contract of package mailbox
}

// Rules lists the rules that Run enforces, in order; the model aside.
func Rules() []Rule {
	var rules []Rule
	for _, c := range cases() {
		rules = append(rules, Rule{c.name, c.rule})
	}
	return rules
}

// A testCase is one sentence of the contract and how it is checked.
type testCase struct {
	name, rule string
	config     Config
	reopen     bool // needs Harness.Reopen
	run        func(f *fixture)
}

// A fixture has a store with one account.
type fixture struct {
	*testing.T
	h      Harness
	config Config
	store  mailbox.Store
	acct   mailbox.Account
}

func (f *fixture) ctx() context.Context { return f.Context() }

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatalf("unexpected error: %v", err)
	}
}

func (f *fixture) want(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Errorf("error is %v, want %v", err, want)
	}
}

func (f *fixture) account(user string) mailbox.Account {
	f.Helper()
	a, err := f.store.Account(f.ctx(), user)
	f.must(err)
	return a
}

func (f *fixture) open(name string) mailbox.Mailbox {
	f.Helper()
	m, err := f.acct.Open(f.ctx(), name)
	f.must(err)
	return m
}

func (f *fixture) create(names ...string) {
	f.Helper()
	for _, n := range names {
		f.must(f.acct.Create(f.ctx(), n, mailbox.CreateOptions{}))
	}
}

// reopen closes the store and opens it again.
func (f *fixture) reopen() {
	f.Helper()
	f.store = f.h.Reopen(f.T, f.store, f.config)
	f.acct = f.account("ann@example.org")
}

func text(i int) string {
	return fmt.Sprintf("From: joe@example.org\r\nSubject: message %d\r\n\r\nThis is number %d.\r\n", i, i)
}

// fill appends messages 1 to n and returns their UIDs.
func (f *fixture) fill(m mailbox.Mailbox, n int, flags ...mailbox.Flag) []mailbox.UID {
	f.Helper()
	var uids []mailbox.UID
	for i := range n {
		c, err := m.Append(f.ctx(), mailspine.StringContent(text(i+1)), mailbox.AppendOptions{Flags: flags})
		f.must(err)
		uids = append(uids, c.UID)
	}
	return uids
}

func (f *fixture) body(m mailbox.Mailbox, uid mailbox.UID) string {
	f.Helper()
	b, err := m.Body(f.ctx(), uid)
	f.must(err)
	defer b.Close()
	return f.readAll(b)
}

func (f *fixture) readAll(b mailbox.Body) string {
	f.Helper()
	data, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	f.must(err)
	if int64(len(data)) != b.Size() {
		f.Errorf("body has %d octets and says %d", len(data), b.Size())
	}
	return string(data)
}

func (f *fixture) info(m mailbox.Mailbox) mailbox.Info {
	f.Helper()
	i, err := m.Info(f.ctx())
	f.must(err)
	return i
}

func (f *fixture) snapshot(m mailbox.Mailbox) mailbox.Snapshot {
	f.Helper()
	s, err := m.Snapshot(f.ctx())
	f.must(err)
	return s
}

func (f *fixture) uids(m mailbox.Mailbox) []mailbox.UID {
	f.Helper()
	return uidsOf(f.snapshot(m).Messages)
}

func uidsOf(msgs []mailbox.MessageInfo) []mailbox.UID {
	var uids []mailbox.UID
	for _, m := range msgs {
		uids = append(uids, m.UID)
	}
	return uids
}

func (f *fixture) message(m mailbox.Mailbox, uid mailbox.UID) mailbox.MessageInfo {
	f.Helper()
	for _, x := range f.snapshot(m).Messages {
		if x.UID == uid {
			return x
		}
	}
	f.Fatalf("no message %d", uid)
	return mailbox.MessageInfo{}
}

func (f *fixture) flag(m mailbox.Mailbox, op mailbox.FlagOp, flag mailbox.Flag, uids ...mailbox.UID) mailbox.FlagResult {
	f.Helper()
	r, err := m.SetFlags(f.ctx(), uids, mailbox.FlagChange{Op: op, Flags: []mailbox.Flag{flag}})
	f.must(err)
	return r
}

func (f *fixture) expunge(m mailbox.Mailbox, uids ...mailbox.UID) {
	f.Helper()
	gone, err := m.Expunge(f.ctx(), uids, mailbox.ExpungeOptions{Any: true})
	f.must(err)
	f.same("expunged UIDs", gone, uids)
}

func (f *fixture) changes(m mailbox.Mailbox, since mailbox.ModSeq) mailbox.ChangeSet {
	f.Helper()
	c, err := m.Changes(f.ctx(), since)
	f.must(err)
	return c
}

func (f *fixture) same(what string, got, want []mailbox.UID) {
	f.Helper()
	if !slices.Equal(got, want) {
		f.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// names returns the names of the mailboxes that exist.
func (f *fixture) names() []string {
	f.Helper()
	list, err := f.acct.Mailboxes(f.ctx())
	f.must(err)
	var names []string
	for _, i := range list {
		if !i.NonExistent {
			names = append(names, i.Name)
		}
	}
	return names
}

func (f *fixture) wantNames(want ...string) {
	f.Helper()
	if got := f.names(); !slices.Equal(got, want) {
		f.Errorf("mailboxes are %q, want %q", got, want)
	}
}

func (f *fixture) watch() mailbox.Watcher {
	f.Helper()
	w, err := f.acct.Watch(f.ctx())
	f.must(err)
	f.Cleanup(func() { w.Close() })
	return w
}

// next waits for events, for as long as a test is worth.
func (f *fixture) next(w mailbox.Watcher) []mailbox.Event {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx(), 20*time.Second)
	defer cancel()
	ev, err := w.Next(ctx)
	f.must(err)
	return ev
}

// quiet checks that there are no events: those of finished changes would be there.
func (f *fixture) quiet(w mailbox.Watcher) {
	f.Helper()
	ctx, cancel := context.WithCancel(f.ctx())
	cancel()
	if ev, err := w.Next(ctx); err == nil && len(ev) > 0 {
		f.Errorf("unexpected events: %+v", ev)
	}
}

// failing is a message that breaks off.
type failing struct {
	mailspine.Content
	after int64
}

var errBroken = errors.New("the message breaks off here")

func (c failing) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := c.Content.Open(ctx)
	if err != nil {
		return nil, err
	}
	return failingReader{io.LimitReader(r, c.after), r}, nil
}

type failingReader struct {
	io.Reader
	io.Closer
}

func (r failingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == io.EOF {
		err = errBroken
	}
	return n, err
}
