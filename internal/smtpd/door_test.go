package smtpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

func transaction(to ...string) *Transaction {
	env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: mailspine.Address{Local: "joe", Domain: "example.com"}}
	for _, a := range to {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: a, Domain: "example.org"}})
	}
	return &Transaction{Envelope: env}
}

// A taker is a Deliverer that answers by local part, and counts.
type taker struct {
	mu    sync.Mutex
	fail  map[string]error
	taken map[string]int
	calls int
	why   mailspine.RecipientErrors
	ids   []mailspine.MsgID
	body  string
}

func (d *taker) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	d.why = mailspine.FailuresFrom(ctx)
	d.ids = append(d.ids, env.ID)
	b, err := mailspine.ReadContent(ctx, msg, 1<<20)
	if err != nil {
		return err
	}
	d.body = string(b)
	res := make(mailspine.RecipientErrors, len(env.Recipients))
	for i, r := range env.Recipients {
		if res[i] = d.fail[r.Address.Local]; res[i] == nil {
			if d.taken == nil {
				d.taken = map[string]int{}
			}
			d.taken[r.Address.Local]++
		}
	}
	return res.Err()
}

const hello = "Subject: hello\r\n\r\nhello\r\n"

func take(d *Door, tx *Transaction) (string, error) {
	return d.Take(context.Background(), tx, strings.NewReader(hello), nil)
}

func TestDoorAllAndNone(t *testing.T) {
	next := &taker{fail: map[string]error{"full": mailspine.Errorf(452, "4.2.2", "Full"), "no": mailspine.Errorf(550, "5.1.1", "No")}}
	never := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		t.Error("Undelivered is called")
		return nil
	})
	d := &Door{Next: next, Undelivered: never, Logger: quiet()}
	tx := transaction("ann", "bob")
	if text, err := take(d, tx); err != nil || text != "Ok: queued as "+string(tx.Envelope.ID) {
		t.Errorf("%q, %v", text, err)
	}
	for _, c := range []struct {
		to   string
		want string
	}{{"no full", "452 4.2.2 Full"}, {"full no", "452 4.2.2 Full"}, {"no no", "550 5.1.1 No"}} {
		_, err := take(d, transaction(strings.Fields(c.to)...))
		if got := mailspine.Status(err).Reply(); got != c.want {
			t.Errorf("%s: %s", c.to, got)
		}
	}
	d.Undelivered = nil
	if _, err := take(d, transaction("no", "full")); err == nil || d.single.Load() {
		t.Error("none taken is not a mixed result")
	}
}

func TestDoorMixed(t *testing.T) {
	next := &taker{fail: map[string]error{"full": mailspine.Errorf(452, "4.2.2", "Full"), "no": mailspine.Errorf(550, "5.1.1", "No")}}
	rest := &taker{}
	d := &Door{Next: next, Undelivered: rest, Logger: quiet()}
	tx := transaction("no", "ann", "full", "bob")
	if _, err := take(d, tx); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"ann": 1, "bob": 1}
	if fmt.Sprint(next.taken) != fmt.Sprint(want) || fmt.Sprint(rest.taken) != "map[full:1 no:1]" {
		t.Errorf("Next has %v, Undelivered %v", next.taken, rest.taken)
	}
	if len(rest.why) != 2 || mailspine.Status(rest.why[0]).Code != 550 || mailspine.Status(rest.why[1]).Code != 452 {
		t.Errorf("reasons %v", rest.why)
	}
	if rest.ids[0] == tx.Envelope.ID || rest.ids[0] == "" || rest.body != hello {
		t.Errorf("Undelivered got %s %q", rest.ids[0], rest.body)
	}
	if next.why != nil {
		t.Error("Next is told failures")
	}
	// LMTP answers each, and needs nobody.
	d = &Door{Next: next, Logger: quiet()}
	tx = transaction("no", "ann", "full")
	tx.LMTP = true
	_, err := take(d, tx)
	for i, want := range []string{"550 5.1.1 No", "", "452 4.2.2 Full"} {
		if s := mailspine.Status(mailspine.ErrorAt(err, i)); s == nil && want != "" || s != nil && s.Reply() != want {
			t.Errorf("recipient %d: %v", i, s)
		}
	}
	if d.single.Load() {
		t.Error("LMTP made the door careful")
	}
}

// Without Undelivered a mixed result is possible once; nothing is lost then.
func TestDoorMixedWithoutUndelivered(t *testing.T) {
	l := &logs{}
	next := &taker{fail: map[string]error{"full": mailspine.Errorf(452, "4.2.2", "Full")}}
	d := &Door{Next: next, Logger: l.logger()}
	tx := transaction("ann")
	if err := d.Rcpt(tx); err != nil {
		t.Fatal(err)
	}
	_, err := take(d, transaction("ann", "full"))
	if got := mailspine.Status(err).Reply(); got != "452 4.2.2 Full" {
		t.Errorf("%s", got)
	}
	if !strings.Contains(l.String(), "level=ERROR") {
		t.Error("not logged as an error")
	}
	if err := d.Rcpt(transaction()); err != nil {
		t.Error(err)
	}
	if got := mailspine.Status(d.Rcpt(tx)).Reply(); got != "452 4.5.3 One recipient for each message" {
		t.Errorf("second recipient: %s", got)
	}
}

// Undelivered refuses, too: not a 250, whatever that costs.
func TestDoorUndeliveredFails(t *testing.T) {
	next := &taker{fail: map[string]error{"full": mailspine.Errorf(550, "5.2.2", "Full"), "no": mailspine.Errorf(550, "5.1.1", "No")}}
	rest := &taker{fail: map[string]error{"no": errors.New("disk")}}
	d := &Door{Next: next, Undelivered: rest, Logger: quiet()}
	_, err := take(d, transaction("ann", "full", "no"))
	if got := mailspine.Status(err); got == nil || got.Code != 451 || strings.Contains(got.Reply(), "disk") {
		t.Errorf("%v", got)
	}
}

// For any results of Next and Undelivered: 250 exactly if everyone was taken
// once by one of them, or none was lost by the client's being told no.
func TestDoorModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "n")
		var to []string
		failNext, failRest := map[string]error{}, map[string]error{}
		for i := range n {
			name := fmt.Sprintf("r%d", i)
			to = append(to, name)
			outcome := rapid.SampledFrom([]error{nil, nil, mailspine.Errorf(450, "4.2.1", "Busy"), mailspine.Errorf(550, "5.1.1", "No"), io.ErrClosedPipe})
			if e := outcome.Draw(t, "next"); e != nil {
				failNext[name] = e
			}
			if e := rapid.SampledFrom([]error{nil, nil, nil, nil, io.ErrClosedPipe}).Draw(t, "rest"); e != nil {
				failRest[name] = e
			}
		}
		next, rest := &taker{fail: failNext}, &taker{fail: failRest}
		_, err := take(&Door{Next: next, Undelivered: rest, Logger: quiet()}, transaction(to...))
		took := 0
		for _, name := range to {
			c := next.taken[name] + rest.taken[name]
			if c > 1 {
				t.Fatalf("%s was taken %d times", name, c)
			}
			took += c
		}
		switch {
		case err == nil && took != n:
			t.Fatalf("250, but %d of %d taken: lost", took, n)
		case err != nil && len(failNext) == n && took != 0:
			t.Fatalf("refused for all, but %d taken", took)
		case err != nil && len(failNext) < n && rest.calls == 0:
			t.Fatal("mixed, and Undelivered was not asked")
		}
	})
}

// A faulty stager: what it opens must be closed, and nothing reach Next.
type faultyStager struct {
	mailspine.Deliverer
	at     string
	opened int
	closed int
	wrote  int
}

func (f *faultyStager) Stage(context.Context, int64) (mailspine.Stage, error) {
	if f.at == "stage" {
		return nil, &os.PathError{Op: "open", Path: "/spool/secret", Err: syscall.ENOSPC}
	}
	f.opened++
	return &faultyStage{f: f}, nil
}

type faultyStage struct {
	f    *faultyStager
	done bool
	buf  strings.Builder
}

func (s *faultyStage) Write(p []byte) (int, error) {
	if s.f.at == "write" && s.f.wrote+len(p) > 20_000 {
		return 0, &os.PathError{Op: "write", Path: "/spool/secret", Err: syscall.ENOSPC}
	}
	s.f.wrote += len(p)
	return s.buf.Write(p)
}

func (s *faultyStage) Content() (mailspine.Content, error) {
	if s.f.at == "content" {
		return nil, syscall.ENOSPC
	}
	c := mailspine.StringContent(s.buf.String())
	if s.f.at == "open" {
		return faultyContent{c}, nil
	}
	return c, nil
}

type faultyContent struct{ mailspine.Content }

func (faultyContent) Open(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(iotest.ErrReader(syscall.EIO)), nil
}

func (s *faultyStage) Close() error {
	if !s.done {
		s.done = true
		s.f.closed++
	}
	return nil
}

func TestDiskFullWhileAccepting(t *testing.T) {
	for _, at := range []string{"stage", "write", "content", "open", "deliver", ""} {
		next := &taker{fail: map[string]error{}}
		if at == "deliver" {
			next.fail["ann"] = fmt.Errorf("put: %w", syscall.ENOSPC)
		}
		st := &faultyStager{Deliverer: next, at: at}
		door := &Door{Next: st, Logger: quiet()}
		r := &recorder{data: func(tx *Transaction, r io.Reader) (string, error) {
			return door.Take(context.Background(), tx, r, nil)
		}}
		c := dialTo(t, start(t, &Server{Handler: r}))
		c.expect("220 ")
		beginMessage(c)
		c.send("Subject: x\r\n\r\n" + strings.Repeat("0123456789\r\n", 10_000) + ".\r\n")
		switch at {
		case "":
			c.expect("250 2.0.0 Ok: queued as ")
		case "open":
			c.expect("451 4.3.0 Local error in processing")
		default:
			if r := c.expect("452 4.3.1 Insufficient system storage"); strings.Contains(r, "secret") {
				t.Error(r)
			}
		}
		c.cmd("QUIT", "221 ") // and the conversation goes on
		if st.opened != st.closed {
			t.Errorf("%s: %d stages opened, %d closed", at, st.opened, st.closed)
		}
		if n := len(next.taken); (at == "") != (n == 1) {
			t.Errorf("%s: taken %v", at, next.taken)
		}
	}
}

func TestDoorChecks(t *testing.T) {
	next := &taker{}
	d := &Door{Next: next, Logger: quiet()}
	run := func(msg string, p Prepare) (*Transaction, error) {
		tx := transaction("ann")
		_, err := d.Take(context.Background(), tx, strings.NewReader(msg), p)
		return tx, err
	}
	if _, err := run(strings.Repeat("Received: x\r\n", 100)+"\r\n", nil); err != nil {
		t.Error(err)
	}
	if _, err := run(strings.Repeat("received: x\r\n", 101)+"\r\n", nil); mailspine.Status(err).Reply() != "554 5.4.6 Too many hops, this looks like a loop" {
		t.Error(err)
	}
	if _, err := run(strings.Repeat("X: "+strings.Repeat("y", 900)+"\r\n", 2000)+"\r\n", nil); mailspine.Status(err).Code != 554 {
		t.Error(err)
	}
	if tx, err := run(hello+"caf\xc3\xa9\r\n", nil); err != nil || tx.Envelope.Body != mailspine.Body8Bit {
		t.Errorf("%v, body %d", err, tx.Envelope.Body)
	}
	_, err := run(hello, func(_ context.Context, env *mailspine.Envelope, msg mailspine.Content, h *mailspine.Header) (mailspine.Content, error) {
		env.Tenant = h.Get("Subject")
		return mailspine.Prepend(msg, []byte("X: y\r\n")), nil
	})
	if err != nil || next.body != "X: y\r\n"+hello {
		t.Errorf("%v, %q", err, next.body)
	}
	calls := next.calls
	if _, err := run(hello, func(context.Context, *mailspine.Envelope, mailspine.Content, *mailspine.Header) (mailspine.Content, error) {
		return nil, mailspine.Errorf(554, "5.7.1", "No")
	}); mailspine.Status(err).Code != 554 || next.calls != calls {
		t.Errorf("%v", err)
	}
	// The client is gone before the message is complete: it will send it again.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.Take(ctx, transaction("ann"), strings.NewReader(hello), nil); !errors.Is(err, context.Canceled) || next.calls != calls {
		t.Errorf("%v", err)
	}
	if _, err := d.Take(context.Background(), transaction("ann"), iotest.ErrReader(io.ErrUnexpectedEOF), nil); err == nil || next.calls != calls {
		t.Errorf("%v", err)
	}
	if _, err := (&Door{}).Take(context.Background(), transaction("ann"), strings.NewReader(hello), nil); mailspine.Status(err).Code != 451 {
		t.Errorf("%v", err)
	}
}

// The delivery of a complete message outlives its client, within the limit.
func TestDoorCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		next := mailspine.DelivererFunc(func(dctx context.Context, _ *mailspine.Envelope, _ mailspine.Content) error {
			cancel()
			if dctx.Err() != nil {
				t.Error("the delivery is cancelled with the connection")
			}
			<-dctx.Done()
			return dctx.Err()
		})
		began := time.Now()
		_, err := (&Door{Next: next}).Take(ctx, transaction("ann"), strings.NewReader(hello), nil)
		took(t, "the commit", began, 5*time.Minute)
		if got := mailspine.Status(err).Reply(); got != "451 4.4.7 Timed out, try again later" {
			t.Error(got)
		}
	})
}

func TestReceived(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.FixedZone("", 3600))
	tx := transaction("ann")
	env := tx.Envelope
	env.ID = "ABC"
	env.Origin = mailspine.Origin{Addr: mustAddrPort("192.0.2.1:99"), Helo: "client.example", Proto: "ESMTPS",
		TLS: mailspine.TLSInfo{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256"}}
	want := "Received: from client.example ([192.0.2.1])\r\n\tby mx.example.org with ESMTPS\r\n\t(TLS 1.3 TLS_AES_128_GCM_SHA256)\r\n" +
		"\tid ABC\r\n\tfor <ann@example.org>;\r\n\tWed, 04 Mar 2026 05:06:07 +0100\r\n"
	if got := string(Received(env, "mx.example.org", at)); got != want {
		t.Errorf("got %q", got)
	}
	env = transaction("ann", "bob").Envelope
	env.ID = "ABC"
	env.Origin = mailspine.Origin{Addr: mustAddrPort("[2001:db8::1]:99"), Helo: "a (b\r\nX: y", Proto: "SMTP"}
	want = "Received: from unknown ([IPv6:2001:db8::1])\r\n\tby mx.example.org with SMTP\r\n\tid ABC;\r\n\tWed, 04 Mar 2026 05:06:07 +0100\r\n"
	if got := string(Received(env, "mx.example.org", at)); got != want {
		t.Errorf("got %q", got)
	}
}
