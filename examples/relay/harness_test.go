package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

// childEnv makes the test binary the relay, so that what is tested is a real process, under the
// race detector when the test is.
const childEnv = "RELAY_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "1" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// patience bounds every wait. It is no measure: what is well takes a fraction of it.
const patience = 2 * time.Minute

// A process is a running relay.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
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

// command is the relay with some arguments, not started.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	return cmd
}

// start runs a relay on a spool, and waits until it is ready. It ends with the test.
func start(t *testing.T, spool string, args ...string) *process {
	t.Helper()
	p := &process{t: t, log: &logBuffer{}, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	p.cmd = command(ctx, append([]string{"-listen", "127.0.0.1:0", "-hostname", "relay.example", "-v", "-spool", spool}, args...)...)
	p.cmd.Stderr = p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make(chan string, 1)
	go func() {
		defer close(p.done)
		out := bufio.NewReader(stdout)
		line, _ := out.ReadString('\n')
		first <- strings.TrimSuffix(line, "\n")
		rest, _ := io.ReadAll(out)
		if p.err = p.cmd.Wait(); len(rest) > 0 {
			p.err = errors.Join(p.err, fmt.Errorf("on stdout: %q", rest))
		}
	}()
	t.Cleanup(func() {
		cancel() // kills it if it still runs
		<-p.done
		if t.Failed() {
			t.Logf("log of the relay with the spool %s:\n%s", spool, p.log)
		}
	})
	select {
	case p.addr = <-first:
	case <-time.After(patience):
	}
	if _, err := net.ResolveTCPAddr("tcp", p.addr); err != nil || p.addr == "" {
		t.Fatalf("the relay said %q instead of its address:\n%s", p.addr, p.log)
	}
	return p
}

// end sends a signal, and waits for the end.
func (p *process) end(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	p.wait()
	if s != syscall.SIGKILL && p.err != nil {
		p.t.Fatalf("after %v: %v\n%s", s, p.err, p.log)
	}
}

func (p *process) wait() {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("the relay does not end:\n%s", p.log)
	}
}

// stop ends the relay as an operator does.
func (p *process) stop() { p.t.Helper(); p.end(syscall.SIGTERM) }

// send gives a message to the relay.
func (p *process) send(from, to, subject string) error {
	return p.sendFrom("127.0.0.1", from, subject, to)
}

// sendFrom is send from one of the host's addresses, to several.
func (p *process) sendFrom(ip, from, subject string, to ...string) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := d.Dial("tcp", p.addr)
	if err != nil {
		return err
	}
	c := smtp.NewClient(conn)
	defer c.Close()
	if err := c.Mail(from, nil); err != nil {
		return err
	}
	for _, r := range to {
		if err := c.Rcpt(r, nil); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, letter(from, to[0], subject)); err != nil {
		return err
	}
	return w.Close()
}

// letter is a message with a subject to find it by.
func letter(from, to, subject string) string {
	return fmt.Sprintf("From: %s\r\nTo: %s\r\nSubject: %s\r\n\r\nHello,\r\n.\r\n..\r\nGr=FC=DFe\r\n", from, to, subject)
}

// A sink is a host that mail is relayed to.
type sink struct {
	addr   string
	refuse string // a recipient; set before there is mail

	mu   sync.Mutex
	got  []arrival
	news chan struct{} // capacity 1
}

type arrival struct {
	from, text string
	to         []string
}

func newSink(t *testing.T) *sink {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{addr: l.Addr().String(), news: make(chan struct{}, 1)}
	server := smtp.NewServer(s)
	server.Domain = "sink.example"
	server.ErrorLog = log.New(io.Discard, "", 0) // connections that are cut off are what some tests are about
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
	return s
}

func (s *sink) NewSession(*smtp.Conn) (smtp.Session, error) { return &sinkSession{s: s}, nil }

type sinkSession struct {
	s *sink
	a arrival
}

func (x *sinkSession) Reset()        { x.a = arrival{} }
func (x *sinkSession) Logout() error { return nil }
func (x *sinkSession) Mail(from string, _ *smtp.MailOptions) error {
	x.a.from = from
	return nil
}
func (x *sinkSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	if to == x.s.refuse {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	}
	x.a.to = append(x.a.to, to)
	return nil
}
func (x *sinkSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	x.a.text = string(b)
	x.s.mu.Lock()
	x.s.got = append(x.s.got, x.a)
	x.s.mu.Unlock()
	select {
	case x.s.news <- struct{}{}:
	default:
	}
	return nil
}

// wait returns what has arrived when it is what is wanted.
func (s *sink) wait(t *testing.T, what string, enough func([]arrival) bool) []arrival {
	t.Helper()
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		got := slices.Clone(s.got)
		s.mu.Unlock()
		if enough(got) {
			return got
		}
		select {
		case <-s.news:
		case <-timeout:
			t.Fatalf("waited for %s in vain, %d messages are there", what, len(got))
		}
	}
}

// waitFor returns the first message when there are n.
func (s *sink) waitFor(t *testing.T, n int) []arrival {
	t.Helper()
	return s.wait(t, fmt.Sprintf("%d messages", n), func(got []arrival) bool { return len(got) >= n })
}

// subjects counts the messages by subject.
func (s *sink) subjects() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{}
	for _, a := range s.got {
		n[a.subject()]++
	}
	return n
}

func (a arrival) subject() string {
	_, v, _ := strings.Cut(a.text, "\nSubject: ")
	v, _, _ = strings.Cut(v, "\r\n")
	return v
}

func refused(err error, code int, enhanced smtp.EnhancedCode) bool {
	var se *smtp.SMTPError
	return errors.As(err, &se) && se.Code == code && se.EnhancedCode == enhanced
}
