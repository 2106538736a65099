package mailboxtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"pgregory.net/rapid"
)

// RunModel does random operations on a store and on a model that is too simple to
// be wrong, and compares what they tell. Two drivers that agree with the model agree with
// each other. How many runs there are is up to rapid's flags, such as -rapid.checks.
func RunModel(t *testing.T, h Harness) {
	rapid.Check(t, func(rt *rapid.T) {
		f := &modelRun{T: rt, t: t, h: h, boxes: map[string]*modelBox{}}
		f.store = h.Open(t, Config{MaxTombs: modelTombs})
		defer func() { f.store.Close() }()
		f.account()
		f.boxes[mailbox.Inbox] = &modelBox{next: 1}
		rt.Repeat(map[string]func(*rapid.T){
			"":        func(*rapid.T) { f.compare() },
			"deliver": f.deliver,
			"flags":   f.flags,
			"expunge": f.expunge,
			"copy":    func(rt *rapid.T) { f.transfer(rt, false) },
			"move":    func(rt *rapid.T) { f.transfer(rt, true) },
			"create":  f.create,
			"delete":  f.delete,
			"rename":  f.rename,
			"changes": f.changes,
			"reopen":  f.reopen,
		})
	})
}

// modelTombs is more than a run expunges.
const modelTombs = 10_000

// modelBox is a mailbox as a list of messages. UIDs are counted from 1 without gaps,
// which the contract does not demand, so the store's are mapped to them.
type modelBox struct {
	msgs     []*modelMsg
	next     int
	id       string // the store's
	validity uint32
	// The last state that was fetched, and the store's ModSeq then.
	at   mailbox.ModSeq
	seen map[mailbox.UID][]mailbox.Flag
}

type modelMsg struct {
	uid   int
	real  mailbox.UID
	flags []mailbox.Flag
	text  string
	email string
}

type modelRun struct {
	*rapid.T
	t     *testing.T
	h     Harness
	store mailbox.Store
	acct  mailbox.Account
	boxes map[string]*modelBox
	count int
}

var (
	modelNames = []string{"INBOX", "a", "a/b", "a/b/c", "A", "b", "INBOX/x"}
	modelFlags = []mailbox.Flag{mailbox.Seen, mailbox.Deleted, mailbox.Flagged, mailbox.Forwarded, "tag"}
)

func (f *modelRun) must(err error) {
	if err != nil {
		f.Helper()
		f.Fatalf("unexpected error: %v", err)
	}
}

// same checks that an error is the one the model expects.
func (f *modelRun) same(what string, got, want error) bool {
	f.Helper()
	if !errors.Is(got, want) || want == nil && got != nil {
		f.Fatalf("%s: error %v, the model says %v", what, got, want)
	}
	return want == nil
}

func (f *modelRun) account() {
	a, err := f.store.Account(f.t.Context(), "model")
	f.must(err)
	f.acct = a
}

func (f *modelRun) open(name string) mailbox.Mailbox {
	m, err := f.acct.Open(f.t.Context(), name)
	f.must(err)
	return m
}

func (f *modelRun) name(rt *rapid.T, label string) string {
	return rapid.SampledFrom(modelNames).Draw(rt, label)
}

// some draws one of the mailboxes there are.
func (f *modelRun) some(rt *rapid.T) (string, *modelBox) {
	n := rapid.SampledFrom(slices.Sorted(maps.Keys(f.boxes))).Draw(rt, "mailbox")
	return n, f.boxes[n]
}

func (f *modelRun) flagSet(rt *rapid.T) []mailbox.Flag {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(modelFlags), 0, 3, rapid.ID).Draw(rt, "flags")
}

// pick draws messages of a mailbox.
func (f *modelRun) pick(rt *rapid.T, b *modelBox) (msgs []*modelMsg, uids []mailbox.UID) {
	for _, m := range b.msgs {
		if rapid.Bool().Draw(rt, "picked") {
			msgs, uids = append(msgs, m), append(uids, m.real)
		}
	}
	return msgs, append(uids, 1<<32-2) // one that is not there
}

func (b *modelBox) add(m modelMsg) {
	m.uid = b.next
	b.next++
	m.flags = slices.Clone(m.flags)
	b.msgs = append(b.msgs, &m)
}

func (b *modelBox) remove(gone []*modelMsg) {
	b.msgs = slices.DeleteFunc(b.msgs, func(m *modelMsg) bool { return slices.Contains(gone, m) })
}

func (f *modelRun) deliver(rt *rapid.T) {
	names := rapid.SliceOfN(rapid.SampledFrom(modelNames), 1, 3).Draw(rt, "targets")
	flags := f.flagSet(rt)
	f.count++
	text := fmt.Sprintf("Subject: %d\r\n\r\n%s", f.count, strings.Repeat("x\r\n", f.count%50))
	var want error
	for _, n := range names {
		if f.boxes[n] == nil {
			want = mailbox.ErrNoMailbox
		}
	}
	d, err := f.acct.Deliver(f.t.Context(), mailspine.StringContent(text), mailbox.DeliverOptions{Mailboxes: names, Flags: flags})
	if !f.same("deliver", err, want) {
		return
	}
	clean, err := mailbox.CleanFlags(flags)
	f.must(err)
	done := map[string]bool{}
	for i, n := range names {
		if !done[n] {
			f.boxes[n].add(modelMsg{real: d.Copies[i].UID, flags: clean, text: text})
		}
		done[n] = true
	}
}

func (f *modelRun) flags(rt *rapid.T) {
	name, b := f.some(rt)
	msgs, uids := f.pick(rt, b)
	op := rapid.SampledFrom([]mailbox.FlagOp{mailbox.AddFlags, mailbox.RemoveFlags, mailbox.ReplaceFlags}).Draw(rt, "op")
	flags := f.flagSet(rt)
	r, err := f.open(name).SetFlags(f.t.Context(), uids, mailbox.FlagChange{Op: op, Flags: flags})
	f.must(err)
	var changed []mailbox.UID
	for _, m := range msgs {
		now := []mailbox.Flag(nil)
		for _, x := range modelFlags {
			had, has := slices.Contains(m.flags, x), slices.Contains(flags, x)
			if has && op != mailbox.RemoveFlags || had && op == mailbox.AddFlags || had && op == mailbox.RemoveFlags && !has {
				now = append(now, x)
			}
		}
		slices.Sort(now)
		if !slices.Equal(now, m.flags) {
			changed = append(changed, m.real)
		}
		m.flags = now
	}
	if got := uidsOf(r.Changed); !slices.Equal(got, changed) {
		f.Fatalf("flags: changed %v, the model says %v", got, changed)
	}
}

func (f *modelRun) expunge(rt *rapid.T) {
	name, b := f.some(rt)
	msgs, uids := f.pick(rt, b)
	opts := mailbox.ExpungeOptions{All: rapid.Bool().Draw(rt, "all"), Any: rapid.Bool().Draw(rt, "any")}
	if opts.All {
		msgs = slices.Clone(b.msgs)
	}
	if !opts.Any {
		msgs = slices.DeleteFunc(msgs, func(m *modelMsg) bool { return !slices.Contains(m.flags, mailbox.Deleted) })
	}
	gone, err := f.open(name).Expunge(f.t.Context(), uids, opts)
	f.must(err)
	var want []mailbox.UID
	for _, m := range msgs {
		want = append(want, m.real)
	}
	if !slices.Equal(gone, want) {
		f.Fatalf("expunged %v, the model says %v", gone, want)
	}
	b.remove(msgs)
}

func (f *modelRun) transfer(rt *rapid.T, move bool) {
	name, b := f.some(rt)
	dest := f.name(rt, "destination")
	msgs, uids := f.pick(rt, b)
	do := f.open(name).CopyTo
	if move {
		do = f.open(name).MoveTo
	}
	var want error
	if f.boxes[dest] == nil {
		want = mailbox.ErrNoMailbox
	}
	c, err := do(f.t.Context(), uids, dest)
	if !f.same("transfer", err, want) {
		return
	}
	if len(c.Source) != len(msgs) || len(c.Dest) != len(msgs) {
		f.Fatalf("transfer of %v: %+v, the model says %d messages", uids, c, len(msgs))
	}
	for i, m := range msgs {
		if c.Source[i] != m.real {
			f.Fatalf("transfer: source %v", c.Source)
		}
		f.boxes[dest].add(modelMsg{real: c.Dest[i], flags: m.flags, text: m.text, email: m.email})
	}
	if move {
		b.remove(msgs)
	}
}

func (f *modelRun) makeAbove(name string) {
	for _, n := range append(mailbox.Above(name), name) {
		if f.boxes[n] == nil {
			f.boxes[n] = &modelBox{next: 1}
		}
	}
}

func (f *modelRun) create(rt *rapid.T) {
	name := f.name(rt, "name")
	var want error
	if f.boxes[name] != nil {
		want = mailbox.ErrExists
	}
	if f.same("create", f.acct.Create(f.t.Context(), name, mailbox.CreateOptions{}), want) {
		f.makeAbove(name)
	}
}

func (f *modelRun) delete(rt *rapid.T) {
	name := f.name(rt, "name")
	var want error
	switch {
	case name == mailbox.Inbox:
		want = mailbox.ErrInbox
	case f.boxes[name] == nil:
		want = mailbox.ErrNoMailbox
	}
	if f.same("delete", f.acct.Delete(f.t.Context(), name), want) {
		delete(f.boxes, name)
	}
}

func (f *modelRun) rename(rt *rapid.T) {
	from, to := f.name(rt, "from"), f.name(rt, "to")
	renames := map[string]string{from: to}
	for n := range f.boxes {
		if rest, ok := strings.CutPrefix(n, from+"/"); ok && from != mailbox.Inbox {
			renames[n] = to + "/" + rest
		}
	}
	var want error
	taken := false
	for _, n := range renames {
		taken = taken || f.boxes[n] != nil
	}
	switch {
	case from != mailbox.Inbox && strings.HasPrefix(to, from+"/"):
		want = mailbox.ErrBadName
	case f.boxes[from] == nil:
		want = mailbox.ErrNoMailbox
	case taken:
		want = mailbox.ErrExists
	}
	if !f.same("rename", f.acct.Rename(f.t.Context(), from, to), want) {
		return
	}
	if from == mailbox.Inbox {
		f.makeAbove(to)
		old := f.boxes[from].msgs
		f.boxes[from].msgs = nil
		s, err := f.open(to).Snapshot(f.t.Context())
		f.must(err)
		if len(s.Messages) != len(old) {
			f.Fatalf("INBOX had %d messages, its new name has %d", len(old), len(s.Messages))
		}
		for i, m := range old {
			f.boxes[to].add(modelMsg{real: s.Messages[i].UID, flags: m.flags, text: m.text, email: m.email})
		}
		return
	}
	moved := map[string]*modelBox{}
	for n, now := range renames {
		moved[now] = f.boxes[n]
		delete(f.boxes, n)
	}
	maps.Copy(f.boxes, moved)
	f.makeAbove(to)
}

func (f *modelRun) reopen(rt *rapid.T) {
	if f.h.Reopen == nil {
		rt.Skip("the store forgets when it is closed")
	}
	f.store = f.h.Reopen(f.t, f.store, Config{MaxTombs: modelTombs})
	f.account()
}

// changes brings what was fetched of a mailbox up to date, as a client would.
func (f *modelRun) changes(rt *rapid.T) {
	name, b := f.some(rt)
	c, err := f.open(name).Changes(f.t.Context(), b.at)
	f.must(err)
	if b.seen == nil {
		b.seen = map[mailbox.UID][]mailbox.Flag{}
	}
	for _, x := range c.Changed {
		if x.ModSeq <= b.at || x.ModSeq > c.Info.ModSeq {
			f.Fatalf("changes since %d: %+v", b.at, x)
		}
		b.seen[x.UID] = x.Flags
	}
	for _, u := range c.Expunged {
		delete(b.seen, u)
	}
	b.at = c.Info.ModSeq
	if len(b.seen) != len(b.msgs) {
		f.Fatalf("%s: after the changes a client has %d messages, the model %d", name, len(b.seen), len(b.msgs))
	}
	for _, m := range b.msgs {
		if got, ok := b.seen[m.real]; !ok || !slices.Equal(got, m.flags) {
			f.Fatalf("%s: after the changes a client has message %d with %q, the model with %q", name, m.real, got, m.flags)
		}
	}
}

// compare compares everything that the store tells with the model.
func (f *modelRun) compare() {
	list, err := f.acct.Mailboxes(f.t.Context())
	f.must(err)
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	want := slices.Sorted(maps.Keys(f.boxes))
	i := slices.Index(want, mailbox.Inbox)
	want = slices.Concat(want[i:i+1], want[:i], want[i+1:])
	if !slices.Equal(names, want) {
		f.Fatalf("mailboxes are %q, the model has %q", names, want)
	}
	var bytesUsed, messages int64
	for _, n := range names {
		b := f.boxes[n]
		m := f.open(n)
		s, err := m.Snapshot(f.t.Context())
		f.must(err)
		if b.id == "" {
			b.id, b.validity = s.Info.ID, s.Info.UIDValidity
		}
		if b.id != s.Info.ID || b.validity != s.Info.UIDValidity {
			f.Fatalf("%s is %s with UIDValidity %d, was %s with %d", n, s.Info.ID, s.Info.UIDValidity, b.id, b.validity)
		}
		type message struct {
			UID   mailbox.UID
			Flags string
			Text  string
		}
		var got, want []message
		var last mailbox.UID
		for i, x := range s.Messages {
			body, err := m.Body(f.t.Context(), x.UID)
			f.must(err)
			var text bytes.Buffer
			_, err = io.Copy(&text, io.NewSectionReader(body, 0, body.Size()))
			f.must(err)
			body.Close()
			if x.UID <= last || x.UID >= s.Info.UIDNext || x.ModSeq > s.Info.ModSeq || x.Size != int64(text.Len()) {
				f.Fatalf("%s: %+v", n, x)
			}
			last = x.UID
			got = append(got, message{x.UID, fmt.Sprint(x.Flags), text.String()})
			bytesUsed += x.Size
			messages++
			if i < len(b.msgs) {
				if w := b.msgs[i]; w.email == "" {
					w.email = x.EmailID
				} else if w.email != x.EmailID {
					f.Fatalf("%s: message %d has EmailID %s, had %s", n, x.UID, x.EmailID, w.email)
				}
			}
		}
		for _, w := range b.msgs {
			want = append(want, message{w.real, fmt.Sprint(w.flags), w.text})
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			f.Fatalf("%s differs (-model +store):\n%s", n, diff)
		}
	}
	q, err := f.acct.Quota(f.t.Context())
	f.must(err)
	if q.Bytes != bytesUsed || q.Messages != messages {
		f.Fatalf("quota says %+v, there are %d octets in %d messages", q, bytesUsed, messages)
	}
}
