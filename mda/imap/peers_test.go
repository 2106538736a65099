package imap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/internal/peertest"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// mbsync keeps a Maildir and the server's mailboxes in step, flags and deletions both ways.
func TestMbsync(t *testing.T) {
	mbsync := peertest.Need(t, "mbsync")
	b := newBench(t, nil)
	for name, port := range map[string]string{"STARTTLS": b.plain, "IMAPS": b.implicit} {
		t.Run(name, func(t *testing.T) {
			_, port, _ := net.SplitHostPort(port)
			dir := t.TempDir()
			conf := filepath.Join(dir, "mbsyncrc")
			if err := os.WriteFile(conf, fmt.Appendf(nil, `IMAPAccount a
Host localhost
Port %s
User %s
Pass "%s"
SSLType %s
CertificateFile %s

IMAPStore far
Account a

MaildirStore near
Path %s/mail/
Inbox %s/mail/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Both
Remove Both
Expunge Both
SyncState *
`, port, user, password, name, b.cert.CertFile, dir, dir), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(dir, "mail"), 0o700); err != nil {
				t.Fatal(err)
			}
			sync := func() {
				t.Helper()
				if out, err := peertest.Run(t, "", mbsync, "-c", conf, "-V", "all"); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			// files lists the messages of a Maildir folder: flags of each.
			files := func(folder string) (list []string) {
				t.Helper()
				for _, sub := range []string{"new", "cur"} {
					found, _ := filepath.Glob(filepath.Join(dir, "mail", folder, sub, "*"))
					list = append(list, found...)
				}
				return list
			}
			if err := b.account.Create(t.Context(), "Work", mailbox.CreateOptions{}); err != nil && !errors.Is(err, mailbox.ErrExists) {
				t.Fatal(err)
			}
			inbox, work := b.box("INBOX"), b.box("Work")
			for _, box := range []mailbox.Mailbox{inbox, work} { // what the other run left
				if _, err := box.Expunge(t.Context(), allUIDs(t, box), mailbox.ExpungeOptions{Any: true}); err != nil {
					t.Fatal(err)
				}
			}
			one := b.add("INBOX", letter)
			b.add("INBOX", strings.Replace(letter, "<1@", "<2@", 1), mailbox.Seen)
			b.add("Work", letter, mailbox.Flagged)
			sync()
			if in, wk := files("INBOX"), files("Work"); len(in) != 2 || len(wk) != 1 || !strings.HasSuffix(wk[0], "F") {
				t.Fatalf("after the first sync: %q, %q", in, wk)
			}
			got, err := os.ReadFile(files("Work")[0])
			if err != nil || strings.ReplaceAll(string(got), "\r\n", "\n") != strings.ReplaceAll(letter, "\r\n", "\n") && !strings.Contains(string(got), "how are you?") {
				t.Errorf("%q, %v", got, err)
			}
			// Flags from here to there, and a message written there.
			if _, err := inbox.SetFlags(t.Context(), []mailbox.UID{one}, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Answered, mailbox.Seen}}); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "mail", "INBOX", "cur", "1.new.host:2,FS"), []byte(strings.ReplaceAll(strings.Replace(letter, "<1@", "<3@", 1), "\r\n", "\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			sync()
			if !slices.ContainsFunc(files("INBOX"), func(f string) bool { return strings.HasSuffix(f, ":2,RS") }) {
				t.Errorf("flags did not arrive: %q", files("INBOX"))
			}
			snap, err := inbox.Snapshot(t.Context())
			if err != nil || len(snap.Messages) != 3 || !mailbox.HasFlag(snap.Messages[2].Flags, mailbox.Flagged) || !mailbox.HasFlag(snap.Messages[2].Flags, mailbox.Seen) {
				t.Fatalf("the new message did not arrive: %+v, %v", snap.Messages, err)
			}
			// Flags from there to here, and removals both ways.
			for _, f := range files("INBOX") {
				if strings.HasSuffix(f, ":2,RS") {
					if err := os.Rename(f, strings.TrimSuffix(f, "RS")+"FRS"); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := os.Remove(files("Work")[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := inbox.Expunge(t.Context(), []mailbox.UID{snap.Messages[2].UID}, mailbox.ExpungeOptions{Any: true}); err != nil {
				t.Fatal(err)
			}
			sync()
			snap, err = inbox.Snapshot(t.Context())
			if err != nil || len(snap.Messages) != 2 || !mailbox.HasFlag(snap.Messages[0].Flags, mailbox.Flagged) {
				t.Errorf("%+v, %v", snap.Messages, err)
			}
			if info, err := work.Info(t.Context()); err != nil || info.Messages != 0 {
				t.Errorf("Work has %d messages, %v", info.Messages, err)
			}
			if n := len(files("INBOX")); n != 2 {
				t.Errorf("%d files are left", n)
			}
			// In step: nothing changes any more.
			before, _ := inbox.Info(t.Context())
			names := files("INBOX")
			sync()
			after, _ := inbox.Info(t.Context())
			if before.ModSeq != after.ModSeq || !slices.Equal(names, files("INBOX")) {
				t.Error("another sync changes something")
			}
		})
	}
}

func allUIDs(t *testing.T, box mailbox.Mailbox) (uids []mailbox.UID) {
	t.Helper()
	snap, err := box.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range snap.Messages {
		uids = append(uids, m.UID)
	}
	return uids
}

// curl reads, searches and appends.
func TestCurl(t *testing.T) {
	curl := peertest.Need(t, "curl")
	b := newBench(t, nil)
	b.add("INBOX", letter)
	file := filepath.Join(t.TempDir(), "letter")
	if err := os.WriteFile(file, []byte(letter), 0o600); err != nil {
		t.Fatal(err)
	}
	_, plain, _ := net.SplitHostPort(b.plain)
	_, implicit, _ := net.SplitHostPort(b.implicit)
	for _, base := range []string{"imap://localhost:" + plain, "imaps://localhost:" + implicit} {
		run := func(args ...string) string {
			t.Helper()
			out, err := peertest.Run(t, "", curl, append([]string{"-sS", "--ssl-reqd", "--cacert", b.cert.CertFile, "--user", user + ":" + password}, args...)...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return out
		}
		if got := run("--url", base+"/INBOX;UID=1"); got != letter {
			t.Errorf("%q", got)
		}
		if got := run("--url", base+"/INBOX?SUBJECT%20gr"); !strings.HasPrefix(got, "* SEARCH 1") {
			t.Errorf("%q", got)
		}
		before, _ := b.box("INBOX").Info(t.Context())
		run("--url", base+"/INBOX", "-T", file)
		if after, _ := b.box("INBOX").Info(t.Context()); after.Messages != before.Messages+1 {
			t.Errorf("%d messages after the upload to %d", after.Messages, before.Messages)
		}
	}
}
