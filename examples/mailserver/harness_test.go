package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
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

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// childEnv makes the test binary the server, so that what is tested is a real process, under the
// race detector when the test is.
const childEnv = "MAILSERVER_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "1" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// patience bounds every wait. It is no measure: what is well takes a fraction of it.
const patience = 2 * time.Minute

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A process is a running server.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	dir  string
	addr map[string]string // of the services
	log  *logBuffer
	done chan struct{} // closed when it has ended
	err  error         // of its end; read after done
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// command is the server with some arguments, not started.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	return cmd
}

// defaults are the users of most tests.
func defaults() []string { return []string{"-user", "ann:hunter2", "-user", "bob:swordfish"} }

// start runs a server in a directory and waits until it is ready. It ends with the test.
func start(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p := &process{t: t, dir: dir, addr: map[string]string{}, log: &logBuffer{}, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	p.cmd = command(ctx, append([]string{"-dir", dir}, args...)...)
	p.cmd.Stderr = p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(p.done)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			lines <- s.Text()
		}
		close(lines)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel() // kills it if it still runs
		for range lines {
		}
		<-p.done
		if t.Failed() {
			t.Logf("log of the server in %s:\n%s", dir, p.log)
		}
	})
	want := len(services())
	for _, s := range services() {
		for i, a := range args {
			if a == "-"+s.name && args[i+1] == "" {
				want--
			}
		}
	}
	wait := within(t)
	for len(p.addr) < want {
		select {
		case line, ok := <-lines:
			name, addr, two := strings.Cut(line, " ")
			if !ok || !two {
				t.Fatalf("the server said %q instead of its addresses:\n%s", line, p.log)
			}
			p.addr[name] = addr
		case <-wait.Done():
			t.Fatalf("the server is not ready: %s", p.log)
		}
	}
	return p
}

// stop ends the server as an operator does, and expects a clean end.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.wait()
	if p.err != nil {
		p.t.Fatalf("after SIGTERM: %v\n%s", p.err, p.log)
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends the server without asking.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	p.wait()
}

func (p *process) wait() {
	p.t.Helper()
	select {
	case <-p.done:
	case <-within(p.t).Done():
		p.t.Fatalf("the server does not end:\n%s", p.log)
	}
}

func (p *process) port(service string) string {
	_, port, err := net.SplitHostPort(p.addr[service])
	if err != nil {
		p.t.Fatal(err)
	}
	return port
}

// ca is the file of the self-signed certificate.
func (p *process) ca() string { return filepath.Join(p.dir, "cert.pem") }

// submit sends a message as a user does, and returns the server's answer to it.
func (p *process) submit(user, password, from string, to []string, msg string) (string, error) {
	pem, err := os.ReadFile(p.ca())
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c, err := smtp.DialTLS(p.addr["submissions"], &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.Auth(sasl.NewPlainClient("", user, password)); err != nil {
		return "", err
	}
	return transact(c, from, to, msg)
}

// write submits a message of ann's, one of the default users.
func (p *process) write(subject string, to ...string) error {
	_, err := p.submit("ann", "hunter2", "ann@example.test", to, letter("ann@example.test", to[0], subject))
	return err
}

// send brings a message as another server does.
func (p *process) send(from string, to []string, msg string) (string, error) {
	conn, err := net.Dial("tcp", p.addr["smtp"])
	if err != nil {
		return "", err
	}
	c := smtp.NewClient(conn)
	defer c.Close()
	return transact(c, from, to, msg)
}

func transact(c *smtp.Client, from string, to []string, msg string) (string, error) {
	if err := c.Mail(from, nil); err != nil {
		return "", err
	}
	for _, r := range to {
		if err := c.Rcpt(r, nil); err != nil {
			return "", err
		}
	}
	w, err := c.Data()
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(w, msg); err != nil {
		return "", err
	}
	resp, err := w.CloseWithResponse()
	if err != nil {
		return "", err
	}
	return resp.StatusText, nil
}

// letter is a message with a subject to find it by.
func letter(from, to, subject string) string {
	return fmt.Sprintf("From: %s\r\nTo: %s\r\nSubject: %s\r\n\r\nHello,\r\n.\r\nGr=FC=DFe\r\n", from, to, subject)
}

// mailbox returns what is in a mailbox ("" for INBOX, or such as "Feedback"), by looking at the files.
func (p *process) mailbox(user, name string) []string {
	p.t.Helper()
	dir := filepath.Join(p.dir, "mail", strings.ReplaceAll(user, ".", "=2e"))
	if name != "" { // an upper-case letter is ^ and the lower-case one
		dir = filepath.Join(dir, ".^"+strings.ToLower(name[:1])+name[1:])
	}
	var msgs []string
	for _, sub := range []string{"new", "cur"} {
		files, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !os.IsNotExist(err) {
			p.t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(dir, sub, f.Name()))
			if os.IsNotExist(err) { // renamed meanwhile: look again
				return p.mailbox(user, name)
			}
			if err != nil {
				p.t.Fatal(err)
			}
			msgs = append(msgs, string(b))
		}
	}
	return msgs
}

// with waits until the mailbox has a message with a subject, and returns it.
func (p *process) with(user, name, subject string) string {
	p.t.Helper()
	var found string
	eventually(p.t, fmt.Sprintf("%s has %q in %q", user, subject, name), func() bool {
		for _, m := range p.mailbox(user, name) {
			if strings.Contains(m, "\nSubject: "+subject+"\r\n") {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// eventually waits for something that another process does and cannot tell.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx := within(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it does not come to pass: %s", what)
		}
	}
}
