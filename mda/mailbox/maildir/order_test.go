package maildir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/internal/ledger"
)

// Changes to the messages of a mailbox are committed together with its renaming. Their files are
// those in the folder that it had before, and must not stay there.
func TestRenameInOneBatch(t *testing.T) {
	s := newSpot(t)
	drv, err := s.store.ledger.Open("bob")
	s.must(err)
	st, err := drv.Load()
	s.must(err)
	do := func(entries ...ledger.Entry) {
		t.Helper()
		var effects []ledger.Effect
		for _, e := range entries {
			eff, err := st.Apply(e)
			s.must(err)
			effects = append(effects, eff...)
		}
		s.must(drv.Commit(entries))
		s.must(drv.Settle(st, effects))
	}
	s.must(drv.MakeBox("a"))
	box := st.NextBox()
	do(ledger.Entry{{Kind: ledger.KindMake, Box: box, Name: "a", Validity: st.NextValidity(time.Now())}})
	for n := range 2 {
		staged, err := drv.Stage(t.Context(), mailspine.StringContent("x"))
		s.must(err)
		to := []ledger.Place{{Box: "a", Key: fmt.Sprint("key", n)}}
		s.must(drv.Place(staged, to))
		do(ledger.Entry{{Kind: ledger.KindAdd, Box: box, UIDs: []mailbox.UID{mailbox.UID(n + 1)}, ModSeq: mailbox.ModSeq(n + 2),
			Flags: [][]mailbox.Flag{nil}, Size: 1, Key: to[0].Key, EmailID: "e", File: to[0].File}})
	}
	do(
		ledger.Entry{{Kind: ledger.KindFlags, Box: box, UIDs: []mailbox.UID{1}, ModSeq: 4, Flags: [][]mailbox.Flag{{mailbox.Seen}}}},
		ledger.Entry{{Kind: ledger.KindExpunge, Box: box, UIDs: []mailbox.UID{2}, ModSeq: 5}},
		ledger.Entry{{Kind: ledger.KindRename, Box: box, Name: "b"}},
	)
	s.must(drv.Close(st))
	if got, want := s.files("..", "bob", ".b"), "../bob/.b/cur/key0"+string(infoSep)+"2,S"; len(got) != 1 || got[0] != want {
		t.Errorf("files are %q, want %q", got, want)
	}
}

// Closing at the same time closes once, and nobody returns before it is done.
func TestCloseTwice(t *testing.T) {
	s := newSpot(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.store.Close(); err != nil {
				t.Error(err)
			}
			if _, err := s.acct.Quota(t.Context()); !errors.Is(err, mailbox.ErrClosed) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	wg.Wait()
	s.start()
}

// A mailbox was deleted, and its folder made again by another program. What is delivered there is mail.
func TestDeletedFolderOfOthers(t *testing.T) {
	for _, end := range []string{"clean", "unclean"} {
		t.Run(end, func(t *testing.T) {
			s := newSpot(t)
			c := s.deliver("old", mailbox.DeliverOptions{Mailboxes: []string{"lists"}, Create: true})
			old := s.files(".lists")[0]
			s.must(s.acct.Delete(t.Context(), "lists"))
			s.reopen(func() {
				s.write("theirs", ".lists", "new", "1.theirs")
				s.write("", ".lists", "cur", ".keep")
				s.must(os.MkdirAll(s.path(".lists", "tmp"), 0o700))
				if end == "unclean" {
					s.write("old", old)
					s.unmark()
				}
			})
			s.want("lists", `1 theirs []`)
			if v := s.snapshot("lists").Info.UIDValidity; v <= c[0].UIDValidity {
				t.Errorf("UIDValidity is %d, was %d", v, c[0].UIDValidity)
			}
		})
	}
}

// unmark makes the log that of a crash: without its last record, the mark of a clean end.
func (s *spot) unmark() {
	s.Helper()
	fi, err := os.Stat(s.path(journalName))
	s.must(err)
	s.must(os.Truncate(s.path(journalName), fi.Size()-1))
}

// A delivery failed, and its file could not be taken back; it was repeated. What is left of the
// first one is not a second message, though it is one of its own if the delivery never succeeded.
func TestFailedDeliveryLeavesFile(t *testing.T) {
	f := &durabletest.Faults{FS: &durabletest.Disk{}}
	s, a, err := openAccount(t, f)
	if err != nil {
		t.Fatal(err)
	}
	msg, opts := mailspine.StringContent(scriptText(1)), mailbox.DeliverOptions{ID: "x"}
	f.Set(func(c durabletest.Call) error {
		if c.Op == durabletest.Remove || c.Op == durabletest.Write && strings.Contains(c.Name, journalName) {
			return syscall.EIO
		}
		return nil
	})
	for range 2 {
		if _, err := a.Deliver(t.Context(), msg, opts); err == nil {
			t.Fatal("delivered in spite of the fault")
		}
	}
	f.Set(nil)
	for _, repeated := range []bool{false, true} {
		d, err := a.Deliver(t.Context(), msg, opts)
		if err != nil {
			t.Fatal(err)
		}
		if repeated && !d.Copies[0].Repeated {
			t.Error("a repeated delivery is a new message")
		}
		if got, _ := look(t, a); got.String() != (contents{"INBOX": {1: ""}}).String() {
			t.Errorf("%v", got)
		}
		s.Close()
		if s, a, err = openAccount(t, f); err != nil {
			t.Fatal(err)
		}
		m, err := a.Open(t.Context(), "INBOX")
		if err != nil {
			t.Fatal(err)
		}
		if snap, err := m.Snapshot(t.Context()); err != nil || len(snap.Messages) != 1 {
			t.Errorf("%d messages, %v", len(snap.Messages), err)
		}
	}
	s.Close()
}

// A date that the log cannot have is not a reason to lose the log.
func TestStrangeDates(t *testing.T) {
	for _, at := range []int64{-1 << 40, 1 << 40} {
		d := &durabletest.Disk{}
		s, a, err := openAccount(t, d)
		if err != nil {
			t.Fatal(err)
		}
		_, was := look(t, a)
		s.Close()
		if err := durable.WriteFile(d, "/mail/ann/new/1.theirs", []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			s, a, err = openAccount(t, dated{d, time.Unix(at, 0)})
			if err != nil {
				t.Fatal(err)
			}
			m, err := a.Open(t.Context(), "INBOX")
			if err != nil {
				t.Fatal(err)
			}
			is, err := m.Info(t.Context())
			if err != nil || is.UIDValidity != was["INBOX"].Info.UIDValidity || is.Messages != 1 {
				t.Errorf("%d: %+v, was %+v, %v", at, is, was["INBOX"].Info, err)
			}
			s.Close()
		}
	}
}

// dated is a file system on which all files have the same date.
type dated struct {
	durable.FS
	at time.Time
}

func (d dated) Stat(name string) (fs.FileInfo, error) {
	fi, err := d.FS.Stat(name)
	return datedInfo{fi, d.at}, err
}

type datedInfo struct {
	fs.FileInfo
	at time.Time
}

func (i datedInfo) ModTime() time.Time { return i.at }
