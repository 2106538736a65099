package mailboxtest

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

func contextCancelled(f *fixture) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(f.ctx())
	cancel()
	return ctx, cancel
}

func (f *fixture) listing() []mailbox.Info {
	f.Helper()
	list, err := f.acct.Mailboxes(f.ctx())
	f.must(err)
	return list
}

func (f *fixture) sameSnapshot(was, is mailbox.Snapshot) {
	f.Helper()
	if was.Info != is.Info {
		f.Errorf("mailbox is %+v, was %+v", is.Info, was.Info)
	}
	eq := func(a, b mailbox.MessageInfo) bool {
		return a.UID == b.UID && a.ModSeq == b.ModSeq && slices.Equal(a.Flags, b.Flags) && a.InternalDate.Equal(b.InternalDate) && a.Size == b.Size && a.EmailID == b.EmailID
	}
	if !slices.EqualFunc(was.Messages, is.Messages, eq) {
		f.Errorf("messages are\n%+v, were\n%+v", is.Messages, was.Messages)
	}
}

// changeCases are about flags, expunging, and being told of it.
var changeCases = []testCase{
	{
		name: "Flags",
		rule: "SetFlags adds, removes and replaces; messages whose flags are already as wanted keep their ModSeq; the changed ones get the same new one",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 3)
			f.flag(m, mailbox.AddFlags, mailbox.Seen, uids[0])
			before := f.message(m, uids[0])
			r := f.flag(m, mailbox.AddFlags, mailbox.Seen, uids[2], uids[1], uids[0], uids[1])
			f.same("changed", uidsOf(r.Changed), uids[1:])
			for _, x := range r.Changed {
				if x.ModSeq != r.ModSeq || x.ModSeq <= before.ModSeq || !slices.Equal(x.Flags, []mailbox.Flag{mailbox.Seen}) {
					f.Errorf("changed to %+v, mailbox at %d", x, r.ModSeq)
				}
			}
			if x := f.message(m, uids[0]); x.ModSeq != before.ModSeq {
				f.Errorf("a message that did not change has ModSeq %d, had %d", x.ModSeq, before.ModSeq)
			}
			replace := func(flags ...mailbox.Flag) []mailbox.Flag {
				_, err := m.SetFlags(f.ctx(), uids[:1], mailbox.FlagChange{Op: mailbox.ReplaceFlags, Flags: flags})
				f.must(err)
				return f.message(m, uids[0]).Flags
			}
			if got := replace("x", mailbox.Draft); !slices.Equal(got, []mailbox.Flag{mailbox.Draft, "x"}) {
				f.Errorf("replaced with %q", got)
			}
			f.flag(m, mailbox.RemoveFlags, "X", uids[0])
			if got := f.message(m, uids[0]).Flags; !slices.Equal(got, []mailbox.Flag{mailbox.Draft}) {
				f.Errorf("after removal %q", got)
			}
			if got := replace(); len(got) != 0 {
				f.Errorf("replaced with nothing: %q", got)
			}
			if got := f.info(m).Unseen; got != 1 {
				f.Errorf("%d unseen, want 1", got)
			}
		},
	},
	{
		name: "BadFlags",
		rule: "flags that cannot be stored are ErrBadFlag, and nothing changes",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 1)
			before := f.info(m)
			for _, bad := range []mailbox.Flag{"", `\Recent`, `\*`, `\`, "a b", "a\x00", "a\r\n", "a(", `a\b`, "é", mailbox.Flag(strings.Repeat("x", 2000))} {
				_, err := m.SetFlags(f.ctx(), uids, mailbox.FlagChange{Flags: []mailbox.Flag{bad}})
				f.want(err, mailbox.ErrBadFlag)
				_, err = m.Append(f.ctx(), mailspine.StringContent("x"), mailbox.AppendOptions{Flags: []mailbox.Flag{bad}})
				f.want(err, mailbox.ErrBadFlag)
			}
			var many []mailbox.Flag
			for i := range mailbox.MaxKeywords + 1 {
				many = append(many, mailbox.Flag("k"+strings.Repeat("x", i)))
			}
			_, err := m.SetFlags(f.ctx(), uids, mailbox.FlagChange{Flags: many})
			f.want(err, mailbox.ErrBadFlag)
			_, err = m.SetFlags(f.ctx(), uids, mailbox.FlagChange{Op: 77})
			f.want(err, mailbox.ErrBadFlag)
			if f.info(m) != before {
				f.Error("the mailbox changed")
			}
		},
	},
	{
		name: "UnchangedSince",
		rule: "UnchangedSince leaves alone each message whose ModSeq is larger, and tells which",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 3)
			since := f.info(m).ModSeq
			f.flag(m, mailbox.AddFlags, mailbox.Seen, uids[1])
			r, err := m.SetFlags(f.ctx(), uids, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Deleted}, UnchangedSince: &since})
			f.must(err)
			f.same("conflicts", r.Conflicts, uids[1:2])
			f.same("changed", uidsOf(r.Changed), []mailbox.UID{uids[0], uids[2]})
			if mailbox.HasFlag(f.message(m, uids[1]).Flags, mailbox.Deleted) {
				f.Error("the conflicting message was changed")
			}
			zero := mailbox.ModSeq(0)
			r, err = m.SetFlags(f.ctx(), uids, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Draft}, UnchangedSince: &zero})
			f.must(err)
			f.same("conflicts with 0", r.Conflicts, uids)
		},
	},
	{
		name: "UnchangedSinceRace",
		rule: "of several changes conditional on the same ModSeq one wins",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 1)
			since := f.info(m).ModSeq
			var wg sync.WaitGroup
			won := make([]int, 8)
			for i := range won {
				wg.Go(func() {
					r, err := m.SetFlags(f.ctx(), uids, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Flag("w" + string(rune('a'+i)))}, UnchangedSince: &since})
					if err != nil {
						f.Error(err)
					}
					won[i] = len(r.Changed)
				})
			}
			wg.Wait()
			n := 0
			for _, w := range won {
				n += w
			}
			if n != 1 || len(f.message(m, uids[0]).Flags) != 1 {
				f.Errorf("%d of 8 won, flags %q", n, f.message(m, uids[0]).Flags)
			}
		},
	},
	{
		name: "ModSeqGrows",
		rule: "the ModSeq of a mailbox grows with each of its changes, and with no others",
		run: func(f *fixture) {
			f.create("Other")
			m := f.open("INBOX")
			last := f.info(m).ModSeq
			if last < 1 {
				f.Errorf("an empty mailbox has ModSeq %d", last)
			}
			step := func(what string, grows bool, do func()) {
				f.Helper()
				do()
				now := f.info(m).ModSeq
				if now < last || (now > last) != grows {
					f.Errorf("%s: ModSeq was %d and is %d", what, last, now)
				}
				last = now
			}
			var uids []mailbox.UID
			step("append", true, func() { uids = f.fill(m, 3) })
			step("flag", true, func() { f.flag(m, mailbox.AddFlags, mailbox.Seen, uids...) })
			step("no change", false, func() { f.flag(m, mailbox.AddFlags, mailbox.Seen, uids...) })
			step("copy away", false, func() { _, err := m.CopyTo(f.ctx(), uids, "Other"); f.must(err) })
			step("change of another mailbox", false, func() { f.fill(f.open("Other"), 1) })
			step("expunge", true, func() { f.expunge(m, uids[0]) })
			step("expunge of nothing", false, func() { _, err := m.Expunge(f.ctx(), nil, mailbox.ExpungeOptions{All: true}); f.must(err) })
			step("move away", true, func() { _, err := m.MoveTo(f.ctx(), uids[1:2], "Other"); f.must(err) })
			if info := f.snapshot(m); info.Info.ModSeq < info.Messages[0].ModSeq {
				f.Error("a message has a larger ModSeq than its mailbox")
			}
		},
	},
	{
		name: "ModSeqAfterReopen", reopen: true,
		rule: "a ModSeq is on disk before anybody is told of it",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 2)
			r := f.flag(m, mailbox.AddFlags, mailbox.Seen, uids[0])
			f.expunge(m, uids[1])
			last := f.info(m).ModSeq
			f.reopen()
			m = f.open("INBOX")
			if now := f.info(m).ModSeq; now < last {
				f.Errorf("ModSeq was %d and is %d", last, now)
			}
			if r2 := f.flag(m, mailbox.AddFlags, mailbox.Flagged, uids[0]); r2.ModSeq <= last || r2.ModSeq <= r.ModSeq {
				f.Errorf("new ModSeq %d after %d", r2.ModSeq, last)
			}
		},
	},
	{
		name: "Expunge",
		rule: `Expunge removes those of the messages that have the flag \Deleted`,
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 6)
			f.flag(m, mailbox.AddFlags, mailbox.Deleted, uids[1], uids[3], uids[5])
			exp := func(opts mailbox.ExpungeOptions, in, want []mailbox.UID) {
				f.Helper()
				gone, err := m.Expunge(f.ctx(), in, opts)
				f.must(err)
				f.same("expunged", gone, want)
			}
			exp(mailbox.ExpungeOptions{}, nil, nil)
			exp(mailbox.ExpungeOptions{}, uids[:3], uids[1:2])
			exp(mailbox.ExpungeOptions{Any: true}, []mailbox.UID{uids[2], uids[0]}, []mailbox.UID{uids[0], uids[2]})
			exp(mailbox.ExpungeOptions{All: true}, nil, []mailbox.UID{uids[3], uids[5]})
			f.same("left", f.uids(m), uids[4:5])
			exp(mailbox.ExpungeOptions{All: true, Any: true}, nil, uids[4:5])
			if i := f.info(m); i.Messages != 0 || i.Size != 0 || i.Unseen != 0 || i.Deleted != 0 {
				f.Errorf("empty mailbox is %+v", i)
			}
		},
	},
	{
		name: "Changes",
		rule: "Changes returns what is new, changed or gone since a ModSeq, and a copy of the mailbox kept up with it is the mailbox",
		run: func(f *fixture) {
			f.create("Other")
			m := f.open("INBOX")
			view := map[mailbox.UID]mailbox.MessageInfo{}
			var at mailbox.ModSeq
			sync := func() mailbox.ChangeSet {
				f.Helper()
				c := f.changes(m, at)
				for _, x := range c.Changed {
					view[x.UID] = x
				}
				for _, u := range c.Expunged {
					delete(view, u)
				}
				at = c.Info.ModSeq
				s := f.snapshot(m)
				if len(view) != len(s.Messages) {
					f.Errorf("the copy has %d messages, the mailbox %d", len(view), len(s.Messages))
				}
				for _, x := range s.Messages {
					if y := view[x.UID]; y.ModSeq != x.ModSeq || !slices.Equal(y.Flags, x.Flags) {
						f.Errorf("the copy has %+v, the mailbox %+v", y, x)
					}
				}
				return c
			}
			uids := f.fill(m, 4)
			sync()
			f.flag(m, mailbox.AddFlags, mailbox.Seen, uids[1])
			f.expunge(m, uids[2])
			f.fill(m, 1)
			c := sync()
			f.same("expunged", c.Expunged, uids[2:3])
			if len(c.Changed) != 2 || c.Changed[0].UID != uids[1] {
				f.Errorf("changed %+v", c.Changed)
			}
			_, err := m.MoveTo(f.ctx(), uids[:2], "Other")
			f.must(err)
			sync()
			if c := sync(); len(c.Changed)+len(c.Expunged) != 0 {
				f.Errorf("changes since now: %+v", c)
			}
			if c := f.changes(m, at+100); len(c.Changed)+len(c.Expunged) != 0 || c.Info.ModSeq != at {
				f.Errorf("changes since the future: %+v", c)
			}
		},
	},
	{
		name: "TombstonesAreBounded", config: Config{MaxTombs: 10},
		rule: "changes that are no longer known are ErrModSeqTooOld, and never a wrong answer",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 40)
			start := f.info(m).ModSeq
			for _, u := range uids[:30] {
				f.expunge(m, u)
			}
			_, err := m.Changes(f.ctx(), start)
			f.want(err, mailbox.ErrModSeqTooOld)
			_, err = m.Changes(f.ctx(), 0)
			f.want(err, mailbox.ErrModSeqTooOld)
			now := f.info(m).ModSeq
			known := 0
			for since := start; since <= now; since++ {
				c, err := m.Changes(f.ctx(), since)
				if err != nil {
					f.want(err, mailbox.ErrModSeqTooOld)
					if known > 0 {
						f.Errorf("changes since %d are known, and those since %d are not", since-1, since)
					}
					continue
				}
				known++
				if want := uids[since-start : 30]; !slices.Equal(c.Expunged, want) {
					f.Errorf("since %d: expunged %v, want %v", since, c.Expunged, want)
				}
			}
			if known < 2 || known > 12 {
				f.Errorf("changes since %d ModSeqs are known, with 10 tombstones", known)
			}
		},
	},
	{
		name: "TombstonesAfterReopen", config: Config{MaxTombs: 10}, reopen: true,
		rule: "tombstones survive, and what was forgotten stays forgotten",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 30)
			start := f.info(m).ModSeq
			for _, u := range uids[:20] {
				f.expunge(m, u)
			}
			f.reopen()
			m = f.open("INBOX")
			_, err := m.Changes(f.ctx(), start)
			f.want(err, mailbox.ErrModSeqTooOld)
			since := f.info(m).ModSeq - 5
			f.same("expunged", f.changes(m, since).Expunged, uids[15:20])
		},
	},
	{
		name: "WatchCoalesces",
		rule: "for each mailbox there is at most one event waiting, with the ModSeq it has by now",
		run: func(f *fixture) {
			f.create("Other")
			w := f.watch()
			f.quiet(w)
			m, o := f.open("INBOX"), f.open("Other")
			uids := f.fill(m, 50)
			f.flag(m, mailbox.AddFlags, mailbox.Seen, uids...)
			f.fill(o, 1)
			got := map[string]mailbox.Event{}
			for range 10 {
				for _, ev := range f.next(w) {
					got[ev.ID] = ev
				}
				if len(got) >= 2 {
					break
				}
			}
			for _, b := range []mailbox.Mailbox{m, o} {
				i := f.info(b)
				if ev := got[i.ID]; ev.Mailbox != i.Name || ev.ModSeq != i.ModSeq || ev.Gone {
					f.Errorf("event %+v, mailbox %+v", ev, i)
				}
			}
			f.quiet(w)
			f.flag(m, mailbox.AddFlags, mailbox.Seen, uids...) // no change
			f.quiet(w)
		},
	},
	{
		name: "WatchNames",
		rule: "Listed is set when Account.Mailboxes looks different, Gone when the mailbox was deleted",
		run: func(f *fixture) {
			w := f.watch()
			f.create("A")
			id := f.info(f.open("A")).ID
			one := func(what string) mailbox.Event {
				f.Helper()
				for _, ev := range f.next(w) {
					if ev.ID == id || ev.ID == "" {
						return ev
					}
				}
				f.Errorf("%s: no event of it", what)
				return mailbox.Event{}
			}
			if ev := one("create"); !ev.Listed || ev.Gone {
				f.Errorf("create: %+v", ev)
			}
			f.must(f.acct.Rename(f.ctx(), "A", "B"))
			if ev := one("rename"); !ev.Listed || ev.Mailbox != "B" && ev.Mailbox != "" {
				f.Errorf("rename: %+v", ev)
			}
			f.must(f.acct.SetSubscribed(f.ctx(), "B", true))
			if ev := one("subscribe"); !ev.Listed {
				f.Errorf("subscribe: %+v", ev)
			}
			f.must(f.acct.Delete(f.ctx(), "B"))
			if ev := one("delete"); !ev.Gone && ev.ID != "" {
				f.Errorf("delete: %+v", ev)
			}
		},
	},
	{
		name: "WatchWaits",
		rule: "Next waits for changes; Close of the Watcher or of the Store ends it with ErrClosed, the context with its error",
		run: func(f *fixture) {
			w, w2, w3 := f.watch(), f.watch(), f.watch()
			res := make(chan error, 3)
			go func() { _, err := w.Next(f.ctx()); res <- err }()
			f.fill(f.open("INBOX"), 1)
			f.must(<-res)
			f.next(w2)
			go func() { _, err := w2.Next(f.ctx()); res <- err }()
			f.must(w2.Close())
			f.must(w2.Close())
			f.want(<-res, mailbox.ErrClosed)
			f.next(w3)
			go func() { _, err := w3.Next(f.ctx()); res <- err }()
			f.must(f.store.Close())
			f.want(<-res, mailbox.ErrClosed)
			_, err := w3.Next(f.ctx())
			f.want(err, mailbox.ErrClosed)
		},
	},
	{
		name: "Maildrop",
		rule: "LockMaildrop excludes other LockMaildrop calls and nothing else, until release is called",
		run: func(f *fixture) {
			f.create("Other")
			m, again := f.open("INBOX"), f.open("inbox")
			release, err := m.LockMaildrop(f.ctx())
			f.must(err)
			_, err = again.LockMaildrop(f.ctx())
			f.want(err, mailbox.ErrInUse)
			f.fill(again, 1)
			other, err := f.open("Other").LockMaildrop(f.ctx())
			f.must(err)
			other()
			release()
			release2, err := again.LockMaildrop(f.ctx())
			f.must(err)
			release()
			_, err = m.LockMaildrop(f.ctx())
			f.want(err, mailbox.ErrInUse)
			release2()
			// Exclusive also when many ask at once.
			var wg sync.WaitGroup
			var mu sync.Mutex
			won := 0
			for range 16 {
				wg.Go(func() {
					if _, err := m.LockMaildrop(f.ctx()); err == nil {
						mu.Lock()
						won++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			if won != 1 {
				f.Errorf("%d of 16 have the lock", won)
			}
		},
	},
}
