package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/internal/peertest"
)

// Real mail programs submit, with STARTTLS and with TLS from the start, and as "name"
// as well as "name@domain"; each checks the certificate as far as it can.
func TestSubmit(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir(), defaults()...)
	file := filepath.Join(t.TempDir(), "message")

	swaks := func(args ...string) func(*testing.T, string) (string, error) {
		return func(t *testing.T, subject string) (string, error) {
			return peertest.Run(t, "", peertest.Need(t, "swaks"), append([]string{"--server", "127.0.0.1", "--helo", "client.example.test",
				"--from", "ann@example.test", "--to", "bob@example.test", "--h-Subject", subject, "--timeout", "60"}, args...)...)
		}
	}
	msmtp := func(port, start, user string, more ...string) func(*testing.T, string) (string, error) {
		return func(t *testing.T, subject string) (string, error) {
			return peertest.Run(t, letter("ann@example.test", "bob@example.test", subject), peertest.Need(t, "msmtp"), append([]string{
				"--host=127.0.0.1", "--port=" + port, "--tls=on", "--tls-starttls=" + start, "--auth=plain", "--user=" + user,
				"--passwordeval=echo hunter2", "--from=ann@example.test"}, append(more, "bob@example.test")...)...)
		}
	}
	curl := func(url string) func(*testing.T, string) (string, error) {
		return func(t *testing.T, subject string) (string, error) {
			if err := os.WriteFile(file, []byte(letter("ann@example.test", "bob@example.test", subject)), 0o600); err != nil {
				t.Fatal(err)
			}
			return peertest.Run(t, "", peertest.Need(t, "curl"), "-v", "--url", url, "--ssl-reqd", "--cacert", p.ca(), "--user", "ann:hunter2",
				"--mail-from", "ann@example.test", "--mail-rcpt", "bob@example.test", "--upload-file", file)
		}
	}
	trust := "--tls-trust-file=" + p.ca()
	starttls, implicit := p.port("submission"), p.port("submissions")
	for _, c := range []struct {
		name    string
		run     func(t *testing.T, subject string) (string, error)
		refused string // "": taken
	}{
		{"swaks STARTTLS PLAIN", swaks("--port", starttls, "--tls", "--tls-verify", "--tls-ca-path", p.ca(), "--auth", "PLAIN", "-au", "ann", "-ap", "hunter2"), ""},
		{"swaks STARTTLS LOGIN", swaks("--port", starttls, "--tls", "--auth", "LOGIN", "-au", "ann@example.test", "-ap", "hunter2"), ""},
		{"swaks implicit TLS", swaks("--port", implicit, "--tls-on-connect", "--auth", "PLAIN", "-au", "ANN@Example.TEST", "-ap", "hunter2"), ""},
		{"swaks wrong password", swaks("--port", starttls, "--tls", "--auth", "PLAIN", "-au", "ann", "-ap", "swordfish"), "535 5.7.8"},
		{"swaks unknown user", swaks("--port", starttls, "--tls", "--auth", "PLAIN", "-au", "eve", "-ap", "hunter2"), "535 5.7.8"},
		{"swaks other domain", swaks("--port", starttls, "--tls", "--auth", "PLAIN", "-au", "ann@example.org", "-ap", "hunter2"), "535 5.7.8"},
		{"swaks without TLS", swaks("--port", starttls), "530 5.7.0"},
		{"swaks as somebody else", swaks("--port", starttls, "--tls", "--auth", "PLAIN", "-au", "bob", "-ap", "swordfish"), "553 5.7.1"},
		{"swaks relays through the front door", swaks("--port", p.port("smtp"), "--to", "joe@elsewhere.example"), "550 5.7.1"},
		{"msmtp STARTTLS", msmtp(starttls, "on", "ann", trust), ""},
		{"msmtp implicit TLS", msmtp(implicit, "off", "ann@example.test", trust), ""},
		{"msmtp without the certificate", msmtp(implicit, "off", "ann"), "certificate"},
		{"curl STARTTLS", curl("smtp://127.0.0.1:" + starttls + "/client.example.test"), ""},
		{"curl implicit TLS", curl("smtps://127.0.0.1:" + implicit + "/client.example.test"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := c.run(t, c.name)
			if c.refused != "" {
				if err == nil || !strings.Contains(out, c.refused) {
					t.Errorf("expected to be refused with %s: %v\n%s", c.refused, err, out)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got := p.with("bob@example.test", "", c.name)
			for _, f := range []string{"Return-Path: <ann@example.test>\r\n", "Delivered-To: bob@example.test\r\n", "\r\nReceived: from ", "\r\nDKIM-Signature: ", "\r\nX-Feedback-Token: "} {
				if !strings.Contains(got, f) {
					t.Errorf("no %q in\n%s", f, got)
				}
			}
		})
	}
	for _, secret := range []string{"hunter2", "swordfish"} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log has the password %s", secret)
		}
	}
	p.stop()
}
