package peertest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Need returns the path of a program. Without it the test is skipped, or
// fails under MAILSPINE_STRICT=1.
func Need(t testing.TB, program string) string {
	t.Helper()
	p, err := exec.LookPath(program)
	if err != nil {
		absent(t, program+" is not installed")
	}
	return p
}

// NeedRoot skips a test that cannot run without root, or fails it under MAILSPINE_STRICT=1.
func NeedRoot(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		absent(t, why+" needs root")
	}
}

func absent(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("MAILSPINE_STRICT") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// Run runs a program for at most a minute and returns what it printed, both
// streams together, and its error.
func Run(t testing.TB, stdin, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// FreePort returns a port of 127.0.0.1 that was free a moment ago, for
// programs that cannot be told to let the kernel choose.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
