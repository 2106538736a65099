package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/internal/peertest"
)

// filled is a server whose bob has messages.
func filled(t *testing.T, subjects ...string) *process {
	t.Helper()
	p := start(t, t.TempDir(), defaults()...)
	for _, s := range subjects {
		if err := p.write(s, "bob@example.test"); err != nil {
			t.Fatal(err)
		}
		p.with("bob@example.test", "", s) // one after the other, so that they are in order
	}
	return p
}

// curl runs curl for bob; more are its options.
func (p *process) curl(t *testing.T, url string, more ...string) (string, error) {
	t.Helper()
	return peertest.Run(t, "", peertest.Need(t, "curl"), append([]string{"-sS", "--url", url, "--ssl-reqd", "--cacert", p.ca(), "--user", "bob:swordfish"}, more...)...)
}

func (p *process) imap(t *testing.T, request string) string {
	t.Helper()
	out, err := p.curl(t, "imaps://"+p.addr["imaps"]+"/INBOX", "-X", request)
	if err != nil {
		t.Fatalf("%s: %v\n%s", request, err, out)
	}
	return out
}

// All users can log in in all protocols, with TLS from the start and without, under both forms of
// their names; and nobody else can.
func TestLogins(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir(), defaults()...)
	t.Cleanup(p.stop)
	for _, service := range []string{"submission", "submissions", "imap", "imaps", "pop3", "pop3s"} {
		for _, c := range []struct {
			login string
			ok    bool
		}{
			{"ann:hunter2", true}, {"ann@example.test:hunter2", true}, {"bob:swordfish", true}, {"Bob@EXAMPLE.test:swordfish", true},
			{"bob:hunter2", false}, {"bob@example.org:swordfish", false}, {"eve:hunter2", false},
		} {
			if !c.ok && !strings.HasSuffix(service, "s") && c.login != "bob:hunter2" {
				continue // the answer to each takes a second
			}
			t.Run(service+" "+c.login, func(t *testing.T) {
				t.Parallel()
				scheme := map[string]string{"submission": "smtp", "submissions": "smtps"}[service]
				if scheme == "" {
					scheme = service
				}
				args := []string{"-v", "--url", scheme + "://" + p.addr[service] + "/", "--ssl-reqd", "--cacert", p.ca(), "--user", c.login}
				if scheme[0] == 's' {
					args = append(args, "-X", "NOOP")
				}
				out, err := peertest.Run(t, "", peertest.Need(t, "curl"), args...)
				if (err == nil) != c.ok || !c.ok && !strings.Contains(out, "denied") {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
	for _, service := range []string{"imap", "pop3"} {
		t.Run(service+" without TLS", func(t *testing.T) {
			out, err := peertest.Run(t, "", peertest.Need(t, "curl"), "-v", "--url", service+"://"+p.addr[service]+"/", "--user", "ann:hunter2")
			if err == nil {
				t.Errorf("logged in in the clear\n%s", out)
			}
		})
	}
}

// What was delivered is read back octet for octet over IMAP and over POP3.
func TestReadCurl(t *testing.T) {
	t.Parallel()
	p := filled(t, "one", "two")
	t.Cleanup(p.stop)
	stored := p.with("bob@example.test", "", "two")
	for _, c := range []struct{ name, url string }{
		{"IMAPS", "imaps://" + p.addr["imaps"] + "/INBOX;UID=2"}, {"IMAP STARTTLS", "imap://" + p.addr["imap"] + "/INBOX;UID=2"},
		{"POP3S", "pop3s://" + p.addr["pop3s"] + "/2"}, {"POP3 STLS", "pop3://" + p.addr["pop3"] + "/2"},
	} {
		out, err := p.curl(t, c.url)
		if err != nil || out != stored {
			t.Errorf("%s: %v, got\n%q\nwant\n%q", c.name, err, out, stored)
		}
	}
	// Mail programs find where to put what.
	out, err := p.curl(t, "imaps://"+p.addr["imaps"]+"/", "-X", `LIST (SPECIAL-USE) "" "*"`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, use := range []string{`\Drafts`, `\Junk`, `\Sent`, `\Trash`} {
		if !strings.Contains(out, use) {
			t.Errorf("no mailbox with %s in\n%s", use, out)
		}
	}
	out, err = p.curl(t, "pop3s://"+p.addr["pop3s"]+"/")
	if err != nil || len(strings.Fields(out)) != 4 {
		t.Errorf("LIST: %v\n%s", err, out)
	}
}

// files are the messages of a Maildir of mbsync.
func files(t *testing.T, maildir string) []string {
	t.Helper()
	var all []string
	for _, sub := range []string{"new", "cur"} {
		list, err := filepath.Glob(filepath.Join(maildir, sub, "*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
	}
	return all
}

func holding(t *testing.T, files []string, subject string) string {
	t.Helper()
	i := slices.IndexFunc(files, func(f string) bool {
		b, err := os.ReadFile(f)
		return err == nil && strings.Contains(string(b), "\nSubject: "+subject+"\n")
	})
	if i < 0 {
		t.Fatalf("no %q in %v", subject, files)
	}
	return files[i]
}

// mbsync synchronises: messages, flags both ways, deletions, mailboxes; and then has nothing to do.
func TestMbsync(t *testing.T) {
	t.Parallel()
	p := filled(t, "one", "two", "three")
	t.Cleanup(p.stop)
	near := t.TempDir()
	inbox := filepath.Join(near, "INBOX")
	sync := func(m peertest.Mailbox) string {
		t.Helper()
		m.Password, m.CAFile = "swordfish", p.ca()
		out, err := peertest.Mbsync(t, m, near)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	implicit := peertest.Mailbox{Addr: p.addr["imaps"], User: "bob", Implicit: true}
	sync(peertest.Mailbox{Addr: p.addr["imap"], User: "bob@example.test"})
	got := files(t, inbox)
	if len(got) != 3 {
		t.Fatalf("three messages, and mbsync has %v", got)
	}
	for _, name := range []string{"Drafts", "Sent"} {
		if _, err := os.Stat(filepath.Join(near, name, "cur")); err != nil {
			t.Error(err)
		}
	}

	// Here one is read and three is deleted; there two is flagged; and a new message is sent.
	mark := func(subject, flags string) {
		t.Helper()
		f := holding(t, got, subject)
		base, _, _ := strings.Cut(filepath.Base(f), ":")
		if err := os.Rename(f, filepath.Join(inbox, "cur", base+":2,"+flags)); err != nil {
			t.Fatal(err)
		}
	}
	mark("one", "S")
	mark("three", "T")
	p.imap(t, `UID STORE 2 +FLAGS.SILENT (\Flagged)`)
	if err := os.WriteFile(filepath.Join(near, "Sent", "cur", "1.new.here:2,S"), []byte("Subject: sent\n\nHello.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sync(implicit)
	flags := p.imap(t, "UID FETCH 1:* (FLAGS)")
	for _, want := range []string{`UID 1 [^\r\n]*\\Seen|\\Seen[^\r\n]*UID 1\b`, `UID 2 [^\r\n]*\\Flagged|\\Flagged[^\r\n]*UID 2\b`} {
		if !regexp.MustCompile(want).MatchString(flags) {
			t.Errorf("not %s in\n%s", want, flags)
		}
	}
	if strings.Contains(flags, "UID 3") {
		t.Errorf("three is still there:\n%s", flags)
	}
	got = files(t, inbox)
	if f := holding(t, got, "two"); !regexp.MustCompile(`:2,F$`).MatchString(f) || len(got) != 2 {
		t.Errorf("two is not flagged in %v", got)
	}
	if sent := p.mailbox("bob@example.test", "Sent"); len(sent) != 1 || !strings.Contains(sent[0], "Hello.") {
		t.Errorf("Sent has %q", sent)
	}

	before := slices.Concat(files(t, inbox), files(t, filepath.Join(near, "Sent")))
	sync(implicit)
	if after := slices.Concat(files(t, inbox), files(t, filepath.Join(near, "Sent"))); !slices.Equal(before, after) {
		t.Errorf("nothing has changed, but\n%v became\n%v", before, after)
	}
}

// mpop and fetchmail fetch, over TLS from the start and over STLS, and empty the mailbox.
func TestFetch(t *testing.T) {
	t.Parallel()
	p := filled(t, "one", "two")
	t.Cleanup(p.stop)
	box := func(service string) peertest.Mailbox {
		return peertest.Mailbox{Addr: p.addr[service], User: "bob@example.test", Password: "swordfish", CAFile: p.ca(), Implicit: strings.HasSuffix(service, "s")}
	}
	type fetch func(m peertest.Mailbox, keep bool) (texts []string, out string, err error)
	mpop := func(m peertest.Mailbox, keep bool) (texts []string, out string, err error) {
		dir := filepath.Join(t.TempDir(), "mail")
		out, err = peertest.Mpop(t, m, dir, keep)
		for _, f := range files(t, dir) {
			b, _ := os.ReadFile(f)
			texts = append(texts, string(b))
		}
		return texts, out, err
	}
	fetchmail := func(protocol string) fetch {
		return func(m peertest.Mailbox, keep bool) (texts []string, out string, err error) {
			file := filepath.Join(t.TempDir(), "mail")
			out, err = peertest.Fetchmail(t, m, protocol, file, keep)
			b, _ := os.ReadFile(file)
			return []string{string(b)}, out, err
		}
	}
	for _, c := range []struct {
		name    string
		fetch   fetch
		service string
		keep    bool
	}{
		{"mpop POP3S", mpop, "pop3s", true},
		{"fetchmail POP3 STLS", fetchmail("pop3"), "pop3", true},
		{"fetchmail POP3S", fetchmail("pop3"), "pop3s", true},
		{"fetchmail IMAPS", fetchmail("imap"), "imaps", true},
		{"mpop POP3 STLS, emptying", mpop, "pop3", false},
	} {
		texts, out, err := c.fetch(box(c.service), c.keep)
		all := strings.Join(texts, "\n")
		if err != nil || !strings.Contains(all, "Subject: one") || !strings.Contains(all, "Subject: two") {
			t.Errorf("%s: %v\n%s\ngot %q", c.name, err, out, texts)
		}
	}
	if left := p.mailbox("bob@example.test", ""); len(left) != 0 {
		t.Errorf("left in the mailbox: %q", left)
	}
	m := box("pop3s")
	m.Password = "wrong"
	if _, out, err := mpop(m, true); err == nil {
		t.Errorf("a wrong password fetches:\n%s", out)
	}
}
