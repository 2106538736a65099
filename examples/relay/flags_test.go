package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
)

// Each bad flag is named, nothing is made, and the exit code says that it is the usage.
func TestBadFlags(t *testing.T) {
	key, err := dkim.GenerateEd25519()
	if err != nil {
		t.Fatal(err)
	}
	pem, err := dkim.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "key.pem", string(pem))
	routes := func(text string) []string { return []string{"-routes", writeFile(t, "routes", text)} }
	relay := []string{"-relay", "127.0.0.1:25"}
	with := func(args ...string) []string { return append(slices.Clone(relay), args...) }
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"no way", nil, "-relay, -routes: neither"},
		{"no way in the file", routes("# nothing\n"), "-relay, -routes: neither"},
		{"unknown flag", with("-verbose"), "-verbose"},
		{"argument", with("start"), "no other arguments"},
		{"listen without port", with("-listen", "127.0.0.1"), "-listen"},
		{"listen with a bad port", with("-listen", ":70000"), "-listen"},
		{"spool", with("-spool", ""), "-spool: a directory"},
		{"hostname", with("-hostname", "-"), "-hostname"},
		{"hostname literal", with("-hostname", "[127.0.0.1]"), "-hostname"},
		{"relay without port", []string{"-relay", "mail.example.org"}, "-relay"},
		{"relay without host", []string{"-relay", ":25"}, "-relay"},
		{"relay to port 0", []string{"-relay", "127.0.0.1:0"}, "-relay"},
		{"relay with a bad name", []string{"-relay", "a b:25"}, "-relay"},
		{"sessions", with("-sessions", "0"), "-sessions: 0"},
		{"sessions negative", with("-sessions", "-3"), "-sessions: -3"},
		{"sessions no number", with("-sessions", "x"), "-sessions"},
		{"too many sessions", with("-sessions", "10001"), "-sessions: 10001"},
		{"networks", with("-networks", "10.0.0.0/33"), `-networks: "10.0.0.0/33"`},
		{"networks by name", with("-networks", "localhost"), `-networks: "localhost"`},
		{"no networks", with("-networks", " , "), "-networks: nobody"},
		{"open relay", with("-networks", "10.0.0.0/8,0.0.0.0/0"), `-networks: "0.0.0.0/0" is too large`},
		{"open relay in IPv6", with("-networks", "::/0"), `-networks: "::/0" is too large`},
		{"half of an open relay", with("-networks", "128.0.0.0/1"), "is too large"},
		{"open relay in disguise", with("-networks", "::ffff:0.0.0.0/96"), "is too large"},
		{"routes missing", []string{"-routes", filepath.Join(t.TempDir(), "missing")}, "-routes: open "},
		{"routes that are a directory", []string{"-routes", t.TempDir()}, "-routes: "},
		{"route without a host", routes("a.example 127.0.0.1:1\nb.example\n"), "routes: line 2: not of the form"},
		{"route with three words", routes("a.example 127.0.0.1:1 127.0.0.1:2\n"), "routes: line 1: not of the form"},
		{"route without port", routes("a.example 127.0.0.1\n"), "routes: line 1"},
		{"route to port 0", routes("a.example 127.0.0.1:0\n"), "routes: line 1"},
		{"route to a bad host", routes("a.example a!b:25\n"), "-routes: a.example: "},
		{"route of no domain", routes("\n\n@a 127.0.0.1:1\n"), "routes: line 3"},
		{"route of a dot", routes(". 127.0.0.1:1\n"), "routes: line 1"},
		{"route twice", routes("a.example 127.0.0.1:1\nA.EXAMPLE. 127.0.0.1:2\n"), "routes: line 2: a.example is there twice"},
		{"endless line", routes("a.example" + strings.Repeat(" ", 1<<17)), "routes: line 1"},
		{"key alone", with("-dkim-key", file), "give all of them"},
		{"key without domain", with("-dkim-key", file, "-dkim-selector", "s"), "give all of them"},
		{"selector alone", with("-dkim-selector", "s"), "give all of them"},
		{"key missing", with("-dkim-key", file+"x", "-dkim-domain", "a.example", "-dkim-selector", "s"), "-dkim-key: open "},
		{"key that is none", with("-dkim-key", writeFile(t, "k", "x"), "-dkim-domain", "a.example", "-dkim-selector", "s"), "-dkim-key: "},
		{"dkim domain", with("-dkim-key", file, "-dkim-domain", "a b", "-dkim-selector", "s"), "-dkim-domain"},
		{"dkim selector", with("-dkim-key", file, "-dkim-domain", "a.example", "-dkim-selector", "a b"), "-dkim-selector"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			work := filepath.Join(t.TempDir(), "spool")
			args := c.args
			if c.name != "spool" {
				args = append([]string{"-spool", work}, args...)
			}
			if code := run(args, &stdout, &stderr); code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			if !strings.Contains(stderr.String(), c.want) {
				t.Errorf("want %q in\n%s", c.want, &stderr)
			}
			if stdout.Len() > 0 {
				t.Errorf("on stdout: %s", &stdout)
			}
			if _, err := os.Stat(work); err == nil {
				t.Error("the spool was made")
			}
		})
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-h"}, &stdout, &stderr); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(stderr.String(), "usage: relay -spool") || !strings.Contains(stderr.String(), "  -networks") {
		t.Errorf("the help:\n%s", &stderr)
	}
}

// What cannot be had is named, and the one that has it goes on.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	spool := t.TempDir()
	running := start(t, spool, "-hold")
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"port taken", []string{"-spool", filepath.Join(t.TempDir(), "s"), "-listen", taken.Addr().String()}, "-listen: "},
		{"an address of somebody else", []string{"-spool", filepath.Join(t.TempDir(), "s"), "-listen", "192.0.2.1:0"}, "-listen: "},
		{"spool in use", []string{"-spool", spool, "-listen", "127.0.0.1:0"}, "-spool: "},
		{"control that is no socket", []string{"-spool", filepath.Join(t.TempDir(), "s"), "-listen", "127.0.0.1:0", "-control", writeFile(t, "f", "")}, "-control: "},
		{"control with a path too long", []string{"-spool", filepath.Join(t.TempDir(), "s"), "-listen", "127.0.0.1:0", "-control", strings.Repeat("c", 200)}, "-control: "},
		{"spool is a file", []string{"-spool", writeFile(t, "f", ""), "-listen", "127.0.0.1:0"}, "-spool: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := command(ctx, append([]string{"-hold"}, c.args...)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != exitFailure {
				t.Errorf("exit code %d, want %d", code, exitFailure)
			}
			if !strings.Contains(stderr.String(), c.want) || stdout.Len() > 0 {
				t.Errorf("want %q in\n%s\nand nothing on stdout: %s", c.want, &stderr, &stdout)
			}
		})
	}
	if err := running.send("ann@a.example", "bob@b.example", "still here"); err != nil {
		t.Error(err)
	}
	running.stop()
}

// What is read from a file of routes can be used as it is.
func FuzzRoutes(f *testing.F) {
	for _, s := range []string{"", "# c\n\na.example 127.0.0.1:25\n", ".a.example\t[::1]:25 # x\r\n", "a b c", "a. b:1\nA b:2", "xn--a x:1", "ä.example ö:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		routes, err := parseRoutes(strings.NewReader(text))
		if err != nil {
			return
		}
		for domain, host := range routes {
			if _, err := domainName(strings.TrimPrefix(domain, ".")); err != nil || hostPort(host, false) != nil {
				t.Errorf("route %q to %q", domain, host)
			}
		}
		o := &options{routes: routes, hold: true}
		if mux, err := (&relay{o: o}).routes(); err == nil {
			rcpt := mailspine.Recipient{Address: mailspine.Address{Local: "bob", Domain: "b.example"}}
			if _, err := mux.Route(t.Context(), &mailspine.Envelope{}, rcpt); err != nil {
				t.Errorf("the Mux does not take it: %v", err)
			}
		}
	})
}
