package pop3

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/internal/peertest"
)

// Real mail programs read: over STLS and implicit TLS, keeping messages and removing them.
func TestPeers(t *testing.T) {
	b := newBench(t, func(s *Server) {
		s.Auth = simple("ann@example.org", "hunter2")
	})
	_, stls, _ := net.SplitHostPort(b.plain)
	_, implicit, _ := net.SplitHostPort(b.implicit)
	text := "From: joe@example.org\r\nTo: ann@example.org\r\nSubject: Hello\r\nMessage-ID: <1@example.org>\r\nDate: Mon, 02 Mar 2026 12:00:00 +0000\r\n\r\n.dot\r\n..\r\nGr\u00fc\u00dfe\r\n\r\nlast\r\n"
	body := text[strings.Index(text, "\r\n\r\n"):]

	mpop := func(port, start, keep string) func(t *testing.T) (string, error) {
		return func(t *testing.T) (string, error) {
			dir := t.TempDir()
			conf := filepath.Join(dir, "mpoprc")
			err := os.WriteFile(conf, fmt.Appendf(nil, "account default\nhost 127.0.0.1\nport %s\nuser ann@example.org\npassword hunter2\ntls on\ntls_starttls %s\ntls_trust_file %s\n"+
				"keep %s\nuidls_file %s/uidls\ndelivery mbox %s/mbox\n", port, start, b.cert.CertFile, keep, dir, dir), 0o600)
			if err != nil {
				t.Fatal(err)
			}
			out, err := peertest.Run(t, "", peertest.Need(t, "mpop"), "--file="+conf, "--auth=user")
			if err != nil {
				return out, err
			}
			got, err := os.ReadFile(filepath.Join(dir, "mbox"))
			return string(got), err
		}
	}
	fetchmail := func(port, how, keep string) func(t *testing.T) (string, error) {
		return func(t *testing.T) (string, error) {
			dir := t.TempDir()
			conf, mda := filepath.Join(dir, "fetchmailrc"), filepath.Join(dir, "mbox")
			err := os.WriteFile(conf, fmt.Appendf(nil, "set no bouncemail\npoll localhost protocol POP3 port %s\n user \"ann@example.org\" password \"hunter2\" %s sslcertck sslcertfile %s\n mda \"cat >> %s\" %s\n",
				port, how, b.cert.CertFile, mda, keep), 0o600)
			if err != nil {
				t.Fatal(err)
			}
			// Its home is where it keeps its lock.
			out, err := peertest.Run(t, "", "env", "HOME="+dir, "FETCHMAILHOME="+dir, peertest.Need(t, "fetchmail"), "-v", "-f", conf, "--pidfile", filepath.Join(dir, "pid"))
			if err != nil {
				return out, err
			}
			got, err := os.ReadFile(mda)
			return string(got), err
		}
	}
	curl := func(url string) func(t *testing.T) (string, error) {
		return func(t *testing.T) (string, error) {
			return peertest.Run(t, "", peertest.Need(t, "curl"), "-s", "--url", url, "--ssl-reqd", "--cacert", b.cert.CertFile, "--user", "ann@example.org:hunter2")
		}
	}
	for _, tt := range []struct {
		name string
		run  func(t *testing.T) (string, error)
		left int
	}{
		{"curl STLS", curl("pop3://127.0.0.1:" + stls + "/1"), 1},
		{"curl implicit TLS", curl("pop3s://127.0.0.1:" + implicit + "/1"), 1},
		{"mpop STLS keeps", mpop(stls, "on", "on"), 1},
		{"mpop implicit TLS", mpop(implicit, "off", "off"), 0},
		{"fetchmail STLS keeps", fetchmail(stls, "sslproto TLS1.2+", "keep"), 1},
		{"fetchmail implicit TLS", fetchmail(implicit, "ssl", "no keep"), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if b.count() == 0 {
				b.add(text)
			}
			out, err := tt.run(t)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// The programs have their own line ends, and fetchmail writes a Received field.
			if want := strings.ReplaceAll(body, "\r\n", "\n"); !strings.Contains(strings.ReplaceAll(out, "\r\n", "\n"), strings.TrimRight(want, "\n")) {
				t.Errorf("got %q", out)
			}
			if n := b.count(); n != tt.left {
				t.Errorf("%d messages are left, not %d", n, tt.left)
			}
		})
	}
}
