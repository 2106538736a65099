package maildir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A contents is what there is in an account: for each mailbox the messages, by number, with the
// letters of their flags.
type contents map[string]map[int]string

func (c contents) clone() contents {
	out := contents{}
	for n, b := range c {
		out[n] = maps.Clone(b)
	}
	return out
}

func (c contents) String() string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "%s%v ", n, c[n])
	}
	return b.String()
}

// A step is one change, on a store and on contents. A step that is interrupted has happened
// or not, or is at one of the states between.
type step struct {
	name    string
	do      func(ctx context.Context, a mailbox.Account) error
	then    func(c contents)
	between []func(c contents)
	again   bool // doing it again leads to the state after it, whatever happened before
}

func scriptText(n int) string {
	return fmt.Sprintf("Subject: %d\r\n\r\n%s", n, strings.Repeat("0123456789abcdef\r\n", 40*n))
}

// script is a day in the life of an account, without keywords, which are lost where a log
// is.
func script() []step {
	deliver := func(n int, flags []mailbox.Flag, boxes ...string) step {
		slices.Sort(flags)
		put := func(boxes ...string) func(c contents) {
			return func(c contents) {
				for _, b := range boxes {
					if c[b] == nil {
						c[b] = map[int]string{}
					}
					c[b][n] = info(flags)
				}
			}
		}
		s := step{name: fmt.Sprintf("deliver %d to %v", n, boxes), again: true, then: put(boxes...), do: func(ctx context.Context, a mailbox.Account) error {
			_, err := a.Deliver(ctx, mailspine.StringContent(scriptText(n)), mailbox.DeliverOptions{Mailboxes: boxes, Flags: flags, Create: true, ID: fmt.Sprint("id", n)})
			return err
		}}
		if len(boxes) == 2 {
			// The mailbox is made first, and a crash may leave the message in one of them.
			made := func(c contents) {
				if c[boxes[1]] == nil {
					c[boxes[1]] = map[int]string{}
				}
			}
			s.between = []func(c contents){made, func(c contents) { made(c); put(boxes[0])(c) }, func(c contents) { made(c); put(boxes[1])(c) }}
		}
		return s
	}
	// on finds messages by number in a mailbox.
	on := func(box string, numbers []int, do func(ctx context.Context, m mailbox.Mailbox, uids []mailbox.UID) error) func(ctx context.Context, a mailbox.Account) error {
		return func(ctx context.Context, a mailbox.Account) error {
			m, err := a.Open(ctx, box)
			if err != nil {
				return err
			}
			s, err := m.Snapshot(ctx)
			if err != nil {
				return err
			}
			var uids []mailbox.UID
			for _, x := range s.Messages {
				for _, n := range numbers {
					if x.Size == int64(len(scriptText(n))) {
						uids = append(uids, x.UID)
					}
				}
			}
			return do(ctx, m, uids)
		}
	}
	flag := func(box string, n int, f mailbox.Flag) step {
		return step{name: fmt.Sprintf("flag %d in %s", n, box), again: true,
			do: on(box, []int{n}, func(ctx context.Context, m mailbox.Mailbox, uids []mailbox.UID) error {
				_, err := m.SetFlags(ctx, uids, mailbox.FlagChange{Flags: []mailbox.Flag{f}})
				return err
			}),
			then: func(c contents) { c[box][n] = info(withInfo(nil, c[box][n]+info([]mailbox.Flag{f}))) }}
	}
	create := func(name string) step {
		return step{name: "create " + name, do: func(ctx context.Context, a mailbox.Account) error {
			return a.Create(ctx, name, mailbox.CreateOptions{})
		}, then: func(c contents) {
			for _, n := range append(mailbox.Above(name), name) {
				if c[n] == nil {
					c[n] = map[int]string{}
				}
			}
		}}
	}
	return []step{
		deliver(1, nil, "INBOX"),
		deliver(2, []mailbox.Flag{mailbox.Seen}, "INBOX", "a"),
		deliver(3, nil, "INBOX"),
		flag("INBOX", 1, mailbox.Flagged),
		{name: "copy", do: on("INBOX", []int{1, 3}, func(ctx context.Context, m mailbox.Mailbox, uids []mailbox.UID) error {
			_, err := m.CopyTo(ctx, uids, "a")
			return err
		}), then: func(c contents) { c["a"][1], c["a"][3] = c["INBOX"][1], c["INBOX"][3] }},
		create("b/c"),
		{name: "move", again: true, do: on("INBOX", []int{1, 2}, func(ctx context.Context, m mailbox.Mailbox, uids []mailbox.UID) error {
			_, err := m.MoveTo(ctx, uids, "b/c")
			return err
		}), then: func(c contents) {
			for _, n := range []int{1, 2} {
				c["b/c"][n] = c["INBOX"][n]
				delete(c["INBOX"], n)
			}
		}},
		{name: "expunge", again: true, do: on("a", []int{3}, func(ctx context.Context, m mailbox.Mailbox, uids []mailbox.UID) error {
			_, err := m.Expunge(ctx, uids, mailbox.ExpungeOptions{Any: true})
			return err
		}), then: func(c contents) { delete(c["a"], 3) }},
		{name: "rename", do: func(ctx context.Context, a mailbox.Account) error { return a.Rename(ctx, "b", "x/y") }, then: func(c contents) {
			c["x"], c["x/y"], c["x/y/c"] = map[int]string{}, c["b"], c["b/c"]
			delete(c, "b")
			delete(c, "b/c")
		}},
		flag("x/y/c", 2, mailbox.Deleted),
		create("b/c"),
		deliver(4, nil, "b/c"),
		{name: "delete", do: func(ctx context.Context, a mailbox.Account) error { return a.Delete(ctx, "a") }, then: func(c contents) { delete(c, "a") }},
		create("a"),
		{name: "rename INBOX", do: func(ctx context.Context, a mailbox.Account) error { return a.Rename(ctx, "INBOX", "old") }, then: func(c contents) {
			c["old"], c["INBOX"] = c["INBOX"], map[int]string{}
		}},
		deliver(5, []mailbox.Flag{mailbox.Draft, mailbox.Answered}, "INBOX"),
	}
}

// look returns what there is in an account, and checks that each body is whole; nil if
// the power is cut meanwhile. A fault is met by looking again.
func look(t *testing.T, a mailbox.Account) (contents, map[string]mailbox.Snapshot) {
	t.Helper()
	out, snaps := contents{}, map[string]mailbox.Snapshot{}
	list, err := twice(func() ([]mailbox.Info, error) { return a.Mailboxes(t.Context()) })
	if err != nil {
		if errors.Is(err, durabletest.ErrPowerCut) {
			return nil, nil
		}
		t.Fatal(err)
	}
	for _, i := range list {
		m, err := a.Open(t.Context(), i.Name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out[i.Name], snaps[i.Name] = map[int]string{}, s
		for _, x := range s.Messages {
			raw, err := twice(func() ([]byte, error) {
				b, err := m.Body(t.Context(), x.UID)
				if err != nil {
					return nil, err
				}
				defer b.Close()
				return io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
			})
			if errors.Is(err, durabletest.ErrPowerCut) {
				return nil, nil
			}
			var n int
			fmt.Sscanf(string(raw), "Subject: %d", &n)
			if err != nil || string(raw) != scriptText(n) {
				t.Fatalf("%s: message %d is not whole: %d octets of %d, %v", i.Name, x.UID, len(raw), x.Size, err)
			}
			if _, twice := out[i.Name][n]; twice {
				t.Errorf("%s: message number %d is there twice", i.Name, n)
			}
			out[i.Name][n] = info(x.Flags)
		}
	}
	return out, snaps
}

// twice does again what fails: a fault happens once.
func twice[T any](do func() (T, error)) (T, error) {
	v, err := do()
	if err != nil && !errors.Is(err, durabletest.ErrPowerCut) {
		v, err = do()
	}
	return v, err
}

// oneOf reports whether got is a state that an interrupted step may leave.
func (s step) oneOf(got, before contents) bool {
	states := []contents{before.clone(), before.clone()}
	s.then(states[1])
	for _, f := range s.between {
		c := before.clone()
		f(c)
		states = append(states, c)
	}
	return slices.ContainsFunc(states, func(c contents) bool { return c.String() == got.String() })
}

func openAccount(t *testing.T, fsys durable.FS) (*Store, mailbox.Account, error) {
	t.Helper()
	s, err := open(fsys, "/mail", &Options{Logger: quiet()})
	if err != nil {
		return nil, nil, err
	}
	a, err := s.Account(t.Context(), "ann")
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	return s, a, nil
}

// keepsUIDs checks that whatever was told of UIDs still holds.
func keepsUIDs(t *testing.T, was, is map[string]mailbox.Snapshot) {
	t.Helper()
	byID := map[string]mailbox.Snapshot{}
	for _, s := range is {
		byID[s.Info.ID] = s
	}
	for name, w := range was {
		i, ok := byID[w.Info.ID]
		if !ok {
			continue // deleted
		}
		if i.Info.UIDValidity != w.Info.UIDValidity || i.Info.UIDNext < w.Info.UIDNext || i.Info.ModSeq < w.Info.ModSeq {
			t.Errorf("%s is %+v, was %+v", name, i.Info, w.Info)
		}
		emails := map[mailbox.UID]string{}
		for _, x := range w.Messages {
			emails[x.UID] = x.EmailID
		}
		for _, x := range i.Messages {
			if e, known := emails[x.UID]; known && e != x.EmailID || !known && x.UID < w.Info.UIDNext {
				t.Errorf("%s: UID %d stands for another message now", name, x.UID)
			}
		}
	}
}

// repeated tells the errors of doing again what was done.
func repeated(err error) bool {
	return errors.Is(err, mailbox.ErrExists) || errors.Is(err, mailbox.ErrNoMailbox)
}
