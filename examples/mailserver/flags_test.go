package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each bad flag is named, no password is shown, and the exit code says that it is the usage.
func TestBadFlags(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	ann := []string{"-user", "ann:hunter2"}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"no user", nil, "-user: at least one"},
		{"user without a colon", []string{"-user", "hunter2"}, "-user: number 1 is not of the form"},
		{"user without a name", []string{"-user", ":hunter2"}, "-user: the name of number 1"},
		{"user with a domain", []string{"-user", "ann@example.test:hunter2"}, "-user: the name of number 1"},
		{"user that is a path", []string{"-user", "../ann:hunter2"}, "-user: the name of number 1"},
		{"user not in ASCII", []string{"-user", "änne:hunter2"}, "-user: the name of number 1"},
		{"user twice", append(ann, "-user", "Ann:hunter2"), "-user: ann is there twice"},
		{"user fbl", append(ann, "-user", "fbl:hunter2"), "-user: fbl is the address for complaints"},
		{"no password", append(ann, "-user", "bob:"), "-user: password of bob: it is empty"},
		{"password with a control", append(ann, "-user", "bob:hunter2\x01"), "-user: password of bob"},
		{"password file missing", []string{"-user", "bob:@" + filepath.Join(dir, "missing")}, "-user: password of bob: open "},
		{"password file empty", []string{"-user", "bob:@" + file("empty", "\nhunter2\n")}, "-user: password of bob: it is empty"},
		{"password file with one endless line", []string{"-user", "bob:@" + file("long", strings.Repeat("hunter2", 10000))}, "-user: password of bob: it is empty, longer"},
		{"password file that is a directory", []string{"-user", "bob:@" + dir}, "-user: password of bob"},
		{"unknown flag", append(ann, "-verbose"), "-verbose"},
		{"argument", append(ann, "start"), "no other arguments"},
		{"dir empty", append(ann, "-dir", ""), "-dir"},
		{"domain", append(ann, "-domain", "not a domain"), "-domain"},
		{"domain literal", append(ann, "-domain", "[127.0.0.1]"), "-domain"},
		{"hostname", append(ann, "-hostname", "-"), "-hostname"},
		{"listen without port", append(ann, "-imaps", "127.0.0.1"), "-imaps"},
		{"listen with a bad port", append(ann, "-smtp", ":70000"), "-smtp"},
		{"everything off", append(ann, "-smtp=", "-submission=", "-submissions=", "-imap=", "-imaps=", "-pop3=", "-pop3s="), "all services are off"},
		{"cert without key", append(ann, "-cert", file("c.pem", "")), "-cert and -key"},
		{"cert that is none", append(ann, "-cert", file("c.pem", "x"), "-key", file("k.pem", "x")), "-cert, -key"},
		{"dns", append(ann, "-dns", "ns.example.test"), "-dns"},
		{"trust in nobody", append(ann, "-trust-dns"), "-trust-dns: needs -dns"},
		{"user tls-reports", append(ann, "-user", "tls-reports:hunter2"), "-user: tls-reports is the address for TLS reports"},
		{"route without target", append(ann, "-route", "example.org"), "-route"},
		{"route without port", append(ann, "-route", "example.org=mx.example.org"), "-route"},
		{"route without domain", append(ann, "-route", "=127.0.0.1:25"), "-route"},
		{"route to port 0", append(ann, "-route", "example.org=127.0.0.1:0"), "-route"},
		{"route for ourselves", append(ann, "-route", "Example.Test=127.0.0.1:25"), "-route: the mail of example.test is for the mailboxes here"},
		{"route twice", append(ann, "-route", "a.example=127.0.0.1:25", "-route", "A.example.=127.0.0.1:26"), "-route: a.example is there twice"},
		{"relay", append(ann, "-relay", "mail.example.org"), "-relay"},
		{"relay without host", append(ann, "-relay", ":25"), "-relay"},
		{"source", append(ann, "-source", "localhost"), "-source"},
		{"source twice", append(ann, "-source", "127.0.0.2", "-source", "127.0.0.2"), "-source: 127.0.0.2 is there twice"},
		{"warm-up of nothing", append(ann, "-warm-up"), "-warm-up: needs -source"},
		{"allow-private", append(ann, "-allow-private", "10.0.0.1"), "-allow-private"},
		{"mx-port", append(ann, "-mx-port", "0"), "-mx-port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			work := filepath.Join(t.TempDir(), "data")
			args := c.args
			if c.name != "dir empty" {
				args = append([]string{"-dir", work}, args...)
			}
			if code := run(args, &stdout, &stderr); code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			if out := stderr.String(); !strings.Contains(out, c.want) || strings.Contains(out, "hunter2") {
				t.Errorf("want %q and no password in\n%s", c.want, out)
			}
			if stdout.Len() > 0 {
				t.Errorf("on stdout: %s", stdout.String())
			}
			if _, err := os.Stat(work); err == nil {
				t.Error("the directory was made")
			}
		})
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-h"}, &stdout, &stderr); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	for _, s := range services() {
		if !strings.Contains(stderr.String(), "  -"+s.name+" ") {
			t.Errorf("no -%s in\n%s", s.name, stderr.String())
		}
	}
}

// What cannot be had is named, and nothing is left half started.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	running := start(t, t.TempDir(), defaults()...)
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "feedback.key"), []byte("no hexadecimal\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"port taken", []string{"-dir", filepath.Join(t.TempDir(), "data"), "-pop3s", taken.Addr().String()}, "-pop3s: "},
		{"one port for two", []string{"-dir", filepath.Join(t.TempDir(), "data"), "-submission", running.addr["imap"]}, "-submission: "},
		{"an address of somebody else", []string{"-dir", filepath.Join(t.TempDir(), "data"), "-smtp", "192.0.2.1:0"}, "-smtp: "},
		{"directory in use", []string{"-dir", running.dir}, "-dir: "},
		{"directory is a file", []string{"-dir", plain}, "-dir: "},
		{"damaged key", []string{"-dir", broken}, "feedback.key: line 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := command(ctx, append(defaults(), c.args...)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != exitFailure {
				t.Errorf("exit code %d, want %d", code, exitFailure)
			}
			if out := stderr.String(); !strings.Contains(out, c.want) {
				t.Errorf("want %q in\n%s", c.want, out)
			}
			if stdout.Len() > 0 {
				t.Errorf("on stdout: %s", stdout.String())
			}
		})
	}
	// The one that was there goes on, and the broken one is not locked.
	if err := running.write("still here", "bob@example.test"); err != nil {
		t.Error(err)
	}
	os.Remove(filepath.Join(broken, "feedback.key"))
	start(t, broken, defaults()...).stop()
	running.stop()
}
