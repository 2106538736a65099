package mailboxtest

import (
	"slices"
	"strings"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

func (f *fixture) deliver(s string, opts mailbox.DeliverOptions) []mailbox.Copy {
	f.Helper()
	d, err := f.acct.Deliver(f.ctx(), mailspine.StringContent(s), opts)
	f.must(err)
	return d.Copies
}

// accountCases are about delivery, quota, users, and the store as a whole.
var accountCases = []testCase{
	{
		name: "DeliverDefault",
		rule: "the zero DeliverOptions deliver into INBOX",
		run: func(f *fixture) {
			c := f.deliver(text(1), mailbox.DeliverOptions{})
			m := f.open("INBOX")
			s := f.snapshot(m)
			if len(c) != 1 || len(s.Messages) != 1 || c[0].UID != s.Messages[0].UID || c[0].Mailbox != "INBOX" || c[0].UIDValidity != s.Info.UIDValidity || c[0].ModSeq != s.Info.ModSeq || c[0].Repeated {
				f.Errorf("delivered as %+v, mailbox is %+v", c, s)
			}
			if f.body(m, c[0].UID) != text(1) {
				f.Error("the body differs")
			}
		},
	},
	{
		name: "DeliverSeveral",
		rule: "Deliver puts a message into several mailboxes, one copy in each, however often it is named",
		run: func(f *fixture) {
			f.create("a", "b")
			c := f.deliver(text(1), mailbox.DeliverOptions{Mailboxes: []string{"b", "inbox", "a", "INBOX"}, Flags: []mailbox.Flag{mailbox.Seen}})
			if len(c) != 4 || c[1] != c[3] || c[0].Mailbox != "b" || c[2].Mailbox != "a" {
				f.Fatalf("delivered as %+v", c)
			}
			var email string
			for _, n := range []string{"INBOX", "a", "b"} {
				m := f.open(n)
				s := f.snapshot(m)
				if len(s.Messages) != 1 || f.body(m, s.Messages[0].UID) != text(1) || !mailbox.HasFlag(s.Messages[0].Flags, mailbox.Seen) {
					f.Fatalf("%s has %+v", n, s)
				}
				if email != "" && s.Messages[0].EmailID != email {
					f.Error("the copies have different EmailIDs")
				}
				email = s.Messages[0].EmailID
			}
		},
	},
	{
		name: "DeliverAllOrNothing",
		rule: "a delivery into several mailboxes is all or nothing",
		run: func(f *fixture) {
			f.create("a")
			_, err := f.acct.Deliver(f.ctx(), mailspine.StringContent("x"), mailbox.DeliverOptions{Mailboxes: []string{"a", "INBOX", "nowhere"}})
			f.want(err, mailbox.ErrNoMailbox)
			if n := f.info(f.open("a")).Messages + f.info(f.open("INBOX")).Messages; n != 0 {
				f.Errorf("%d messages of a delivery that failed", n)
			}
			many := make([]string, mailbox.MaxTargets+1)
			for i := range many {
				many[i] = "INBOX"
			}
			_, err = f.acct.Deliver(f.ctx(), mailspine.StringContent("x"), mailbox.DeliverOptions{Mailboxes: many})
			f.want(err, mailbox.ErrLimit)
		},
	},
	{
		name: "DeliverCreates",
		rule: "with Create, targets that are missing are made, with those above them",
		run: func(f *fixture) {
			c := f.deliver("x", mailbox.DeliverOptions{Mailboxes: []string{"Lists/go", "Lists", "INBOX", "Lists/c"}, Create: true})
			if len(c) != 4 {
				f.Errorf("%+v", c)
			}
			f.wantNames("INBOX", "Lists", "Lists/c", "Lists/go")
			for _, n := range f.names() {
				if f.info(f.open(n)).Messages != 1 {
					f.Errorf("%s has not got the message", n)
				}
			}
		},
	},
	{
		name: "DeliverOnce",
		rule: "a mailbox that got a message with some DeliverOptions.ID gets it no second time, but a mailbox that did not get it does",
		run: func(f *fixture) {
			f.create("a")
			first := f.deliver("x", mailbox.DeliverOptions{ID: "42"})[0]
			again := f.deliver("x", mailbox.DeliverOptions{ID: "42"})[0]
			if !again.Repeated || again.UID != first.UID || again.UIDValidity != first.UIDValidity || first.Repeated {
				f.Errorf("first %+v, again %+v", first, again)
			}
			both := f.deliver("x", mailbox.DeliverOptions{ID: "42", Mailboxes: []string{"INBOX", "a"}})
			if !both[0].Repeated || both[1].Repeated {
				f.Errorf("both: %+v", both)
			}
			f.deliver("x", mailbox.DeliverOptions{ID: "43"})
			f.deliver("x", mailbox.DeliverOptions{})
			f.deliver("x", mailbox.DeliverOptions{})
			if n := f.info(f.open("INBOX")).Messages; n != 4 {
				f.Errorf("INBOX has %d messages, want 4", n)
			}
			// Not even when the message has been removed since.
			f.expunge(f.open("INBOX"), first.UID)
			if c := f.deliver("x", mailbox.DeliverOptions{ID: "42"}); !c[0].Repeated {
				f.Error("an expunged message came back")
			}
			_, err := f.acct.Deliver(f.ctx(), mailspine.StringContent("x"), mailbox.DeliverOptions{ID: strings.Repeat("x", 1025)})
			f.want(err, mailbox.ErrLimit)
		},
	},
	{
		name: "DeliverOnceAtTheSameTime",
		rule: "of deliveries with the same ID at the same time one arrives",
		run: func(f *fixture) {
			f.create("a")
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if _, err := f.acct.Deliver(f.ctx(), mailspine.StringContent(text(1)), mailbox.DeliverOptions{ID: "one", Mailboxes: []string{"INBOX", "a"}}); err != nil {
						f.Error(err)
					}
				})
			}
			wg.Wait()
			for _, n := range []string{"INBOX", "a"} {
				m := f.open(n)
				if u := f.uids(m); len(u) != 1 || f.body(m, u[0]) != text(1) {
					f.Errorf("%s has %v", n, u)
				}
			}
		},
	},
	{
		name: "DeliverOnceAfterReopen", reopen: true,
		rule: "a repeated delivery is recognised even when the process ended in between",
		run: func(f *fixture) {
			first := f.deliver("x", mailbox.DeliverOptions{ID: "42"})[0]
			for range 2 {
				f.reopen()
				if c := f.deliver("x", mailbox.DeliverOptions{ID: "42"})[0]; !c.Repeated || c.UID != first.UID {
					f.Errorf("first %+v, again %+v", first, c)
				}
			}
		},
	},
	{
		name: "DeliverRemembersEnough",
		rule: "the last MaxDeliveries deliveries are remembered",
		run: func(f *fixture) {
			id := func(i int) string { return strings.Repeat("i", i+1) }
			const n = 200 // enough to see that it is no small number; all of them would take a real disk too long
			for i := range n {
				f.deliver("x", mailbox.DeliverOptions{ID: id(i)})
			}
			for i := range n {
				if !f.deliver("x", mailbox.DeliverOptions{ID: id(i)})[0].Repeated {
					f.Fatalf("delivery %d of %d is forgotten", i, n)
				}
			}
		},
	},
	{
		name: "Quota",
		rule: "what would pass the quota is ErrOverQuota, what could never fit ErrTooBig, and usage is exact",
		run: func(f *fixture) {
			usage := func(bytes, messages int64) {
				f.Helper()
				q, err := f.acct.Quota(f.ctx())
				f.must(err)
				if q.Bytes != bytes || q.Messages != messages {
					f.Errorf("usage is %+v, want %d octets and %d messages", q, bytes, messages)
				}
			}
			usage(0, 0)
			f.create("a")
			f.must(f.acct.SetQuota(f.ctx(), mailbox.QuotaLimit{Bytes: 100, Messages: 4}))
			s := func(n int) mailspine.Content { return mailspine.StringContent(strings.Repeat("x", n)) }
			m := f.open("INBOX")
			c, err := m.Append(f.ctx(), s(60), mailbox.AppendOptions{})
			f.must(err)
			_, err = f.acct.Deliver(f.ctx(), s(41), mailbox.DeliverOptions{})
			f.want(err, mailbox.ErrOverQuota)
			_, err = f.acct.Deliver(f.ctx(), s(21), mailbox.DeliverOptions{Mailboxes: []string{"INBOX", "a"}})
			f.want(err, mailbox.ErrOverQuota)
			_, err = f.acct.Deliver(f.ctx(), s(101), mailbox.DeliverOptions{})
			f.want(err, mailbox.ErrTooBig)
			_, err = m.CopyTo(f.ctx(), []mailbox.UID{c.UID}, "a")
			f.want(err, mailbox.ErrOverQuota)
			usage(60, 1)
			_, err = m.MoveTo(f.ctx(), []mailbox.UID{c.UID}, "a") // takes no more room
			f.must(err)
			_, err = f.acct.Deliver(f.ctx(), s(20), mailbox.DeliverOptions{Mailboxes: []string{"INBOX", "a"}})
			f.must(err)
			usage(100, 3)
			f.must(f.acct.SetQuota(f.ctx(), mailbox.QuotaLimit{Messages: 3}))
			_, err = m.Append(f.ctx(), s(1), mailbox.AppendOptions{})
			f.want(err, mailbox.ErrOverQuota)
			f.must(f.acct.Delete(f.ctx(), "a"))
			usage(20, 1)
			f.must(f.acct.SetQuota(f.ctx(), mailbox.QuotaLimit{}))
			_, err = m.Append(f.ctx(), s(1000), mailbox.AppendOptions{})
			f.must(err)
			q, err := f.acct.Quota(f.ctx())
			if err != nil || q.Limit != (mailbox.QuotaLimit{}) {
				f.Errorf("%+v (%v)", q, err)
			}
		},
	},
	{
		name: "QuotaReserved",
		rule: "the quota is reserved before the first octet is written: deliveries at the same time do not pass it together, and none that fits is refused",
		run: func(f *fixture) {
			f.must(f.acct.SetQuota(f.ctx(), mailbox.QuotaLimit{Bytes: 1000}))
			var wg sync.WaitGroup
			var mu sync.Mutex
			taken := 0
			for range 16 {
				wg.Go(func() {
					_, err := f.acct.Deliver(f.ctx(), mailspine.StringContent(strings.Repeat("x", 100)), mailbox.DeliverOptions{})
					if err == nil {
						mu.Lock()
						taken++
						mu.Unlock()
					} else {
						f.want(err, mailbox.ErrOverQuota)
					}
				})
			}
			wg.Wait()
			q, err := f.acct.Quota(f.ctx())
			if err != nil || taken != 10 || q.Bytes != 1000 {
				f.Errorf("%d deliveries of 100 octets were taken, quota %+v (%v)", taken, q, err)
			}
			// A delivery that fails gives its reservation back.
			f.expunge(f.open("INBOX"), f.uids(f.open("INBOX"))[0])
			_, err = f.acct.Deliver(f.ctx(), failing{mailspine.StringContent(strings.Repeat("x", 100)), 50}, mailbox.DeliverOptions{})
			f.want(err, errBroken)
			f.deliver(strings.Repeat("x", 100), mailbox.DeliverOptions{})
		},
	},
	{
		name: "Users",
		rule: "the name of a user is taken as it is, octet for octet, and no name can reach the mail of another one",
		run: func(f *fixture) {
			users := []string{"bob", "Bob", "BOB", "bob@example.org", "..", ".", "../bob", "/etc/passwd", "a/b", "a\\b", "bob/INBOX", ".Sent", "con", "bob.", "bob ", "~", "=62ob", "^bob",
				"bób", "bo\u0301b", "日本", strings.Repeat("x", 255), strings.Repeat("x", 254), strings.Repeat("日", 85), "lock", "*", "a:b"}
			for i, u := range users {
				_, err := f.account(u).Deliver(f.ctx(), mailspine.StringContent(text(i)), mailbox.DeliverOptions{})
				f.must(err)
			}
			for i, u := range users {
				f.acct = f.account(u)
				m := f.open("INBOX")
				if got := f.uids(m); len(got) != 1 || f.body(m, got[0]) != text(i) {
					f.Errorf("%q has messages %v", u, got)
				}
				f.wantNames("INBOX")
			}
			for _, bad := range []string{"", "a\x00b", "a\n", "\xff", strings.Repeat("x", 256)} {
				_, err := f.store.Account(f.ctx(), bad)
				f.want(err, mailbox.ErrBadName)
			}
		},
	},
	{
		name: "Handles",
		rule: "Account and Mailbox values are handles: two of them see the same, and they stay valid while others are used",
		run: func(f *fixture) {
			m := f.open("INBOX")
			f.fill(m, 1)
			for i := range 300 { // more than a driver would keep open
				f.account("user" + strings.Repeat("x", i%50) + string(rune('a'+i%26)))
			}
			other, err := f.account("ann@example.org").Open(f.ctx(), "INBOX")
			f.must(err)
			f.fill(other, 1)
			if a, b := f.info(m), f.info(other); a != b || a.Messages != 2 {
				f.Errorf("%+v and %+v", a, b)
			}
		},
	},
	{
		name: "Closed",
		rule: "operations after Close return ErrClosed",
		run: func(f *fixture) {
			m := f.open("INBOX")
			f.must(f.store.Close())
			_, err := m.Append(f.ctx(), mailspine.StringContent("x"), mailbox.AppendOptions{})
			f.want(err, mailbox.ErrClosed)
			_, err = m.Snapshot(f.ctx())
			f.want(err, mailbox.ErrClosed)
			_, err = f.acct.Watch(f.ctx())
			f.want(err, mailbox.ErrClosed)
			_, err = m.LockMaildrop(f.ctx())
			f.want(err, mailbox.ErrClosed)
			_, err = f.store.Account(f.ctx(), "x")
			f.want(err, mailbox.ErrClosed)
		},
	},
	{
		name: "SlicesAreNotKept",
		rule: "slices given to a method are not kept; those returned belong to the caller",
		run: func(f *fixture) {
			m := f.open("INBOX")
			flags := []mailbox.Flag{mailbox.Seen, "tag"}
			c, err := m.Append(f.ctx(), mailspine.StringContent("x"), mailbox.AppendOptions{Flags: flags})
			f.must(err)
			flags[0], flags[1] = "x", "y"
			s := f.snapshot(m)
			s.Messages[0].Flags[0] = "z"
			r := f.flag(m, mailbox.AddFlags, "more", c.UID)
			r.Changed[0].Flags[0] = "z"
			if got := f.message(m, c.UID).Flags; !slices.Equal(got, []mailbox.Flag{mailbox.Seen, "more", "tag"}) {
				f.Errorf("flags are %q", got)
			}
			f.expunge(m, c.UID)
			ch := f.changes(m, 0)
			ch.Expunged[0] = 77
			f.same("expunged", f.changes(m, 0).Expunged, []mailbox.UID{c.UID})
		},
	},
}
