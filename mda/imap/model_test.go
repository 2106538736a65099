package imap

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/maildir"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// A seen is the mailbox as a client knows it, by untagged replies alone.
type seen struct {
	*client
	uids  []int          // 0: not known
	flags map[int]string // by UID
}

// guess does with flags what a STORE without a reply does, as far as a client can tell (RFC 9051 section 6.4.6).
func (s *seen) guess(uid int, op, flag string) {
	known, ok := s.flags[uid]
	if !ok {
		return
	}
	flags := strings.Fields(known)
	i := slices.Index(flags, flag)
	switch {
	case op == "":
		flags = []string{flag}
	case op == "+" && i < 0:
		flags = append(flags, flag)
		slices.Sort(flags)
	case op == "-" && i >= 0:
		flags = slices.Delete(flags, i, i+1)
	}
	s.flags[uid] = strings.Join(flags, " ")
}

// run says a command and takes in what comes with it. Numbers may not move unless they may.
func (s *seen) run(t *rapid.T, command string) (tagged string) {
	untagged, tagged := s.do(command)
	verb := strings.Fields(command)[0]
	for _, line := range untagged {
		f := strings.SplitN(line, " ", 4)
		n, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		switch f[2] {
		case "EXISTS":
			if n < len(s.uids) {
				t.Fatalf("%s: %d messages instead of %d", command, n, len(s.uids))
			}
			for len(s.uids) < n {
				s.uids = append(s.uids, 0)
			}
		case "EXPUNGE":
			if verb == "FETCH" || verb == "STORE" || verb == "SEARCH" {
				t.Fatalf("%s: %s", command, line)
			}
			if n < 1 || n > len(s.uids) {
				t.Fatalf("%s: %s, of %d", command, line, len(s.uids))
			}
			s.uids = slices.Delete(s.uids, n-1, n)
		case "FETCH":
			if n < 1 || n > len(s.uids) {
				t.Fatalf("%s: %s, of %d", command, line, len(s.uids))
			}
			var uid int
			if i := strings.Index(line, "UID "); i >= 0 {
				fmt.Sscanf(line[i:], "UID %d", &uid)
				if old := s.uids[n-1]; old != 0 && old != uid {
					t.Fatalf("%s: %s, which was UID %d", command, line, old)
				}
				s.uids[n-1] = uid
			} else {
				uid = s.uids[n-1]
			}
			if i := strings.Index(line, "FLAGS ("); i >= 0 && uid != 0 {
				s.flags[uid] = line[i+7 : i+strings.IndexByte(line[i:], ')')]
			}
		}
	}
	return tagged
}

// Sessions do what they like; after NOOP, each knows what there is.
func TestSessionsModel(t *testing.T) {
	// So few tombstones that sessions have to begin anew now and then.
	t.Run("memory", func(t *testing.T) {
		sessionsModel(t, newBenchOn(t, memory.New(&memory.Options{MaxTombs: 3}), nil), 10_000)
	})
	t.Run("maildir", func(t *testing.T) {
		store, err := maildir.Open(t.TempDir(), &maildir.Options{MaxTombs: 3})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() }) // after the bench's
		sessionsModel(t, newBenchOn(t, store, nil), 15)
	})
}

func sessionsModel(t *testing.T, b *bench, rounds int) {
	for _, name := range []string{"A", "B"} {
		if err := b.account.Create(t.Context(), name, mailbox.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		if n++; n > rounds || testing.Short() && n > 20 { // each change of a Maildir is synced
			return
		}
		box := b.box("A")
		if _, err := box.Expunge(t.Context(), allUIDs(t, box), mailbox.ExpungeOptions{Any: true}); err != nil {
			rt.Fatal(err)
		}
		add := func() {
			if _, err := box.Append(t.Context(), mailspine.StringContent(letter), mailbox.AppendOptions{}); err != nil {
				rt.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 4).Draw(rt, "messages") {
			add()
		}
		var all []*seen
		for range 3 {
			s := &seen{client: b.session(), flags: map[int]string{}}
			s.run(rt, "SELECT A")
			s.run(rt, "UID FETCH 1:* FLAGS")
			all = append(all, s)
		}
		defer func() {
			for _, s := range all {
				s.nc.Close()
			}
		}()
		for range rapid.SampledFrom([]int{3, 10, 50}).Draw(rt, "steps") {
			s := rapid.SampledFrom(all).Draw(rt, "session")
			uid := "1:*"
			if n := len(s.uids); n > 0 {
				uid = strconv.Itoa(s.uids[rapid.IntRange(0, n-1).Draw(rt, "which")])
				if uid == "0" {
					uid = "*"
				}
			}
			flag := rapid.SampledFrom([]string{`\Seen`, `\Deleted`, `\Flagged`, "work"}).Draw(rt, "flag")
			store := rapid.SampledFrom([]string{"+", "-", ""}).Draw(rt, "change") + "FLAGS (" + flag + ")"
			command := rapid.SampledFrom([]string{
				"UID STORE " + uid + " " + store, "NOOP", "UID STORE " + uid + " " + store, "deliver", "UID STORE " + uid + " " + store, "FETCH 1 BODY[]", "UID STORE " + uid + " " + store, "EXPUNGE",
				"UID STORE 1:* " + store, "UID FETCH 1:* FLAGS", "UID EXPUNGE " + uid, "UID MOVE " + uid + " B", "UID MOVE " + uid + " A", "MOVE 1 A", "UID COPY " + uid + " A", "APPEND A {1+}\r\nx", "FETCH 1:* FLAGS", "SEARCH ALL",
			}).Draw(rt, "command")
			switch {
			case command == "deliver":
				add()
			case strings.HasSuffix(command, store) && rapid.Bool().Draw(rt, "silent"):
				// The client works out the flags by itself, of what it knows.
				n, err := strconv.Atoi(strings.Fields(command)[2])
				if err == nil {
					s.guess(n, strings.TrimSuffix(store, "FLAGS ("+flag+")"), flag)
				}
				s.run(rt, strings.Replace(command, "FLAGS (", "FLAGS.SILENT (", 1))
				if err != nil {
					s.run(rt, "UID FETCH 1:* FLAGS")
				}
			default:
				s.run(rt, command)
			}
		}
		snap, err := box.Snapshot(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		want := map[int]string{}
		var uids []int
		for _, m := range snap.Messages {
			uids = append(uids, int(m.UID))
			var f []string
			for _, x := range m.Flags {
				f = append(f, string(x))
			}
			want[int(m.UID)] = strings.Join(f, " ")
		}
		for i, s := range all {
			if tagged := s.run(rt, "NOOP"); !strings.HasPrefix(tagged, "OK") {
				rt.Fatal(tagged)
			}
			if len(s.uids) != len(uids) {
				rt.Fatalf("session %d knows %d messages, not %d", i, len(s.uids), len(uids))
			}
			for j, uid := range s.uids { // what it was not told of has no flags that it could know
				if uid != 0 && uid != uids[j] {
					rt.Fatalf("session %d has %v, not %v", i, s.uids, uids)
				}
				if known, ok := s.flags[uid]; ok && known != want[uid] {
					rt.Fatalf("session %d: UID %d has (%s), not (%s)", i, uid, known, want[uid])
				}
			}
		}
	})
}

// Whatever is said after a login, the server answers in lines, and ends when the client does.
func FuzzCommands(f *testing.F) {
	for _, s := range []string{
		"a SELECT INBOX\r\nb FETCH 1:* (FLAGS BODYSTRUCTURE ENVELOPE BODY.PEEK[1.2.MIME]<0.3>)\r\n", "a IDLE\r\nDONE\r\n", "a IDLE\r\nx\r\n",
		"a APPEND INBOX (\\Seen) {3+}\r\nabc\r\nb SELECT INBOX\r\nc UID SEARCH RETURN (SAVE) OR SEEN NOT (TEXT {2+}\r\nab FROM \"x\")\r\nd UID STORE $ +FLAGS (a)\r\ne CLOSE\r\n",
		"a LIST (SUBSCRIBED) \"\" (% *) RETURN (STATUS (MESSAGES))\r\nb CREATE x (USE (\\Sent))\r\nc RENAME x y\r\nd DELETE y\r\n", "a FETCH {99999+}\r\n", "\r\n\r\n\x00\r\n",
	} {
		f.Add(s)
	}
	log := make(lineWriter, 1000)
	b := newBench(f, func(s *Server) {
		s.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelError}))
	})
	f.Fuzz(func(t *testing.T, s string) {
		b := *b
		b.t = t
		c := b.session()
		if _, err := b.box("INBOX").Expunge(t.Context(), nil, mailbox.ExpungeOptions{All: true, Any: true}); err != nil {
			t.Fatal(err)
		}
		b.add("INBOX", mixed)
		go func() {
			c.nc.Write([]byte(s + "\r\n"))
			if tc, ok := c.nc.(interface{ CloseWrite() error }); ok {
				tc.CloseWrite()
			}
		}()
		var out strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := c.r.Read(buf)
			out.Write(buf[:n])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("no end after %q: %q", s, out.String())
			}
			if err != nil {
				break
			}
		}
		c.nc.Close()
		select {
		case line := <-log:
			t.Fatalf("%q: %s", s, line)
		default:
		}
		if o := out.String(); o != "" && !strings.HasSuffix(o, "\r\n") {
			t.Errorf("the answers to %q end with %q", s, o[max(0, len(o)-40):])
		}
	})
}
