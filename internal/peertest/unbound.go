package peertest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// An UnboundConfig says how a private unbound is set up.
type UnboundConfig struct {
	// Zones are served by an authoritative server on loopback, which the resolver is told of. Those that no
	// other one of them delegates to are trusted: their keys are its trust anchors.
	Zones []*Zone
	// Addr is where it answers, an address of loopback and a port. "": a free port of 127.0.0.1. With port 53, which
	// needs root, it can be the resolver of other programs: see [Unbound.Run].
	Addr string
	// NoExtendedErrors makes it answer as older resolvers do, without the reason of a failure (RFC 8914).
	NoExtendedErrors bool
}

// An Unbound is a running validating resolver.
type Unbound struct {
	Addr string // where it answers, 127.0.0.1:port

	mu  sync.Mutex
	log strings.Builder
}

// StartUnbound runs an unbound of its own, which ends with the test. It validates what
// the zones of the configuration have, refuses all other names, and sends from loopback only. It
// needs Debian's package, and not root.
func StartUnbound(t testing.TB, c UnboundConfig) *Unbound {
	t.Helper()
	unbound := "/usr/sbin/unbound" // which users other than root do not have on their path
	if _, err := os.Stat(unbound); err != nil {
		unbound = Need(t, "unbound")
	}
	auth := serveZones(t, c.Zones)
	var err error
	// A port that was free a moment ago may be somebody else's now, for one of the two protocols.
	for range 5 {
		var u *Unbound
		if u, err = startUnbound(t, unbound, c, auth); err == nil {
			return u
		}
	}
	t.Fatal(err)
	return nil
}

func startUnbound(t testing.TB, program string, c UnboundConfig, auth string) (*Unbound, error) {
	t.Helper()
	dir := t.TempDir()
	u := &Unbound{Addr: c.Addr}
	if u.Addr == "" {
		u.Addr = "127.0.0.1:" + FreePort(t)
	}
	ip, port, err := net.SplitHostPort(u.Addr)
	if err != nil {
		t.Fatal(err)
	}
	hints := filepath.Join(dir, "root.hints")
	if err := os.WriteFile(hints, []byte(". 3600 IN NS ns.invalid.\nns.invalid. 3600 IN A 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `server:
	interface: %s
	outgoing-interface: 127.0.0.1
	port: %s
	do-ip6: no
	access-control: 127.0.0.0/8 allow
	do-daemonize: no
	username: ""
	chroot: ""
	directory: %q
	pidfile: ""
	use-syslog: no
	logfile: ""
	verbosity: 1
	val-log-level: 2
	num-threads: 1
	module-config: "validator iterator"
	root-hints: %q
	trust-anchor-signaling: no
	do-not-query-localhost: no
	ede: %s
	local-zone: "." refuse
`, ip, port, dir, hints, choose(c.NoExtendedErrors, "no", "yes"))
	for _, z := range c.Zones {
		fmt.Fprintf(&b, "\tlocal-zone: %q transparent\n", z.Name)
		if z.top(c.Zones) && !z.Unsigned {
			fmt.Fprintf(&b, "\ttrust-anchor: %q\n", z.anchor())
		}
	}
	b.WriteString("remote-control:\n\tcontrol-enable: no\n")
	for _, z := range c.Zones {
		fmt.Fprintf(&b, "stub-zone:\n\tname: %q\n\tstub-addr: %s\n", z.Name, strings.Replace(auth, ":", "@", 1))
	}
	_, file := configure(t, "unbound.conf", b.String())

	cmd := exec.Command(program, "-d", "-c", file)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool, 2) // that it is ready, and that it ended
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() { ready <- false }()
		u.follow(pipe, ready)
	}()
	stop := func() {
		// This process only.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		<-ended
		_ = cmd.Wait()
		kill.Stop()
	}
	giveUp := time.NewTimer(20 * time.Second)
	defer giveUp.Stop()
	select {
	case ok := <-ready:
		if ok {
			break
		}
		stop()
		return nil, fmt.Errorf("unbound did not start:\n%s", u.Log())
	case <-giveUp.C:
		stop()
		return nil, fmt.Errorf("unbound did not start within 20 s:\n%s", u.Log())
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("unbound's log:\n%s", u.Log())
		}
	})
	return u, nil
}

// follow keeps the log until the program ends, and says when it is ready.
func (u *Unbound) follow(r io.Reader, ready chan<- bool) {
	s := bufio.NewScanner(r)
	said := false
	for s.Scan() {
		u.mu.Lock()
		if u.log.Len() < 1<<20 {
			u.log.WriteString(s.Text() + "\n")
		}
		u.mu.Unlock()
		if !said && strings.Contains(s.Text(), "start of service") {
			said = true
			ready <- true
		}
	}
	_, _ = io.Copy(io.Discard, r)
}

// Run is [Run] for a program whose system resolver is the unbound, and which believes its AD bit. It needs
// root, mount namespaces, and an Addr with port 53.
func (u *Unbound) Run(t testing.TB, program string, args ...string) (string, error) {
	t.Helper()
	NeedRoot(t, "a resolv.conf of one's own")
	unshare := Need(t, "unshare")
	if out, err := Run(t, "", unshare, "-m", "true"); err != nil {
		absent(t, "mount namespaces cannot be had: "+out)
	}
	ip, port, err := net.SplitHostPort(u.Addr)
	if err != nil || port != "53" {
		t.Fatalf("%s has no port 53, which resolv.conf cannot tell of", u.Addr)
	}
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+ip+"\noptions edns0 trust-ad\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const script = `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`
	return Run(t, "", unshare, append([]string{"-m", "sh", "-c", script, "sh", file, program}, args...)...)
}

// Log returns what the resolver has logged so far.
func (u *Unbound) Log() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.log.String()
}
