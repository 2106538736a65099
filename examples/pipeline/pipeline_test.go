package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The crash step starts this binary again as its child.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := childMain(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestPipeline(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if code := run(dir, false, 10, false); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	// The second run finds the first one's directory, and leaves it alone.
	if code := run(dir, false, 1, false); code != 2 {
		t.Errorf("a directory that is not empty: exit status %d", code)
	}
}

// A demo that cannot fail proves nothing.
func TestSame(t *testing.T) {
	sent := "From: a@b\r\n\r\nbody\r\n"
	if _, err := same([]byte("Received: x\r\nDKIM-Signature: y\r\n\tz\r\n"+sent), sent); err != nil {
		t.Error(err)
	}
	for name, arrived := range map[string]string{
		"body changed":   "Received: x\r\n" + strings.Replace(sent, "body", "b0dy", 1),
		"header changed": "Received: x\r\n" + strings.Replace(sent, "a@b", "a@c", 1),
		"line end lost":  "Received: x\r\n" + strings.TrimSuffix(sent, "\r\n"),
		"field added":    "X-Spam: yes\r\n" + sent,
		"no field":       "\r\n" + sent,
	} {
		if _, err := same([]byte(arrived), sent); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	for _, field := range []string{"spf=pass dkim=pass dmarc=fail bimi=pass", "spf=pass dkim=pass dmarc=pass bimi=none", "spf=none", ""} {
		added, _ := same([]byte("Authentication-Results: mx; "+field+"\r\n"+sent), sent)
		if passes(added) == nil {
			t.Errorf("%q passes", field)
		}
	}
}

func TestShow(t *testing.T) {
	var b strings.Builder
	s := &show{w: &b}
	st := s.step("Good")
	s.hop("here", "a\x1b[31m%s", "b\r\n")
	st.end(nil, "note")
	if !s.summary(0) || strings.ContainsAny(b.String(), "\x1b\r") || !strings.Contains(b.String(), "here") {
		t.Errorf("%q", b.String())
	}
	s.step("Bad").end(fmt.Errorf("it differs"), "")
	if s.summary(0) || !strings.Contains(b.String(), "FAILED it differs") {
		t.Errorf("%q", b.String())
	}
	s.steps = nil
	s.step("Unfinished")
	if s.summary(0) {
		t.Error("a step that did not end is well")
	}
}
