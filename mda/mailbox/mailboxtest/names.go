package mailboxtest

import (
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// nameCases are about the tree of mailboxes.
var nameCases = []testCase{
	{
		name: "Inbox",
		rule: "INBOX is always there, in any case, and cannot be created or deleted",
		run: func(f *fixture) {
			f.wantNames("INBOX")
			a, b := f.info(f.open("inbox")), f.info(f.open("InBoX"))
			if a != b || a.Name != "INBOX" {
				f.Errorf("%+v and %+v", a, b)
			}
			f.want(f.acct.Create(f.ctx(), "Inbox", mailbox.CreateOptions{}), mailbox.ErrExists)
			f.want(f.acct.Delete(f.ctx(), "inbox"), mailbox.ErrInbox)
			f.create("inbox/sub")
			f.wantNames("INBOX", "INBOX/sub")
			f.must(f.acct.Delete(f.ctx(), "INBOX/sub"))
		},
	},
	{
		name: "Create",
		rule: "Create makes a mailbox and those above it that are missing; ErrExists if there is one",
		run: func(f *fixture) {
			f.create("a/b/c", "b")
			f.wantNames("INBOX", "a", "a/b", "a/b/c", "b")
			f.want(f.acct.Create(f.ctx(), "a/b", mailbox.CreateOptions{}), mailbox.ErrExists)
			i := f.info(f.open("a/b/c"))
			if i.UIDValidity == 0 || i.UIDNext < 1 || i.ModSeq < 1 || i.Messages != 0 || i.ID == "" {
				f.Errorf("new mailbox: %+v", i)
			}
			f.create("B") // another name
			f.wantNames("INBOX", "B", "a", "a/b", "a/b/c", "b")
		},
	},
	{
		name: "SpecialUse",
		rule: "a special use is kept with its mailbox, and each is given to one mailbox only",
		run: func(f *fixture) {
			f.must(f.acct.Create(f.ctx(), "Spam", mailbox.CreateOptions{SpecialUse: `\junk`}))
			f.want(f.acct.Create(f.ctx(), "Spam2", mailbox.CreateOptions{SpecialUse: mailbox.UseJunk}), mailbox.ErrExists)
			f.want(f.acct.Create(f.ctx(), "All", mailbox.CreateOptions{SpecialUse: mailbox.UseAll}), mailbox.ErrBadName)
			f.must(f.acct.Rename(f.ctx(), "Spam", "Bulk"))
			if u := f.info(f.open("Bulk")).SpecialUse; u != mailbox.UseJunk {
				f.Errorf("special use %q", u)
			}
			f.must(f.acct.Delete(f.ctx(), "Bulk"))
			f.must(f.acct.Create(f.ctx(), "Junk", mailbox.CreateOptions{SpecialUse: mailbox.UseJunk}))
		},
	},
	{
		name: "Delete",
		rule: "Delete removes a mailbox with its messages; mailboxes below it stay; old handles say ErrNoMailbox, even if there is a new mailbox of that name",
		run: func(f *fixture) {
			f.create("a/b")
			m := f.open("a")
			f.fill(m, 2)
			was := f.info(m)
			f.must(f.acct.Delete(f.ctx(), "a"))
			f.wantNames("INBOX", "a/b")
			_, err := f.acct.Open(f.ctx(), "a")
			f.want(err, mailbox.ErrNoMailbox)
			f.want(f.acct.Delete(f.ctx(), "a"), mailbox.ErrNoMailbox)
			f.create("a")
			_, err = m.Info(f.ctx())
			f.want(err, mailbox.ErrNoMailbox)
			_, err = m.Append(f.ctx(), mailspine.StringContent("x"), mailbox.AppendOptions{})
			f.want(err, mailbox.ErrNoMailbox)
			is := f.info(f.open("a"))
			if is.UIDValidity <= was.UIDValidity || is.ID == was.ID || is.Messages != 0 {
				f.Errorf("the new mailbox is %+v, the deleted one was %+v", is, was)
			}
			q, err := f.acct.Quota(f.ctx())
			if err != nil || q.Messages != 0 || q.Bytes != 0 {
				f.Errorf("quota counts %+v (%v)", q, err)
			}
		},
	},
	{
		name: "RecreateAfterReopen", reopen: true,
		rule: "a mailbox that is created with the name of a deleted one gets a new UIDValidity",
		run: func(f *fixture) {
			last := uint32(0)
			for range 5 {
				f.create("a")
				m := f.open("a")
				f.fill(m, 1)
				if v := f.info(m).UIDValidity; v <= last {
					f.Errorf("UIDValidity %d after %d", v, last)
				} else {
					last = v
				}
				f.must(f.acct.Delete(f.ctx(), "a"))
				f.reopen()
				f.wantNames("INBOX")
			}
		},
	},
	{
		name: "Rename",
		rule: "Rename gives a mailbox and all those below it new names in one step; their UIDs and UIDValidity stay, and handles follow",
		run: func(f *fixture) {
			f.create("a/b/c", "ab")
			m, deep := f.open("a"), f.open("a/b/c")
			f.fill(m, 2)
			uids := f.fill(deep, 3)
			was := f.snapshot(deep)
			f.must(f.acct.Rename(f.ctx(), "a", "x/y"))
			f.wantNames("INBOX", "ab", "x", "x/y", "x/y/b", "x/y/b/c")
			was.Info.Name = "x/y/b/c"
			f.sameSnapshot(was, f.snapshot(deep))
			f.sameSnapshot(was, f.snapshot(f.open("x/y/b/c")))
			for i, u := range uids {
				if f.body(deep, u) != text(i+1) {
					f.Errorf("body of %d is another", u)
				}
			}
			if next := f.fill(deep, 1)[0]; next <= uids[2] {
				f.Errorf("UID %d after the rename", next)
			}
			f.create("a/b/c") // the old names are free
			if n := f.info(f.open("a/b/c")).Messages; n != 0 {
				f.Errorf("the new a/b/c has %d messages", n)
			}
		},
	},
	{
		name: "RenameReopen", reopen: true,
		rule: "a rename is durable before it returns nil",
		run: func(f *fixture) {
			f.create("a/b")
			uids := f.fill(f.open("a/b"), 2)
			f.must(f.acct.Rename(f.ctx(), "a", "Z"))
			f.create("a")
			f.fill(f.open("a"), 1)
			f.must(f.acct.Rename(f.ctx(), "a", "b"))
			f.reopen()
			f.wantNames("INBOX", "Z", "Z/b", "b")
			m := f.open("Z/b")
			f.same("UIDs", f.uids(m), uids)
			if f.body(m, uids[1]) != text(2) || f.body(f.open("b"), 1) != text(1) {
				f.Error("bodies are in the wrong place")
			}
		},
	},
	{
		name: "RenameErrors",
		rule: "Rename: ErrExists if one of the new names is taken, ErrBadName if the new name is below the old one, ErrNoMailbox if there is none; nothing changes",
		run: func(f *fixture) {
			f.create("a/b", "c/b")
			f.must(f.acct.Delete(f.ctx(), "c"))
			f.want(f.acct.Rename(f.ctx(), "a", "c"), mailbox.ErrExists) // because of c/b
			f.want(f.acct.Rename(f.ctx(), "a", "a"), mailbox.ErrExists)
			f.want(f.acct.Rename(f.ctx(), "a", "inbox"), mailbox.ErrExists)
			f.want(f.acct.Rename(f.ctx(), "a", "a/x"), mailbox.ErrBadName)
			f.want(f.acct.Rename(f.ctx(), "nowhere", "x"), mailbox.ErrNoMailbox)
			f.want(f.acct.Rename(f.ctx(), "a", strings.Repeat("x", mailbox.MaxName-1)), mailbox.ErrBadName) // because of a/b
			f.wantNames("INBOX", "a", "a/b", "c/b")
		},
	},
	{
		name: "RenameInbox",
		rule: "to rename INBOX is to move its messages into a new mailbox: INBOX stays, empty, and what is below it stays where it is",
		run: func(f *fixture) {
			f.create("INBOX/sub")
			m := f.open("INBOX")
			uids := f.fill(m, 3, mailbox.Seen)
			was := f.info(m)
			f.must(f.acct.Rename(f.ctx(), "inbox", "Old/2025"))
			f.wantNames("INBOX", "INBOX/sub", "Old", "Old/2025")
			is := f.info(m)
			if is.Messages != 0 || is.UIDValidity != was.UIDValidity || is.UIDNext < was.UIDNext {
				f.Errorf("INBOX is %+v, was %+v", is, was)
			}
			o := f.open("Old/2025")
			moved := f.snapshot(o).Messages
			if len(moved) != len(uids) {
				f.Fatalf("%d messages moved, want %d", len(moved), len(uids))
			}
			for i, x := range moved {
				if f.body(o, x.UID) != text(i+1) || !mailbox.HasFlag(x.Flags, mailbox.Seen) {
					f.Errorf("message %+v is not number %d", x, i+1)
				}
			}
			f.want(f.acct.Rename(f.ctx(), "INBOX", "Old"), mailbox.ErrExists)
			f.must(f.acct.Rename(f.ctx(), "INBOX", "Empty"))
			f.wantNames("INBOX", "Empty", "INBOX/sub", "Old", "Old/2025")
		},
	},
	{
		name: "Subscriptions",
		rule: "names can be subscribed to without there being a mailbox, and subscriptions stay when it is deleted",
		run: func(f *fixture) {
			f.create("a", "b")
			for _, n := range []string{"a", "nowhere", "inbox"} {
				f.must(f.acct.SetSubscribed(f.ctx(), n, true))
				f.must(f.acct.SetSubscribed(f.ctx(), n, true))
			}
			f.must(f.acct.SetSubscribed(f.ctx(), "b", false))
			f.must(f.acct.Delete(f.ctx(), "a"))
			got := map[string]mailbox.Info{}
			for _, i := range f.listing() {
				got[i.Name] = i
			}
			if !got["a"].NonExistent || !got["a"].Subscribed || !got["nowhere"].NonExistent || got["b"].Subscribed || !got["INBOX"].Subscribed || got["INBOX"].NonExistent {
				f.Errorf("list is %+v", got)
			}
			f.create("a")
			f.must(f.acct.SetSubscribed(f.ctx(), "nowhere", false))
			list := f.listing()
			if len(list) != 3 || list[0].Name != "INBOX" || list[1].Name != "a" || !list[1].Subscribed || list[1].NonExistent {
				f.Errorf("list is %+v", list)
			}
		},
	},
	{
		name: "BadNames",
		rule: "a name that CleanName does not take is ErrBadName in every method, and nothing changes",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uid := f.fill(m, 1)
			for _, bad := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../x", "a/../b", "a/.", "a\x00b", "a\nb", "a\x7f", "\xff", "a*", "%", " a", "a ",
				strings.Repeat("x", mailbox.MaxName+1), strings.Repeat("a/", mailbox.MaxDepth) + "a"} {
				f.want(f.acct.Create(f.ctx(), bad, mailbox.CreateOptions{}), mailbox.ErrBadName)
				f.want(f.acct.Delete(f.ctx(), bad), mailbox.ErrBadName)
				f.want(f.acct.Rename(f.ctx(), "INBOX", bad), mailbox.ErrBadName)
				f.want(f.acct.Rename(f.ctx(), bad, "x"), mailbox.ErrBadName)
				f.want(f.acct.SetSubscribed(f.ctx(), bad, true), mailbox.ErrBadName)
				_, err := f.acct.Open(f.ctx(), bad)
				f.want(err, mailbox.ErrBadName)
				_, err = f.acct.Deliver(f.ctx(), mailspine.StringContent("x"), mailbox.DeliverOptions{Mailboxes: []string{bad}, Create: true})
				f.want(err, mailbox.ErrBadName)
				_, err = m.CopyTo(f.ctx(), uid, bad)
				f.want(err, mailbox.ErrBadName)
			}
			f.wantNames("INBOX")
		},
	},
	{
		name: "StrangeNames",
		rule: "no name can lead out of its place or collide with another one",
		run: func(f *fixture) {
			names := []string{
				"a", "A", "aA", "Aa", "a.b", "a/b", "a=b", "a^b", "^a", "=41", "=61", ".hidden", "...", "cur", "new", "tmp", "con", "NUL", "x.", "a\\b",
				"~", "$HOME", "-rf", "caf\u00e9", "日本語", "Entwürfe", "ÉTÉ", "été", "a:2,S", "a\u202eb", "mailspine.log", "lock",
				strings.Repeat("x", 300), strings.Repeat("x", 301), strings.Repeat("日", 300), strings.Repeat("日", 299) + "本", strings.Repeat("y/", 31) + "z",
			}
			for i, n := range names {
				if err := f.acct.Create(f.ctx(), n, mailbox.CreateOptions{}); err != nil {
					f.Errorf("create %q: %v", n, err)
					continue
				}
				if _, err := f.open(n).Append(f.ctx(), mailspine.StringContent(text(i)), mailbox.AppendOptions{}); err != nil {
					f.Errorf("append to %q: %v", n, err)
				}
			}
			check := func() {
				f.Helper()
				for i, n := range names {
					m := f.open(n)
					if s := f.snapshot(m); len(s.Messages) != 1 || s.Info.Name != n || f.body(m, s.Messages[0].UID) != text(i) {
						f.Errorf("%q has %+v", n, s)
					}
				}
				all := f.names()
				for _, n := range names {
					if !slices.Contains(all, n) {
						f.Errorf("%q is not listed", n)
					}
				}
			}
			check()
			if f.h.Reopen != nil {
				f.reopen()
				check()
			}
			for _, n := range names {
				f.must(f.acct.Delete(f.ctx(), n))
			}
			for _, n := range f.names() {
				if n != "INBOX" && !strings.HasPrefix(n, "y") && n != "a" {
					f.Errorf("%q is left", n)
				}
			}
		},
	},
	{
		name: "Normalisation",
		rule: "names are kept in Unicode's normalisation form C",
		run: func(f *fixture) {
			f.create("cafe\u0301")
			f.wantNames("INBOX", "caf\u00e9")
			f.want(f.acct.Create(f.ctx(), "caf\u00e9", mailbox.CreateOptions{}), mailbox.ErrExists)
			if i := f.info(f.open("cafe\u0301")); i.Name != "caf\u00e9" {
				f.Errorf("name %q", i.Name)
			}
		},
	},
}
