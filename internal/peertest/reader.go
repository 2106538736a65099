package peertest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A Mailbox says how a mail program finds the mailboxes of a user. Passwords
// go into configuration files of mode 0600, as they do in life.
type Mailbox struct {
	Addr           string // of the server, 127.0.0.1:port
	User, Password string
	CAFile         string // the certificate to trust, which is valid for 127.0.0.1 and localhost
	Implicit       bool   // TLS from the start; false: STARTTLS or STLS, required
}

// configure writes a configuration file into a new directory.
func configure(t testing.TB, name, text string) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, file
}

func (m Mailbox) port(t testing.TB) string {
	t.Helper()
	_, port, err := net.SplitHostPort(m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func choose(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}

// Mbsync synchronises all mailboxes of an account with a directory of Maildirs,
// messages, flags, deletions and new mailboxes both ways. It returns what mbsync
// says. The state of the synchronisation is in the Maildirs.
func Mbsync(t testing.TB, m Mailbox, dir string) (string, error) {
	t.Helper()
	mbsync := Need(t, "mbsync")
	// It compares host names with names only, not with addresses.
	_, rc := configure(t, "mbsyncrc", fmt.Sprintf(`IMAPAccount server
Host localhost
Port %s
User %q
Pass %q
SSLType %s
SystemCertificates no
CertificateFile %q
AuthMechs LOGIN
Timeout 60

IMAPStore far
Account server

MaildirStore near
Path %q
Inbox %q
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Both
Remove Both
Expunge Both
SyncState *
`, m.port(t), m.User, m.Password, choose(m.Implicit, "IMAPS", "STARTTLS"), m.CAFile, dir+"/", filepath.Join(dir, "INBOX")))
	return Run(t, "", mbsync, "-V", "-c", rc, "-a")
}

// Mpop fetches by POP3 into a Maildir, which is made, and leaves the messages on the
// server if keep is set.
func Mpop(t testing.TB, m Mailbox, maildir string, keep bool) (string, error) {
	t.Helper()
	mpop := Need(t, "mpop")
	dir := t.TempDir()
	for _, sub := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(maildir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	_, rc := configure(t, "mpoprc", fmt.Sprintf(`account server
host 127.0.0.1
port %s
user %s
password %s
auth plain
tls on
tls_starttls %s
tls_trust_file %s
timeout 60
delivery maildir %s
uidls_file %s
keep %s
`, m.port(t), m.User, m.Password, choose(m.Implicit, "off", "on"), m.CAFile, maildir, filepath.Join(dir, "uidls"), choose(keep, "on", "off")))
	return Run(t, "", mpop, "-C", rc, "server")
}

// Fetchmail fetches by a protocol ("imap" or "pop3") and appends the messages to a
// file. keep leaves them on the server.
func Fetchmail(t testing.TB, m Mailbox, protocol, file string, keep bool) (string, error) {
	t.Helper()
	fetchmail := Need(t, "fetchmail")
	dir, rc := configure(t, "fetchmailrc", fmt.Sprintf(`set no bouncemail
set no syslog
poll localhost protocol %s service %s timeout 60
	user %q password %q
	%s sslproto %q sslcertck sslcertfile %q
	mda "cat >>%s" %s no rewrite
`, protocol, m.port(t), m.User, m.Password, choose(m.Implicit, "ssl", "no ssl"), choose(m.Implicit, "auto", "tls1.2+"), m.CAFile, file, choose(keep, "keep", "no keep fetchall")))
	return Run(t, "", "env", "FETCHMAILHOME="+dir, "HOME="+dir, fetchmail, "--nodetach", "-v", "-f", rc)
}
