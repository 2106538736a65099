package durable_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

// Whatever call fails, and wherever the power goes, a file has all of its old
// content or all of the new.
func TestWriteFile(t *testing.T) {
	old, young := strings.Repeat("old ", 400), strings.Repeat("new ", 700)
	setup := func() *durabletest.Disk {
		d := new(durabletest.Disk)
		if err := durable.MkdirAll(d, "a/b", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(d, "a/b/f", []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		return d
	}
	check := func(what string, d *durabletest.Disk, promised bool) {
		t.Helper()
		got := string(readFile(t, d, "a/b/f"))
		if got != young && (promised || got != old) {
			t.Fatalf("%s: %d octets, %.20q", what, len(got), got)
		}
	}
	for cut := 1; ; cut++ {
		d := setup()
		d.CutAt(d.Ops() + cut)
		err := durable.WriteFile(d, "a/b/f", []byte(young), 0o600)
		for seed := range uint64(20) {
			check(fmt.Sprintf("cut at %d, seed %d", cut, seed), d.Crash(seed), err == nil)
		}
		if !d.WasCut() {
			break
		}
	}
	for n := 1; ; n++ {
		d := setup()
		f := &durabletest.Faults{FS: d}
		f.Set(durabletest.Nth("", n, &durabletest.ShortWrite{N: 9, Err: syscall.ENOSPC}))
		err := durable.WriteFile(f, "a/b/f", []byte(young), 0o600)
		if f.Calls("") < n {
			break
		}
		check(fmt.Sprintf("fault at %d", n), d, err == nil)
		if list, _ := d.ReadDir("a/b"); err != nil && f.Calls(durabletest.Rename) == 0 && len(list) != 1 {
			t.Errorf("fault at %d: %d files are left", n, len(list))
		}
		for seed := range uint64(10) {
			check(fmt.Sprintf("fault at %d, crash %d", n, seed), d.Crash(seed), err == nil)
		}
	}
}

func TestMkdirAll(t *testing.T) {
	d := new(durabletest.Disk)
	if err := durable.MkdirAll(d, "/var/spool/mail", 0o700); err != nil {
		t.Fatal(err)
	}
	after := d.Crash(0)
	if fi, err := after.Stat("/var/spool/mail"); err != nil || !fi.IsDir() {
		t.Errorf("the path is not durable: %v", err)
	}
	place(t, d, "/var/file", nil)
	if err := durable.MkdirAll(d, "/var/file", 0o700); err == nil {
		t.Error("a file passed for a directory")
	}
	if err := durable.RemoveAll(d, "/var"); err != nil {
		t.Fatal(err)
	}
	if err := durable.RemoveAll(d, "/var"); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	if _, err := durable.ReadFile(d, "/var/file", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after RemoveAll: %v", err)
	}
}

func TestReadFileLimit(t *testing.T) {
	var d durabletest.Disk
	place(t, &d, "f", make([]byte, 100))
	if _, err := durable.ReadFile(&d, "f", 99); err == nil {
		t.Error("100 octets were read with a limit of 99")
	}
	if b, err := durable.ReadFile(&d, "f", 100); err != nil || len(b) != 100 {
		t.Errorf("%d octets, %v", len(b), err)
	}
}

func TestOSLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	l, err := durable.OS{}.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = durable.OS{}.Lock(name)
	var le *durable.LockedError
	if !errors.As(err, &le) || le.PID != os.Getpid() {
		t.Fatalf("second Lock: %v", err)
	}
	if !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("the error %q does not name the process", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = (durable.OS{}).Lock(name); err != nil {
		t.Fatalf("Lock after Close: %v", err)
	}
	l.Close()
}

func TestOSFree(t *testing.T) {
	if n, err := (durable.OS{}).Free(t.TempDir()); err != nil || n <= 0 {
		t.Errorf("Free: %d, %v", n, err)
	}
	if _, err := (durable.OS{}).OpenFile(filepath.Join(t.TempDir(), "none"), os.O_RDONLY, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenFile: %v", err)
	}
}

// The temporary file, the rename and the sync of the directory are WriteFile's business.
func ExampleWriteFile() {
	dir, err := os.MkdirTemp("", "durable")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "state")
	fmt.Println(durable.WriteFile(durable.OS{}, name, []byte("42"), 0o600))
	b, err := durable.ReadFile(durable.OS{}, name, 100)
	fmt.Println(string(b), err)
	// Output:
	// <nil>
	// 42 <nil>
}
