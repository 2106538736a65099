package control

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestListenMode(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	l.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("Close left the socket")
	}
}

// The mode is right from the first moment, not a moment later. Somebody who looks all the time sees no other.
func TestListenModeAlways(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	seen, wrong := 0, fs.FileMode(0)
	watcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if fi, err := os.Lstat(path); err == nil {
				seen++
				if fi.Mode() != fs.ModeSocket|0o600 {
					wrong = fi.Mode()
				}
			}
		}
	})
	for range 500 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	close(stop)
	watcher.Wait()
	t.Logf("seen %d times", seen)
	if p, ok := knows(t); wrong != 0 && ok && p.known { // Linux; elsewhere nobody can connect in that moment
		t.Errorf("the mode was %v", wrong)
	}
}

func TestListenReplaces(t *testing.T) {
	dir := shortDir(t)
	path := dead(t, dir)
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("a socket that nobody listens at: %v", err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := shortDir(t)
	live := filepath.Join(dir, "live")
	l, err := Listen(live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dead(t, dir), link); err != nil {
		t.Fatal(err)
	}
	// Somebody who listens, in another way, is not nobody.
	mute, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "mute"), Net: "unixpacket"})
	if err == nil {
		defer mute.Close()
		if _, err := Listen(filepath.Join(dir, "mute")); err == nil || !strings.Contains(err.Error(), "is not known") {
			t.Errorf("a socket of another type: %v", err)
		}
	}
	for _, tt := range []struct{ path, want string }{
		{live, "another process listens there"},
		{file, "no socket"},
		{dir, "no socket"},
		{link, "no socket"},
		{filepath.Join(dir, "none", "s"), "no such file"},
		{"", "empty"},
		{"@x", "@"},
		{"a\x00b", "NUL"},
		{filepath.Join(dir, strings.Repeat("x", 200)), "octets, and that of a Unix socket at most"},
	} {
		if l, err := Listen(tt.path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, %v; want %q", tt.path, l, err, tt.want)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" || err != nil {
		t.Errorf("the file: %q, %v", b, err)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link: %v, %v", fi, err)
	}
	c, err := net.Dial("unix", live)
	if err != nil {
		t.Fatalf("the live socket: %v", err)
	}
	c.Close()
}

// The longest path that is allowed works.
func TestListenLongest(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, strings.Repeat("x", maxPath-len(dir)-1))
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(path + "x"); err == nil {
		t.Error("one octet more was accepted")
	}
}

// Of many who find a dead socket, one replaces it.
func TestListenOne(t *testing.T) {
	path := dead(t, shortDir(t))
	var wg sync.WaitGroup
	won := make(chan net.Listener, 20)
	for range 20 {
		wg.Go(func() {
			if l, err := Listen(path); err == nil {
				won <- l
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d listen", len(won))
	}
	l := <-won
	defer l.Close()
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
