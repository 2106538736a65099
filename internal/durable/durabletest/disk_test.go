package durabletest_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

func create(t testing.TB, d durable.FS, name, data string, sync bool) durable.File {
	t.Helper()
	f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	if sync {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// outcomes returns what is found in a file, or "-", after many crashes.
func outcomes(d *durabletest.Disk, look func(*durabletest.Disk) string) []string {
	var all []string
	for seed := range uint64(400) {
		all = append(all, look(d.Crash(seed)))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func content(name string) func(*durabletest.Disk) string {
	return func(d *durabletest.Disk) string {
		b, err := durable.ReadFile(d, name, 1<<20)
		if err != nil {
			return "-"
		}
		return string(b)
	}
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: after crashes there is %q, want %q", what, got, want)
	}
}

func TestCrashNames(t *testing.T) {
	var d durabletest.Disk
	create(t, &d, "f", "data", true)
	expect(t, "a synced file with a name that is not", outcomes(&d, content("f")), "-", "data")
	if err := d.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	expect(t, "file and name synced", outcomes(&d, content("f")), "data")
	create(t, &d, "g", "more", true)
	if err := d.Rename("g", "f"); err != nil {
		t.Fatal(err)
	}
	expect(t, "a rename that is not synced", outcomes(&d, content("f")), "data", "more")
	if err := d.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	expect(t, "a rename that is", outcomes(&d, content("f")), "more")
	if err := d.Remove("f"); err != nil {
		t.Fatal(err)
	}
	expect(t, "a removal that is not synced", outcomes(&d, content("f")), "-", "more")
}

// A rename between directories may leave the file under both names, never under none.
func TestCrashRenameAcross(t *testing.T) {
	var d durabletest.Disk
	for _, dir := range []string{"tmp", "new"} {
		if err := durable.MkdirAll(&d, dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	create(t, &d, "tmp/m", "mail", true)
	if err := d.SyncDir("tmp"); err != nil {
		t.Fatal(err)
	}
	if err := d.Rename("tmp/m", "new/m"); err != nil {
		t.Fatal(err)
	}
	both := func(d *durabletest.Disk) string { return content("tmp/m")(d) + " " + content("new/m")(d) }
	expect(t, "not synced", outcomes(&d, both), "mail -", "- mail", "mail mail")
	if err := d.SyncDir("new"); err != nil {
		t.Fatal(err)
	}
	expect(t, "the new directory synced", outcomes(&d, both), "- mail", "mail mail")
	if err := d.SyncDir("tmp"); err != nil {
		t.Fatal(err)
	}
	expect(t, "both synced", outcomes(&d, both), "- mail")
}

func TestCrashContent(t *testing.T) {
	var d durabletest.Disk
	f := create(t, &d, "f", strings.Repeat("a", 1024), true)
	if err := d.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("b", 1024)), 0); err != nil {
		t.Fatal(err)
	}
	short := func(d *durabletest.Disk) string {
		s := content("f")(d)
		return s[:1] + s[512:513]
	}
	expect(t, "sectors", outcomes(&d, short), "aa", "ab", "ba", "bb")
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	expect(t, "synced", outcomes(&d, short), "bb")
	if err := f.Truncate(3); err != nil {
		t.Fatal(err)
	}
	size := func(d *durabletest.Disk) string { return fmt.Sprint(len(content("f")(d))) }
	expect(t, "a truncation", outcomes(&d, size), "1024", "3")
}

// After a failed sync the process reads what it wrote, the disk never gets it,
// and a second sync says that all is well: the trap that a log has to avoid.
func TestFailedSyncLosesData(t *testing.T) {
	var d durabletest.Disk
	f := &durabletest.Faults{FS: &d}
	h := create(t, f, "f", "one ", true)
	if err := d.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	h.Write([]byte("two "))
	f.Set(durabletest.Nth(durabletest.Sync, 1, syscall.EIO))
	if err := h.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Sync: %v", err)
	}
	h.Write([]byte("three"))
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	if s := content("f")(&d); s != "one two three" {
		t.Errorf("the process reads %q", s)
	}
	expect(t, "after the crash", outcomes(&d, content("f")), "one \x00\x00\x00\x00three")
}

func TestCut(t *testing.T) {
	var d durabletest.Disk
	d.CutAt(3)
	f, err := d.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, durabletest.ErrPowerCut) || !d.WasCut() {
		t.Fatalf("Sync at the cut: %v", err)
	}
	if _, err := d.Stat("f"); !errors.Is(err, durabletest.ErrPowerCut) {
		t.Errorf("Stat after the cut: %v", err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, durabletest.ErrPowerCut) {
		t.Errorf("ReadAt after the cut: %v", err)
	}
	if after := d.Crash(1); content("f")(after) != "x" || after.WasCut() {
		t.Error("the disk after the crash does not work")
	}
}

func TestLimit(t *testing.T) {
	var d durabletest.Disk
	f := create(t, &d, "f", "0123456789", false)
	d.SetLimit(15)
	n, err := f.Write([]byte("0123456789"))
	if n != 5 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Write: %d, %v", n, err)
	}
	if free, _ := d.Free("."); free != 0 {
		t.Errorf("%d octets are free", free)
	}
	if err := d.Remove("f"); err != nil || d.Used() != 0 {
		t.Errorf("%d octets are used, %v", d.Used(), err)
	}
}

func TestFaults(t *testing.T) {
	f := &durabletest.Faults{FS: new(durabletest.Disk)}
	h := create(t, f, "f", "data", true)
	f.Set(durabletest.Nth(durabletest.Write, 2, &durabletest.ShortWrite{N: 3, Err: syscall.ENOSPC}))
	if n, err := h.WriteAt([]byte("first"), 0); n != 5 || err != nil {
		t.Errorf("first write: %d, %v", n, err)
	}
	if n, err := h.WriteAt([]byte("second"), 5); n != 3 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("second write: %d, %v", n, err)
	}
	if f.Calls(durabletest.Write) != 2 || f.Calls("") != 2 {
		t.Errorf("%d writes, %d calls", f.Calls(durabletest.Write), f.Calls(""))
	}
	for op, call := range map[durabletest.Op]func() error{
		durabletest.Create: func() error { _, err := f.OpenFile("g", os.O_CREATE|os.O_RDWR, 0o600); return err },
		durabletest.Open:   func() error { _, err := f.OpenFile("f", os.O_RDONLY, 0); return err },
		durabletest.Rename: func() error { return f.Rename("f", "g") }, durabletest.Link: func() error { return f.Link("f", "g") },
		durabletest.Remove: func() error { return f.Remove("f") }, durabletest.Mkdir: func() error { return f.Mkdir("d", 0o700) },
		durabletest.ReadDir: func() error { _, err := f.ReadDir("."); return err }, durabletest.Stat: func() error { _, err := f.Stat("f"); return err },
		durabletest.SyncDir: func() error { return f.SyncDir(".") }, durabletest.Lock: func() error { _, err := f.Lock("l"); return err },
		durabletest.Free: func() error { _, err := f.Free("."); return err }, durabletest.Truncate: func() error { return h.Truncate(1) },
		durabletest.Read: func() error { _, err := h.ReadAt(make([]byte, 1), 0); return err }, durabletest.Sync: h.Sync,
	} {
		f.Set(durabletest.Nth(op, 1, syscall.EIO))
		if err := call(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// A Disk that nobody cuts is a file system like the real one.
func TestDiskModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		root, err := os.MkdirTemp("", "disk")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(root)
		disk := new(durabletest.Disk)
		path := rapid.SampledFrom([]string{"a", "b", "d", "d/a", "d/b", "e/a"})
		both := func(rt *rapid.T, what string, f func(fsys durable.FS, at func(string) string) (string, error)) {
			want, werr := f(durable.OS{}, func(n string) string { return filepath.Join(root, n) })
			got, gerr := f(disk, func(n string) string { return n })
			if (werr == nil) != (gerr == nil) || errors.Is(werr, fs.ErrNotExist) != errors.Is(gerr, fs.ErrNotExist) ||
				errors.Is(werr, fs.ErrExist) != errors.Is(gerr, fs.ErrExist) || want != got {
				rt.Fatalf("%s: %q, %v; the system says %q, %v", what, got, gerr, want, werr)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				name, data := path.Draw(rt, "name"), strings.Repeat("x", rapid.IntRange(0, 2000).Draw(rt, "size"))
				flag := os.O_RDWR | os.O_CREATE | rapid.SampledFrom([]int{0, os.O_EXCL, os.O_TRUNC}).Draw(rt, "flag")
				off := rapid.Int64Range(0, 3000).Draw(rt, "offset")
				both(rt, "write", func(fsys durable.FS, at func(string) string) (string, error) {
					f, err := fsys.OpenFile(at(name), flag, 0o600)
					if err != nil {
						return "", err
					}
					defer f.Close()
					n, err := f.WriteAt([]byte(data), off)
					return fmt.Sprint(n), err
				})
			},
			"truncate": func(rt *rapid.T) {
				name, size := path.Draw(rt, "name"), rapid.Int64Range(0, 4000).Draw(rt, "size")
				both(rt, "truncate", func(fsys durable.FS, at func(string) string) (string, error) {
					f, err := fsys.OpenFile(at(name), os.O_RDWR, 0)
					if err != nil {
						return "", err
					}
					defer f.Close()
					return "", f.Truncate(size)
				})
			},
			"read": func(rt *rapid.T) {
				name, off := path.Draw(rt, "name"), rapid.Int64Range(0, 3000).Draw(rt, "offset")
				both(rt, "read", func(fsys durable.FS, at func(string) string) (string, error) {
					f, err := fsys.OpenFile(at(name), os.O_RDONLY, 0)
					if err != nil {
						return "", err
					}
					defer f.Close()
					if fi, err := f.Stat(); err != nil || fi.IsDir() {
						return "a directory", err
					}
					b := make([]byte, 700)
					n, err := f.ReadAt(b, off)
					rest, err2 := io.ReadAll(f)
					return fmt.Sprint(string(b[:n]), err == io.EOF, len(rest)), err2
				})
			},
			"rename": func(rt *rapid.T) {
				from, to := path.Draw(rt, "from"), path.Draw(rt, "to")
				if strings.HasPrefix(to, from+"/") {
					rt.Skip("a directory into itself")
				}
				both(rt, "rename", func(fsys durable.FS, at func(string) string) (string, error) {
					return "", fsys.Rename(at(from), at(to))
				})
			},
			"link": func(rt *rapid.T) {
				from, to := path.Draw(rt, "from"), path.Draw(rt, "to")
				both(rt, "link", func(fsys durable.FS, at func(string) string) (string, error) { return "", fsys.Link(at(from), at(to)) })
			},
			"remove": func(rt *rapid.T) {
				name := path.Draw(rt, "name")
				both(rt, "remove", func(fsys durable.FS, at func(string) string) (string, error) { return "", fsys.Remove(at(name)) })
			},
			"mkdir": func(rt *rapid.T) {
				name := rapid.SampledFrom([]string{"d", "e"}).Draw(rt, "name")
				both(rt, "mkdir", func(fsys durable.FS, at func(string) string) (string, error) { return "", fsys.Mkdir(at(name), 0o700) })
			},
			"": func(rt *rapid.T) {
				for _, dir := range []string{".", "d", "e"} {
					both(rt, "list", func(fsys durable.FS, at func(string) string) (string, error) {
						fi, err := fsys.Stat(at(dir))
						if err != nil || !fi.IsDir() {
							return "", err
						}
						var n []string
						list, err := fsys.ReadDir(at(dir))
						for _, e := range list {
							info, err := e.Info()
							if err != nil {
								return "", err
							}
							size := info.Size()
							if e.IsDir() {
								size = 0
							}
							n = append(n, fmt.Sprint(e.Name(), e.IsDir(), size))
						}
						return strings.Join(n, " "), err
					})
				}
			},
		})
	})
}
