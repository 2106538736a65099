package maildir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A spot is a store on the real disk that can be opened again.
type spot struct {
	*testing.T
	dir   string
	logs  bytes.Buffer
	store *Store
	acct  mailbox.Account
}

func newSpot(t *testing.T) *spot {
	s := &spot{T: t, dir: filepath.Join(t.TempDir(), "mail")}
	s.start()
	t.Cleanup(func() { s.store.Close() })
	return s
}

func (s *spot) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *spot) start() {
	s.Helper()
	var err error
	s.store, err = Open(s.dir, &Options{Logger: slog.New(slog.NewTextHandler(&s.logs, nil))})
	s.must(err)
	s.acct, err = s.store.Account(s.Context(), "ann")
	s.must(err)
}

func (s *spot) reopen(between func()) {
	s.Helper()
	s.must(s.store.Close())
	if between != nil {
		between()
	}
	s.start()
}

func (s *spot) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir, "ann"}, elem...)...)
}

func (s *spot) write(text string, elem ...string) {
	s.Helper()
	s.must(os.MkdirAll(filepath.Dir(s.path(elem...)), 0o700))
	s.must(os.WriteFile(s.path(elem...), []byte(text), 0o600))
}

func (s *spot) deliver(text string, opts mailbox.DeliverOptions) []mailbox.Copy {
	s.Helper()
	d, err := s.acct.Deliver(s.Context(), mailspine.StringContent(text), opts)
	s.must(err)
	return d.Copies
}

func (s *spot) open(name string) mailbox.Mailbox {
	s.Helper()
	m, err := s.acct.Open(s.Context(), name)
	s.must(err)
	return m
}

func (s *spot) snapshot(name string) mailbox.Snapshot {
	s.Helper()
	x, err := s.open(name).Snapshot(s.Context())
	s.must(err)
	return x
}

// texts returns the messages of a mailbox with UIDs and flags.
func (s *spot) texts(name string) []string {
	s.Helper()
	m := s.open(name)
	var out []string
	for _, x := range s.snapshot(name).Messages {
		b, err := m.Body(s.Context(), x.UID)
		s.must(err)
		raw := make([]byte, b.Size())
		_, err = b.ReadAt(raw, 0)
		s.must(err)
		b.Close()
		out = append(out, fmt.Sprintf("%d %s %v", x.UID, raw, x.Flags))
	}
	return out
}

func (s *spot) want(name string, want ...string) {
	s.Helper()
	if got := s.texts(name); !slices.Equal(got, want) {
		s.Errorf("%s has\n%q, want\n%q\n%s", name, got, want, &s.logs)
	}
}

// files returns the names of all files of the account below a folder.
func (s *spot) files(elem ...string) []string {
	s.Helper()
	var out []string
	s.must(filepath.WalkDir(s.path(elem...), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasPrefix(d.Name(), journalName) {
			rel, _ := filepath.Rel(s.path(), p)
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	}))
	return out
}

// damage changes an octet in the middle of the log.
func (s *spot) damage() {
	s.Helper()
	raw, err := os.ReadFile(s.path(journalName))
	s.must(err)
	raw[len(raw)/2] ^= 0x55
	s.must(os.WriteFile(s.path(journalName), raw, 0o600))
}

func TestLayout(t *testing.T) {
	s := newSpot(t)
	s.must(s.acct.Create(t.Context(), "Archive/2026", mailbox.CreateOptions{}))
	s.deliver("x", mailbox.DeliverOptions{Mailboxes: []string{"INBOX", "Archive/2026"}})
	s.deliver("y", mailbox.DeliverOptions{Flags: []mailbox.Flag{mailbox.Seen, mailbox.Flagged, "tag"}})
	var paths []string
	var inodes []fs.FileInfo
	s.must(filepath.WalkDir(s.dir, func(p string, d fs.DirEntry, err error) error {
		fi, ferr := d.Info()
		if err = errors.Join(err, ferr); err != nil {
			return err
		}
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; runtime.GOOS != "windows" && fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		if strings.Contains(d.Name(), ",S=") {
			rel, _ := filepath.Rel(s.path(), p)
			dir, name, _ := strings.Cut(filepath.ToSlash(rel), "/1")
			paths = append(paths, dir+" "+name[strings.Index(name, ",S="):])
			if strings.Contains(d.Name(), ",S=1") && !strings.Contains(d.Name(), string(infoSep)) {
				inodes = append(inodes, fi)
			}
		}
		return nil
	}))
	slices.Sort(paths)
	if want := []string{".^archive.2026/new ,S=1", "cur ,S=1" + string(infoSep) + "2,FS", "new ,S=1"}; !slices.Equal(paths, want) {
		t.Errorf("files are %q, want %q", paths, want)
	}
	if len(inodes) != 2 || !os.SameFile(inodes[0], inodes[1]) {
		t.Error("a delivery into two mailboxes is not stored once")
	}
	// Flags move the file.
	m := s.open("INBOX")
	_, err := m.SetFlags(t.Context(), []mailbox.UID{1, 2}, mailbox.FlagChange{Op: mailbox.ReplaceFlags, Flags: []mailbox.Flag{mailbox.Answered, mailbox.Forwarded}})
	s.must(err)
	for _, f := range s.files("cur") {
		if !strings.HasSuffix(f, string(infoSep)+"2,PR") {
			t.Errorf("file %q", f)
		}
	}
	if got := len(s.files("cur")) + len(s.files("new")); got != 2 {
		t.Errorf("%d files", got)
	}
	_, err = m.Expunge(t.Context(), []mailbox.UID{1, 2}, mailbox.ExpungeOptions{Any: true})
	s.must(err)
	if f := append(append(s.files("cur"), s.files("new")...), s.files("tmp")...); len(f) != 0 {
		t.Errorf("left are %q", f)
	}
}

func TestLock(t *testing.T) {
	s := newSpot(t)
	_, err := Open(s.dir, nil)
	var locked *durable.LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Errorf("second opener: %v", err)
	}
	s.must(s.store.Close())
	s.must(s.store.Close())
	s.start()
}

// Other programs deliver into the Maildirs, move messages and change flags while the store is closed.
func TestOthers(t *testing.T) {
	s := newSpot(t)
	sep := string(infoSep)
	s.deliver("one", mailbox.DeliverOptions{Flags: []mailbox.Flag{mailbox.Seen, "tag"}})
	s.deliver("two", mailbox.DeliverOptions{})
	s.deliver("three", mailbox.DeliverOptions{Mailboxes: []string{"Old"}, Create: true, Flags: []mailbox.Flag{"tag"}})
	was := s.snapshot("Old").Messages[0]
	s.reopen(func() {
		s.write("theirs", "new", "1500000000.a.host")
		s.must(os.Chtimes(s.path("new", "1500000000.a.host"), time.Time{}, time.Unix(1500000000, 0)))
		s.write("theirs too", "cur", "1500000001.b.host"+sep+"2,RS")
		s.write("hidden", "new", ".x")
		s.write("theirs in their mailbox", ".new", "new", "1.c")
		s.write("", ".theirs", "cur", "1.d")
		s.write("not ours", ".Sent", "cur", "1.e")
		cur := s.files("cur")
		i := slices.IndexFunc(cur, func(f string) bool { return strings.HasSuffix(f, "2,S") })
		s.must(os.Rename(s.path(cur[i]), s.path(strings.TrimSuffix(cur[i], "S")+"FT")))
		old := s.files(".^old", "new")[0]
		s.must(os.Rename(s.path(old), s.path("cur", filepath.Base(old)+sep+"2,")))
	})
	s.want("INBOX",
		`1 one [\Deleted \Flagged tag]`, `2 two []`, `3 theirs []`, `4 theirs too [\Answered \Seen]`, `5 three [tag]`)
	s.want("Old")
	s.want("theirs", `1  []`)
	if snap := s.snapshot("INBOX"); snap.Messages[2].InternalDate.Unix() != 1500000000 || snap.Messages[4].EmailID != was.EmailID {
		t.Errorf("%+v", snap.Messages)
	}
	if c, err := s.open("Old").Changes(t.Context(), 0); err != nil || !slices.Equal(c.Expunged, []mailbox.UID{1}) {
		t.Errorf("%+v, %v", c, err)
	}
	if !strings.Contains(s.logs.String(), ".Sent") {
		t.Error("nothing is logged about the folder that is not ours")
	}
	// It stays so.
	before := s.texts("INBOX")
	s.reopen(nil)
	s.want("INBOX", before...)
	s.reopen(func() { s.must(os.Remove(s.path("new", "1500000000.a.host"))) })
	s.want("INBOX", slices.Delete(before, 2, 3)...)
}

// After a crash the log is right about flags, not the names of files.
func TestFlagsAfterCrash(t *testing.T) {
	s := newSpot(t)
	s.deliver("one", mailbox.DeliverOptions{Flags: []mailbox.Flag{mailbox.Seen}})
	s.reopen(func() {
		// Without its last record, the mark of a clean end, the log is that of a crash.
		fi, err := os.Stat(s.path(journalName))
		s.must(err)
		s.must(os.Truncate(s.path(journalName), fi.Size()-1))
		f := s.files("cur")[0]
		s.must(os.Rename(s.path(f), s.path("new", strings.TrimSuffix(filepath.Base(f), string(infoSep)+"2,S"))))
	})
	s.want("INBOX", `1 one [\Seen]`)
	if f := s.files("cur"); len(f) != 1 || !strings.HasSuffix(f[0], "2,S") {
		t.Errorf("file is %q", f)
	}
}

func TestLostLog(t *testing.T) {
	for name, lose := range map[string]func(s *spot){
		"lost":    func(s *spot) { s.must(os.Remove(s.path(journalName))) },
		"damaged": (*spot).damage,
		"empty":   func(s *spot) { s.must(os.WriteFile(s.path(journalName), nil, 0o600)) },
		"foreign": func(s *spot) {
			s.must(os.WriteFile(s.path(journalName), []byte(strings.Repeat("not a log", 100)), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpot(t)
			long := strings.Repeat("Ö", 200)
			for i := range 5 {
				s.deliver(fmt.Sprint("message ", i), mailbox.DeliverOptions{Mailboxes: []string{"INBOX", "a/b", long}, Create: true, Flags: []mailbox.Flag{mailbox.Seen, "tag"}, ID: fmt.Sprint(i)})
			}
			m := s.open("INBOX")
			_, err := m.CopyTo(t.Context(), []mailbox.UID{1}, "a/b")
			s.must(err)
			_, err = m.Expunge(t.Context(), []mailbox.UID{1, 2}, mailbox.ExpungeOptions{Any: true})
			s.must(err)
			for range 2 {
				list, err := s.acct.Mailboxes(t.Context())
				s.must(err)
				s.reopen(func() { lose(s) })
				for _, was := range list {
					is := s.snapshot(was.Name).Info
					if is.UIDValidity <= was.UIDValidity || is.ID == was.ID || is.Messages != was.Messages {
						t.Errorf("%+v, was %+v", is, was)
					}
				}
			}
			var got []string
			for _, text := range s.texts("INBOX") {
				got = append(got, text[2:])
			}
			slices.Sort(got) // the order is that of arrival, but to the millisecond only
			if want := []string{`message 2 [\Seen]`, `message 3 [\Seen]`, `message 4 [\Seen]`}; !slices.Equal(got, want) {
				t.Errorf("INBOX has %q, want %q", got, want)
			}
			if n := len(s.texts("a/b")); n != 6 {
				t.Errorf("a/b has %d messages", n)
			}
			if n := len(s.texts(long)); n != 5 {
				t.Errorf("the mailbox with the long name has %d messages", n)
			}
			// Deliveries are still recognised.
			if c := s.deliver("message 4", mailbox.DeliverOptions{ID: "4"}); !c[0].Repeated {
				t.Error("a repeated delivery is a new message")
			}
			if name != "lost" {
				if _, err := os.Stat(s.path(journalName + ".damaged")); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A log of a newer program is not touched.
func TestNewerLog(t *testing.T) {
	s := newSpot(t)
	s.must(s.store.Close())
	s.must(os.Remove(s.path(journalName)))
	o := journalOptions()
	o.Version++
	l, err := durable.CreateLog(durable.OS{}, s.path(journalName), o)
	s.must(err)
	s.must(l.Close())
	st, err := Open(s.dir, nil)
	s.must(err)
	defer st.Close()
	var newer *durable.VersionError
	if _, err := st.Account(t.Context(), "ann"); !errors.As(err, &newer) {
		t.Errorf("error %v", err)
	}
}

// What a crash leaves lying around goes.
func TestLeftovers(t *testing.T) {
	s := newSpot(t)
	s.deliver("one", mailbox.DeliverOptions{})
	s.reopen(func() {
		s.write("half", "tmp", "01X"+tmpSuffix)
		s.write("theirs, fresh", "tmp", "1.fresh")
		s.write("theirs, old", "tmp", "1.old")
		old := time.Now().Add(-48 * time.Hour)
		s.must(os.Chtimes(s.path("tmp", "1.old"), old, old))
		s.write("deleted", trashPrefix+"x", "cur", "1.a")
		s.write("new log", newJournal)
	})
	if got := s.files("tmp"); !slices.Equal(got, []string{"tmp/1.fresh"}) {
		t.Errorf("tmp has %q", got)
	}
	for _, n := range []string{trashPrefix + "x", newJournal} {
		if _, err := os.Stat(s.path(n)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", n, err)
		}
	}
	s.want("INBOX", `1 one []`)
}

// The log does not grow without end, and nothing is lost when it is written anew.
func TestCompaction(t *testing.T) {
	d := &durabletest.Disk{}
	s, a, err := openAccount(t, d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := a.Deliver(t.Context(), mailspine.StringContent(scriptText(1)), mailbox.DeliverOptions{Mailboxes: []string{"INBOX", "a"}, Create: true, ID: "x"}); err != nil {
		t.Fatal(err)
	}
	m, err := a.Open(t.Context(), "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	for i := range mailbox.MaxKeywords {
		if _, err := m.SetFlags(t.Context(), []mailbox.UID{1}, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Flag(fmt.Sprintf("keyword%d%s", i, strings.Repeat("x", 100)))}}); err != nil {
			t.Fatal(err)
		}
	}
	var largest int64
	for i := range 1000 {
		op := []mailbox.FlagOp{mailbox.AddFlags, mailbox.RemoveFlags}[i%2]
		if _, err := m.SetFlags(t.Context(), []mailbox.UID{1}, mailbox.FlagChange{Op: op, Flags: []mailbox.Flag{mailbox.Seen}}); err != nil {
			t.Fatal(err)
		}
		fi, err := d.Stat("/mail/ann/" + journalName)
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, fi.Size())
	}
	fi, err := d.Stat("/mail/ann/" + journalName)
	if err != nil || largest < compactMin-20_000 || largest > compactMin+20_000 || fi.Size() >= largest {
		t.Errorf("the log grew to %d octets, and has %d (%v)", largest, fi.Size(), err)
	}
	was, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, a, err = openAccount(t, d)
	if err != nil {
		t.Fatal(err)
	}
	m, err = a.Open(t.Context(), "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	is, err := m.Snapshot(t.Context())
	if err != nil || is.Info != was.Info || !slices.Equal(is.Messages[0].Flags, was.Messages[0].Flags) {
		t.Errorf("%+v, was %+v (%v)", is, was, err)
	}
	if c, err := a.Deliver(t.Context(), mailspine.StringContent("x"), mailbox.DeliverOptions{ID: "x"}); err != nil || !c.Copies[0].Repeated {
		t.Errorf("a repeated delivery: %+v, %v", c, err)
	}
}

// A full disk is 452, leaves nothing half-stored, and is forgotten when there is
// room again.
func TestDiskFull(t *testing.T) {
	d := &durabletest.Disk{}
	s, a, err := openAccount(t, d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	msg := mailspine.StringContent(scriptText(1))
	n := int64(0)
	d.SetLimit(d.Used() + 20_000)
	for {
		before := d.Used()
		_, err := a.Deliver(t.Context(), msg, mailbox.DeliverOptions{Mailboxes: []string{"INBOX"}})
		if err == nil {
			if n++; n > 100 {
				t.Fatal("the disk does not fill")
			}
			continue
		}
		if st := mailspine.Status(err); st.Code != 452 || st.Enhanced != (mailspine.EnhancedCode{4, 3, 1}) || strings.Contains(st.Reply(), "mail/") {
			t.Errorf("error %v: %v", err, st.Reply())
		}
		if d.Used() != before {
			t.Errorf("a delivery that failed leaves %d octets", d.Used()-before)
		}
		break
	}
	check := func() {
		t.Helper()
		q, err := a.Quota(t.Context())
		if err != nil || q.Messages != n || q.Bytes != n*msg.Size() {
			t.Errorf("quota is %+v (%v) after %d messages", q, err, n)
		}
		if list, err := d.ReadDir("/mail/ann/tmp"); err != nil || len(list) != 0 {
			t.Errorf("tmp has %v, %v", list, err)
		}
		if list, err := d.ReadDir("/mail/ann/new"); err != nil || int64(len(list)) != n {
			t.Errorf("new has %d files, %v; want %d", len(list), err, n)
		}
	}
	check()
	// Reading and tidying up go on.
	m, err := a.Open(t.Context(), "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := m.Body(t.Context(), 1); err != nil {
		t.Error(err)
	} else {
		b.Close()
	}
	d.SetLimit(0)
	if _, err := a.Deliver(t.Context(), msg, mailbox.DeliverOptions{}); err != nil {
		t.Errorf("with room again: %v", err)
	}
	n++
	check()
}

// Names of users and mailboxes never lead out of the store.
func TestNamesStayInside(t *testing.T) {
	s := newSpot(t)
	outside := filepath.Dir(s.dir)
	for _, user := range []string{"..", "../x", "/tmp/x", "a/../../x", ".", "x/new/y", "..\\x"} {
		a, err := s.store.Account(t.Context(), user)
		s.must(err)
		for _, box := range []string{"a", "...", "a\\..\\b", "..x/y..", "new", "cur"} {
			_, err := a.Deliver(t.Context(), mailspine.StringContent("x"), mailbox.DeliverOptions{Mailboxes: []string{box}, Create: true})
			s.must(err)
		}
	}
	list, err := os.ReadDir(outside)
	s.must(err)
	if len(list) != 1 {
		t.Errorf("beside the store there is %v", list)
	}
	list, err = os.ReadDir(s.dir)
	s.must(err)
	if len(list) != 9 { // the users, ann, and the lock
		t.Errorf("the store has %v", list)
	}
	for _, e := range list {
		if e.Name() != ".lock" && (e.Name()[0] == '.' || !e.IsDir()) {
			t.Errorf("the store has %q", e.Name())
		}
	}
}

// Without hard links there are copies.
func TestNoHardLinks(t *testing.T) {
	f := &durabletest.Faults{FS: &durabletest.Disk{}}
	f.Set(func(c durabletest.Call) error {
		if c.Op == durabletest.Link {
			return errors.ErrUnsupported
		}
		return nil
	})
	s, a, err := openAccount(t, f)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n, want, _ := runScript(t, a, script())
	if n != len(script()) {
		t.Errorf("%s failed", script()[n].name)
	}
	if got, _ := look(t, a); got.String() != want.String() {
		t.Errorf("%v, want %v", got, want)
	}
}
