package mailboxtest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// messageCases are about messages coming, being read, copied and moved.
var messageCases = []testCase{
	{
		name: "AppendAndRead",
		rule: "a message is kept octet for octet, whatever it contains",
		run: func(f *fixture) {
			all := make([]byte, 256)
			for i := range all {
				all[i] = byte(i)
			}
			large := make([]byte, 300_000)
			for i := range large {
				large[i] = byte(rand.IntN(256))
			}
			m := f.open("INBOX")
			for _, s := range []string{"", "x", "a: b\r\n\r\nc\r\n", "bare\nLF\rand CR", "NUL \x00 and \xff\xfe", string(all), "From me\r\n.\r\n", string(large)} {
				c, err := m.Append(f.ctx(), mailspine.StringContent(s), mailbox.AppendOptions{})
				f.must(err)
				if got := f.body(m, c.UID); got != s {
					f.Errorf("%d octets came back as %d others", len(s), len(got))
				}
				if x := f.message(m, c.UID); x.Size != int64(len(s)) {
					f.Errorf("size %d, want %d", x.Size, len(s))
				}
			}
		},
	},
	{
		name: "ReadAt",
		rule: "a Body can be read at any offset, from several goroutines",
		run: func(f *fixture) {
			m := f.open("INBOX")
			s := strings.Repeat("0123456789", 2000)
			c, err := m.Append(f.ctx(), mailspine.StringContent(s), mailbox.AppendOptions{})
			f.must(err)
			b, err := m.Body(f.ctx(), c.UID)
			f.must(err)
			defer b.Close()
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for j := range 50 {
						off := (i*977 + j*131) % (len(s) - 10)
						p := make([]byte, 10)
						if _, err := b.ReadAt(p, int64(off)); err != nil || string(p) != s[off:off+10] {
							f.Errorf("at %d: %q, %v", off, p, err)
						}
					}
				})
			}
			wg.Wait()
		},
	},
	{
		name: "Attributes",
		rule: "flags come back in canonical form and sorted, the received time with seconds and in UTC, and defaults are no flags and now",
		run: func(f *fixture) {
			m := f.open("INBOX")
			at := time.Date(2001, 2, 3, 4, 5, 6, 789, time.FixedZone("", 3600))
			c, err := m.Append(f.ctx(), mailspine.StringContent("x"), mailbox.AppendOptions{
				Flags: []mailbox.Flag{`\SEEN`, "MyTag", "$forwarded", `\Seen`}, InternalDate: at})
			f.must(err)
			x := f.message(m, c.UID)
			if want := []mailbox.Flag{"$Forwarded", `\Seen`, "mytag"}; !slices.Equal(x.Flags, want) {
				f.Errorf("flags %q, want %q", x.Flags, want)
			}
			if want := at.Truncate(time.Second); !x.InternalDate.Equal(want) || x.InternalDate.Location() != time.UTC {
				f.Errorf("date %v, want %v", x.InternalDate, want.UTC())
			}
			if x.EmailID == "" {
				f.Error("no EmailID")
			}
			before := time.Now().Add(-time.Second).Truncate(time.Second)
			c, err = m.Append(f.ctx(), mailspine.StringContent("x"), mailbox.AppendOptions{})
			f.must(err)
			y := f.message(m, c.UID)
			if len(y.Flags) != 0 || y.InternalDate.Before(before) || y.InternalDate.After(time.Now()) {
				f.Errorf("defaults are %q and %v", y.Flags, y.InternalDate)
			}
			if y.EmailID == x.EmailID {
				f.Error("two messages have the same EmailID")
			}
		},
	},
	{
		name: "UIDsAscend",
		rule: "each message has a UID larger than that of every message before it, and UIDNext is larger than all of them",
		run: func(f *fixture) {
			m := f.open("INBOX")
			var last mailbox.UID
			for range 20 {
				next := f.info(m).UIDNext
				uid := f.fill(m, 1)[0]
				if uid <= last || uid < next || f.info(m).UIDNext <= uid {
					f.Errorf("UID %d after %d, UIDNext was %d and is %d", uid, last, next, f.info(m).UIDNext)
				}
				last = uid
			}
			if got := f.uids(m); !slices.IsSorted(got) || len(got) != 20 {
				f.Errorf("snapshot has %v", got)
			}
		},
	},
	{
		name: "UIDsAreNotReused",
		rule: "a UID is never given again, not even after its message is expunged",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 3)
			f.expunge(m, uids...)
			if next := f.fill(m, 1)[0]; next <= uids[2] {
				f.Errorf("UID %d after %v were expunged", next, uids)
			}
		},
	},
	{
		name: "UIDsAreNotReusedAfterReopen", reopen: true,
		rule: "a UID is never given again, not even after its message is expunged and the store was closed in between",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 3)
			f.expunge(m, uids[2])
			validity := f.info(m).UIDValidity
			f.reopen()
			m = f.open("INBOX")
			if v := f.info(m).UIDValidity; v != validity {
				f.Errorf("UIDValidity was %d and is %d", validity, v)
			}
			f.same("UIDs", f.uids(m), uids[:2])
			if next := f.fill(m, 1)[0]; next <= uids[2] {
				f.Errorf("UID %d after %v", next, uids)
			}
		},
	},
	{
		name: "Reopen", reopen: true,
		rule: "changes are durable before a method returns nil",
		run: func(f *fixture) {
			f.create("Sent", "Work/2026")
			m := f.open("Work/2026")
			uids := f.fill(m, 5, mailbox.Seen, "tag")
			f.flag(m, mailbox.AddFlags, mailbox.Flagged, uids[1])
			f.flag(m, mailbox.RemoveFlags, mailbox.Seen, uids[2])
			f.expunge(m, uids[3])
			_, err := m.CopyTo(f.ctx(), uids[:2], "Sent")
			f.must(err)
			f.must(f.acct.SetSubscribed(f.ctx(), "Nowhere", true))
			f.must(f.acct.SetQuota(f.ctx(), mailbox.QuotaLimit{Bytes: 1 << 20, Messages: 100}))
			before, list := f.snapshot(m), f.listing()
			since := f.changes(m, 0)
			q, err := f.acct.Quota(f.ctx())
			f.must(err)
			f.reopen()
			m = f.open("Work/2026")
			f.sameSnapshot(before, f.snapshot(m))
			if got := f.listing(); !slices.Equal(got, list) {
				f.Errorf("mailboxes are\n%+v, were\n%+v", got, list)
			}
			f.same("expunged since 0", f.changes(m, 0).Expunged, since.Expunged)
			if now, err := f.acct.Quota(f.ctx()); err != nil || now != q {
				f.Errorf("quota is %+v (%v), was %+v", now, err, q)
			}
			for i, u := range uids {
				if i != 3 && f.body(m, u) != text(i+1) {
					f.Errorf("body of message %d differs", u)
				}
			}
		},
	},
	{
		name: "NoMessage",
		rule: "Body of a UID that is not or no longer there is ErrNoMessage; methods that take several UIDs ignore it",
		run: func(f *fixture) {
			m := f.open("INBOX")
			f.create("Sent")
			uid := f.fill(m, 1)[0]
			f.expunge(m, uid)
			for _, u := range []mailbox.UID{0, uid, uid + 1, 1<<32 - 1} {
				_, err := m.Body(f.ctx(), u)
				f.want(err, mailbox.ErrNoMessage)
				r := f.flag(m, mailbox.AddFlags, mailbox.Seen, u)
				c, err := m.CopyTo(f.ctx(), []mailbox.UID{u}, "Sent")
				f.must(err)
				v, err := m.MoveTo(f.ctx(), []mailbox.UID{u}, "Sent")
				f.must(err)
				gone, err := m.Expunge(f.ctx(), []mailbox.UID{u}, mailbox.ExpungeOptions{Any: true})
				f.must(err)
				if len(r.Changed)+len(r.Conflicts)+len(c.Source)+len(c.Dest)+len(v.Source)+len(gone) != 0 {
					f.Errorf("something happened to message %d", u)
				}
			}
		},
	},
	{
		name: "BodyOutlivesExpunge",
		rule: "a Body stays readable until it is closed, even if the message is expunged meanwhile",
		run: func(f *fixture) {
			f.create("Trash")
			m := f.open("Trash")
			uids := f.fill(m, 2)
			var open []mailbox.Body
			for _, u := range uids {
				b, err := m.Body(f.ctx(), u)
				f.must(err)
				defer b.Close()
				open = append(open, b)
			}
			f.expunge(m, uids[0])
			f.must(f.acct.Delete(f.ctx(), "Trash"))
			for i, b := range open {
				if f.readAll(b) != text(i+1) {
					f.Errorf("body %d changed", i)
				}
			}
		},
	},
	{
		name: "BrokenMessage",
		rule: "when an error is returned nothing has changed: a message that breaks off, or is not as long as it says, leaves nothing behind",
		run: func(f *fixture) {
			m := f.open("INBOX")
			before := f.info(m)
			good := mailspine.BytesContent(bytes.Repeat([]byte("x"), 200_000))
			for _, after := range []int64{0, 1, 100_000, 199_999} {
				_, err := m.Append(f.ctx(), failing{good, after}, mailbox.AppendOptions{})
				f.want(err, errBroken)
			}
			for _, off := range []int64{-1, 1} {
				if _, err := m.Append(f.ctx(), sized{good, good.Size() + off}, mailbox.AppendOptions{}); err == nil {
					f.Errorf("a message that is %d octets longer than it says was taken", -off)
				}
			}
			if after := f.info(m); after != before {
				f.Errorf("INBOX is %+v, was %+v", after, before)
			}
			q, err := f.acct.Quota(f.ctx())
			if err != nil || q.Bytes != 0 || q.Messages != 0 {
				f.Errorf("quota counts %+v (%v)", q, err)
			}
		},
	},
	{
		name: "TooBig", config: Config{MaxMessage: 1000},
		rule: "a message over the limit of the store is ErrTooBig",
		run: func(f *fixture) {
			m := f.open("INBOX")
			_, err := m.Append(f.ctx(), mailspine.StringContent(strings.Repeat("x", 1001)), mailbox.AppendOptions{})
			f.want(err, mailbox.ErrTooBig)
			_, err = m.Append(f.ctx(), mailspine.StringContent(strings.Repeat("x", 1000)), mailbox.AppendOptions{})
			f.must(err)
		},
	},
	{
		name: "Copy",
		rule: "CopyTo copies messages with flags and dates in the order of their UIDs, and tells the UIDs of both sides",
		run: func(f *fixture) {
			f.create("Sent")
			m, d := f.open("INBOX"), f.open("Sent")
			f.fill(d, 1)
			uids := f.fill(m, 3, mailbox.Seen, "tag")
			c, err := m.CopyTo(f.ctx(), []mailbox.UID{uids[2], uids[0], uids[2], 999}, "Sent")
			f.must(err)
			f.same("source", c.Source, []mailbox.UID{uids[0], uids[2]})
			f.same("all in the destination", f.uids(d)[1:], c.Dest)
			if c.UIDValidity != f.info(d).UIDValidity {
				f.Error("UIDValidity is not that of the destination")
			}
			for i, u := range c.Source {
				was, is := f.message(m, u), f.message(d, c.Dest[i])
				if !slices.Equal(was.Flags, is.Flags) || !was.InternalDate.Equal(is.InternalDate) || was.Size != is.Size || was.EmailID != is.EmailID {
					f.Errorf("%+v was copied as %+v", was, is)
				}
				if f.body(m, u) != f.body(d, c.Dest[i]) {
					f.Error("the copy's body differs")
				}
			}
			f.same("originals", f.uids(m), uids)
			// Copies are messages of their own.
			f.flag(m, mailbox.RemoveFlags, mailbox.Seen, uids...)
			f.expunge(m, uids...)
			for i, u := range c.Dest {
				if !mailbox.HasFlag(f.message(d, u).Flags, mailbox.Seen) || f.body(d, u) != text([]int{1, 3}[i]) {
					f.Error("the copy changed with its original")
				}
			}
		},
	},
	{
		name: "CopyWithin",
		rule: "the destination of a copy may be the mailbox itself",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 2)
			c, err := m.CopyTo(f.ctx(), uids, "inbox")
			f.must(err)
			f.same("UIDs", f.uids(m), append(uids, c.Dest...))
		},
	},
	{
		name: "CopyNowhere",
		rule: "a copy or move to a mailbox that does not exist is ErrNoMailbox, and nothing changes",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 2)
			before := f.info(m)
			_, err := m.CopyTo(f.ctx(), uids, "Nowhere")
			f.want(err, mailbox.ErrNoMailbox)
			_, err = m.MoveTo(f.ctx(), uids, "Nowhere")
			f.want(err, mailbox.ErrNoMailbox)
			if f.info(m) != before {
				f.Error("the mailbox changed")
			}
		},
	},
	{
		name: "Move",
		rule: "MoveTo is a copy and the removal of the originals in one step, and the originals leave tombstones",
		run: func(f *fixture) {
			f.create("Done")
			m, d := f.open("INBOX"), f.open("Done")
			uids := f.fill(m, 3, mailbox.Flagged)
			since := f.info(m).ModSeq
			was := f.message(m, uids[1])
			c, err := m.MoveTo(f.ctx(), uids[1:], "Done")
			f.must(err)
			f.same("left", f.uids(m), uids[:1])
			f.same("arrived", f.uids(d), c.Dest)
			f.same("source", c.Source, uids[1:])
			f.same("expunged", f.changes(m, since).Expunged, uids[1:])
			is := f.message(d, c.Dest[0])
			if is.EmailID != was.EmailID || !slices.Equal(is.Flags, was.Flags) || f.body(d, is.UID) != text(2) {
				f.Errorf("%+v arrived as %+v", was, is)
			}
		},
	},
	{
		name: "MoveWithin",
		rule: "a move within one mailbox gives the messages new UIDs",
		run: func(f *fixture) {
			m := f.open("INBOX")
			uids := f.fill(m, 3)
			c, err := m.MoveTo(f.ctx(), uids[:1], "INBOX")
			f.must(err)
			f.same("UIDs", f.uids(m), []mailbox.UID{uids[1], uids[2], c.Dest[0]})
			if c.Dest[0] <= uids[2] || f.body(m, c.Dest[0]) != text(1) {
				f.Errorf("moved to %d", c.Dest[0])
			}
		},
	},
	{
		name: "MoveRace",
		rule: "at no moment is a moved message in both mailboxes or in none, also when several move it",
		run: func(f *fixture) {
			f.create("A", "B")
			m := f.open("INBOX")
			uids := f.fill(m, 20)
			var wg sync.WaitGroup
			moved := make([]int, 4)
			for i := range moved {
				wg.Go(func() {
					for _, u := range uids {
						c, err := m.MoveTo(f.ctx(), []mailbox.UID{u}, []string{"A", "B"}[i%2])
						if err != nil {
							f.Error(err)
						}
						moved[i] += len(c.Source)
					}
				})
			}
			wg.Wait()
			total := moved[0] + moved[1] + moved[2] + moved[3]
			a, b := len(f.uids(f.open("A"))), len(f.uids(f.open("B")))
			if total != 20 || a+b != 20 || len(f.uids(m)) != 0 {
				f.Errorf("20 messages: %d moves, A has %d, B %d, INBOX %d", total, a, b, len(f.uids(m)))
			}
		},
	},
	{
		name: "Concurrent",
		rule: "all methods are safe for concurrent use: nothing is lost or given a UID twice",
		run: func(f *fixture) {
			f.create("Other")
			m := f.open("INBOX")
			const workers, each = 8, 10
			var mu sync.Mutex
			seen := map[mailbox.UID]bool{}
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for i := range each {
						c, err := m.Append(f.ctx(), mailspine.StringContent(text(w*100+i)), mailbox.AppendOptions{})
						if err != nil {
							f.Error(err)
							return
						}
						mu.Lock()
						if seen[c.UID] {
							f.Errorf("UID %d twice", c.UID)
						}
						seen[c.UID] = true
						mu.Unlock()
						if _, err := m.SetFlags(f.ctx(), []mailbox.UID{c.UID}, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Seen}}); err != nil {
							f.Error(err)
						}
						if i%3 == 0 {
							if _, err := m.CopyTo(f.ctx(), []mailbox.UID{c.UID}, "Other"); err != nil {
								f.Error(err)
							}
						}
						if _, err := m.Snapshot(f.ctx()); err != nil {
							f.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if got := f.info(m); got.Messages != workers*each || got.Unseen != 0 {
				f.Errorf("%+v after %d appends", got, workers*each)
			}
			if n := f.info(f.open("Other")).Messages; n != workers*4 {
				f.Errorf("%d copies, want %d", n, workers*4)
			}
		},
	},
	{
		name: "Cancelled",
		rule: "a method whose context has ended returns its error and changes nothing",
		run: func(f *fixture) {
			m := f.open("INBOX")
			ctx, cancel := contextCancelled(f)
			defer cancel()
			before := f.info(m)
			_, err := m.Append(ctx, mailspine.StringContent("x"), mailbox.AppendOptions{})
			_, err2 := m.Snapshot(ctx)
			if err == nil || err2 == nil || !errors.Is(err, ctx.Err()) {
				f.Errorf("errors %v and %v", err, err2)
			}
			if f.info(m) != before {
				f.Error("the mailbox changed")
			}
		},
	},
}

// sized is a message that lies about its size.
type sized struct {
	mailspine.Content
	size int64
}

func (c sized) Size() int64 { return c.size }
