package msa_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/peertest"
	"github.com/mailspine/mailspine/msa"
)

// A box keeps what was submitted.
type box struct {
	mu   sync.Mutex
	envs []*mailspine.Envelope
	msgs []string
}

func (b *box) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	text, err := mailspine.ReadContent(ctx, msg, 1<<20)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.envs = append(b.envs, env.Clone())
	b.msgs = append(b.msgs, string(text))
	return nil
}

func (b *box) take(t *testing.T) (*mailspine.Envelope, string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.envs) != 1 {
		t.Fatalf("%d messages were submitted, want 1", len(b.envs))
	}
	env, msg := b.envs[0], b.msgs[0]
	b.envs, b.msgs = nil, nil
	return env, msg
}

// Real mail programs submit: STARTTLS and implicit TLS, PLAIN and LOGIN.
func TestPeers(t *testing.T) {
	cert := peertest.SelfSigned(t)
	users := &msa.MemoryUsers{Memory: 64, Passes: 1}
	if err := users.Add(mailspine.Login{Name: "joe@example.org"}, "hunter2"); err != nil {
		t.Fatal(err)
	}
	b := &box{}
	srv := &msa.Server{
		Hostname: "mail.example.org", TLSConfig: cert.Config, Auth: users, Next: b, AuthDelay: -1,
		Logger: slog.New(slog.DiscardHandler),
	}
	listen := func(serve func(net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- serve(l) }()
		t.Cleanup(func() {
			srv.Close()
			if err := <-done; err != nil {
				t.Errorf("serve: %v", err)
			}
		})
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return port
	}
	starttls, implicit := listen(srv.Serve), listen(srv.ServeTLS)

	message := "From: Joe <joe@example.org>\nTo: ann@example.net\nSubject: hello\n\n.\n..dots\nGr\u00fc\u00dfe\n"
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(message, "\n", "\r\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	wantBody := strings.ReplaceAll(message[strings.Index(message, "\n\n"):], "\n", "\r\n")

	swaks := func(args ...string) func(*testing.T) (string, error) {
		return func(t *testing.T) (string, error) {
			return peertest.Run(t, "", peertest.Need(t, "swaks"), append([]string{"--server", "127.0.0.1", "--helo", "client.example.org",
				"--from", "joe@example.org", "--to", "ann@example.net", "--timeout", "20", "--data", "@" + file}, args...)...)
		}
	}
	curl := func(url string) func(*testing.T) (string, error) {
		return func(t *testing.T) (string, error) {
			return peertest.Run(t, "", peertest.Need(t, "curl"), "-v", "--url", url, "--ssl-reqd", "--cacert", cert.CertFile,
				"--user", "joe@example.org:hunter2", "--mail-from", "joe@example.org", "--mail-rcpt", "ann@example.net", "--upload-file", file)
		}
	}
	msmtp := func(port, start string) func(*testing.T) (string, error) {
		return func(t *testing.T) (string, error) {
			return peertest.Run(t, message, peertest.Need(t, "msmtp"), "--host=127.0.0.1", "--port="+port, "--tls=on", "--tls-starttls="+start,
				"--tls-trust-file="+cert.CertFile, "--auth=plain", "--user=joe@example.org", "--passwordeval=echo hunter2",
				"--from=joe@example.org", "--set-date-header=off", "--set-msgid-header=off", "ann@example.net")
		}
	}
	auth := []string{"--auth-user", "joe@example.org", "--auth-password", "hunter2"}
	with := func(more ...string) []string { return append(more, auth...) }
	for _, c := range []struct {
		name    string
		run     func(*testing.T) (string, error)
		refused string // "": taken
	}{
		{"swaks STARTTLS PLAIN", swaks(with("--port", starttls, "--tls", "--auth", "PLAIN")...), ""},
		{"swaks STARTTLS LOGIN", swaks(with("--port", starttls, "--tls", "--auth", "LOGIN")...), ""},
		{"swaks implicit TLS", swaks(with("--port", implicit, "--tls-on-connect", "--auth", "PLAIN")...), ""},
		{"swaks wrong password", swaks("--port", starttls, "--tls", "--auth", "PLAIN", "--auth-user", "joe@example.org", "--auth-password", "wrong"), "535 5.7.8"},
		{"swaks without AUTH", swaks("--port", starttls, "--tls"), "530 5.7.0"},
		{"swaks without TLS", swaks("--port", starttls), "530 5.7.0"},
		{"swaks as somebody else", swaks(append(with("--port", starttls, "--tls", "--auth", "PLAIN"), "--from", "ann@example.org")...), "553 5.7.1"},
		{"curl STARTTLS", curl("smtp://127.0.0.1:" + starttls + "/client.example.org"), ""},
		{"curl implicit TLS", curl("smtps://127.0.0.1:" + implicit + "/client.example.org"), ""},
		{"msmtp STARTTLS", msmtp(starttls, "on"), ""},
		{"msmtp implicit TLS", msmtp(implicit, "off"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := c.run(t)
			if c.refused != "" {
				if err == nil || !strings.Contains(out, c.refused) {
					t.Errorf("expected to be refused with %s: %v\n%s", c.refused, err, out)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			env, msg := b.take(t)
			if env.Origin.Login != "joe@example.org" || env.Origin.TLS.Version == "" || env.Origin.Proto != "ESMTPSA" {
				t.Errorf("origin: %+v", env.Origin)
			}
			head, body, _ := strings.Cut(msg, "\r\n\r\n")
			if got := "\r\n\r\n" + body; strings.TrimRight(got, "\r\n") != strings.TrimRight(wantBody, "\r\n") {
				t.Errorf("body %q, want %q", got, wantBody)
			}
			for _, f := range []string{"Received:", "Date:", "Message-ID:"} {
				if !strings.Contains("\r\n"+head, "\r\n"+f) {
					t.Errorf("no %s in\n%s", f, head)
				}
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}
