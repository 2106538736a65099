package peertest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A PostfixConfig says how a private Postfix is set up. The zero value accepts
// mail for no domain and relays nothing.
type PostfixConfig struct {
	Hostname string            // myhostname; "": postfix.example
	Domains  []string          // domains delivered into Mail, whatever the local part
	Relay    string            // host:port to which everything else is sent; "": nowhere
	Settings map[string]string // more of main.cf
}

// A Postfix is a running instance.
type Postfix struct {
	Addr string // where it accepts mail, 127.0.0.1:port
	Mail string // the Maildir of all its Domains
	dir  string
}

// StartPostfix runs a Postfix of its own, which ends with the test. It needs root,
// and Debian's package.
func StartPostfix(t testing.TB, c PostfixConfig) *Postfix {
	t.Helper()
	postfix := Need(t, "postfix")
	NeedRoot(t, "Postfix")
	// Not t.TempDir, whose parents nobody else can enter.
	dir, err := os.MkdirTemp("", "mailspine-postfix-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	for _, d := range []string{"etc", "spool", "data", "mail"} {
		must(os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	owner := func(name string) (int, int) {
		u, err := user.Lookup(name)
		must(err)
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		return uid, gid
	}
	uid, gid := owner("postfix")
	must(os.Chown(filepath.Join(dir, "data"), uid, gid))
	nuid, ngid := owner("nobody")
	must(os.Chown(filepath.Join(dir, "mail"), nuid, ngid))

	p := &Postfix{Addr: "127.0.0.1:" + FreePort(t), Mail: filepath.Join(dir, "mail", "box"), dir: dir}
	if c.Hostname == "" {
		c.Hostname = "postfix.example"
	}
	main := map[string]string{
		"compatibility_level": "3.6", "config_directory": dir + "/etc", "queue_directory": dir + "/spool",
		"data_directory": dir + "/data", "command_directory": "/usr/sbin", "daemon_directory": "/usr/lib/postfix/sbin",
		"mail_owner": "postfix", "setgid_group": "postdrop", "myhostname": c.Hostname, "mydestination": "",
		"inet_interfaces": "127.0.0.1", "inet_protocols": "ipv4", "mynetworks": "127.0.0.0/8",
		"smtpd_relay_restrictions": "permit_mynetworks, reject", "smtpd_peername_lookup": "no",
		"alias_maps": "", "alias_database": "", "local_recipient_maps": "",
		"smtp_host_lookup": "native", "disable_dns_lookups": "yes",
		"smtp_tls_security_level": "may", "maillog_file": dir + "/log", "maillog_file_prefixes": dir,
		"virtual_mailbox_domains": strings.Join(c.Domains, ", "), "virtual_mailbox_base": dir + "/mail",
		"virtual_mailbox_maps": "static:box/", "virtual_minimum_uid": "1",
		"virtual_uid_maps": "static:" + strconv.Itoa(nuid), "virtual_gid_maps": "static:" + strconv.Itoa(ngid),
		// A test does not wait five minutes for a retry.
		"minimal_backoff_time": "1s", "maximal_backoff_time": "2s", "queue_run_delay": "1s",
	}
	if c.Relay != "" {
		host, port, err := net.SplitHostPort(c.Relay)
		must(err)
		main["relayhost"] = "[" + host + "]:" + port
	} else {
		main["default_transport"] = "error:no relay in this test"
	}
	for k, v := range c.Settings {
		main[k] = v
	}
	var b strings.Builder
	for k, v := range main {
		fmt.Fprintf(&b, "%s = %s\n", k, v)
	}
	must(os.WriteFile(filepath.Join(dir, "etc", "main.cf"), []byte(b.String()), 0o644))
	must(os.WriteFile(filepath.Join(dir, "etc", "master.cf"), []byte(p.Addr+` inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
`), 0o644))
	if out, err := withoutDNS(postfix, "-c", dir+"/etc", "start").CombinedOutput(); err != nil {
		t.Fatalf("postfix start: %v\n%s\n%s", err, out, p.Log())
	}
	t.Cleanup(func() {
		// Addresses only this instance's master, by its pid file.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		exec.CommandContext(ctx, postfix, "-c", dir+"/etc", "stop").Run()
		if t.Failed() {
			t.Logf("Postfix's log:\n%s", p.Log())
		}
	})
	return p
}

// withoutDNS is a command whose resolver is 127.0.0.1 and nobody else, where
// mount namespaces can be had; Postfix's configuration already asks for no look-up.
func withoutDNS(program string, args ...string) *exec.Cmd {
	unshare, err := exec.LookPath("unshare")
	if err != nil || exec.Command(unshare, "-m", "true").Run() != nil {
		return exec.Command(program, args...)
	}
	const script = `f=$(mktemp) && echo "nameserver 127.0.0.1" >"$f" && chmod 644 "$f" && mount --bind "$f" /etc/resolv.conf && rm -f "$f"
exec "$@"`
	return exec.Command(unshare, append([]string{"-m", "sh", "-c", script, "sh", program}, args...)...)
}

// Log returns what the instance has logged so far.
func (p *Postfix) Log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return string(b)
}

// Messages waits until n messages arrived in Mail, at most a minute, and
// returns what is there.
func (p *Postfix) Messages(t testing.TB, n int) []string {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		files, _ := filepath.Glob(filepath.Join(p.Mail, "new", "*"))
		if len(files) >= n || time.Now().After(deadline) {
			var msgs []string
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				msgs = append(msgs, string(b))
			}
			if len(msgs) < n {
				t.Fatalf("%d messages after a minute, want %d", len(msgs), n)
			}
			return msgs
		}
		// A program without any means to tell us; the only way is to look again.
		time.Sleep(50 * time.Millisecond)
	}
}
