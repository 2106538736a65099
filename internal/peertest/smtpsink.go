package peertest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// An SMTPSink is a running smtp-sink, of Postfix's package: a server that takes mail, refuses it, or hangs up, as its flags say.
type SMTPSink struct {
	dir string
}

// StartSMTPSink runs one at an address of loopback, "127.0.0.2:2525", with its own flags ("-Q", "RCPT"). It ends with the test.
func StartSMTPSink(t testing.TB, addr string, flags ...string) *SMTPSink {
	t.Helper()
	sink := Need(t, "smtp-sink")
	s := &SMTPSink{dir: t.TempDir()}
	args := append(flags, "-d", filepath.Join(s.dir, "m."), addr, "100")
	if os.Geteuid() == 0 { // it refuses to run as root without another user; this one can write what root made
		args = append([]string{"-u", "root"}, args...)
	}
	cmd := exec.Command(sink, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	// A program without any means to tell that it listens.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("smtp-sink at %s: %v", addr, err)
		}
	}
}

// Messages returns the transactions that it has got to their end: the envelope as lines "X-Rcpt-Args: <address>", and the message.
func (s *SMTPSink) Messages(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "m.*"))
	if err != nil {
		t.Fatal(err)
	}
	var msgs []string // as many as the test sent
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil && !os.IsNotExist(err) { // one that is given up is removed
			t.Fatal(err)
		}
		msgs = append(msgs, string(b))
	}
	return msgs
}
