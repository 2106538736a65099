package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/internal/report"
)

// patience is how long a step waits for what must come.
const patience = 15 * time.Second

// A demo has the two organisations and what their users see.
type demo struct {
	show        *show
	dir         string
	ca          *authority
	dns         *dnstest.Server
	alpha, beta *org
	alice, bob  *inbox
	postmaster  *inbox // alpha's, who reviews reports
	first       []byte // alice's, as it is in bob's mailbox
	letter      []byte // one of shop's, as bob got it
}

// compose writes a message as a mail program would: all that RFC 5322 wants, text in
// UTF-8, and lines that a careless relay would spoil.
func compose(from, to, id, subject string) string {
	return strings.Join([]string{
		"Date: " + time.Now().Format(time.RFC1123Z),
		"From: Alice <" + from + ">",
		"To: Bob <" + to + ">",
		"Message-ID: " + id,
		"Subject: " + subject,
		"MIME-Version: 1.0",
		"Content-Type: text/plain; charset=utf-8",
		"Content-Transfer-Encoding: 8bit",
		"X-Folded: this field is folded",
		"\tby the sender, and stays so",
		"",
		"Grüße aus der Pipeline.",
		".",
		"..A line that begins with dots, and one with spaces at its end:   ",
		"From here on it is as it was.",
		"",
		"",
	}, "\r\n")
}

func newID(what, domain string) string {
	return fmt.Sprintf("<%s.%d@%s>", what, time.Now().UnixNano(), domain)
}

// deliver: a message from client to mailbox, compared octet by octet.
func (d *demo) deliver(ctx context.Context) (string, error) {
	from, to := "alice@"+d.alpha.Domain, "bob@"+d.beta.Domain
	id := newID("first", d.alpha.Domain)
	sent := compose(from, to, id, "Hello through the whole pipeline")
	if _, err := d.alpha.mua(from).submit(from, []string{to}, sent); err != nil {
		return "", err
	}
	got, err := d.bob.await(ctx, hasID(id))
	if err != nil {
		return "", err
	}
	added, err := same(got, sent)
	if err != nil {
		return "", err
	}
	if err := passes(added); err != nil {
		return "", err
	}
	var names []string
	for _, f := range added.Fields {
		names = append(names, f.Name)
	}
	if want := "BIMI-Location"; !strings.Contains(added.Get(want), d.alpha.indicator()) {
		return "", fmt.Errorf("%s is %q, without %s", want, added.Get(want), d.alpha.indicator())
	}
	d.first = got
	d.show.hop("bob", "%d octets as sent; above them %s", len(sent), strings.Join(names, ", "))
	return fmt.Sprintf("%d octets compared; SPF, DKIM and DMARC pass, BIMI indicator found", len(sent)), nil
}

// read: bob's mail programs fetch the message, over IMAP and over POP3, and get what is in the mailbox.
func (d *demo) read(context.Context) (string, error) {
	m := d.beta.mua("bob@" + d.beta.Domain)
	id := messageID(d.first)
	for _, way := range []struct {
		name  string
		fetch func(addr, id string) ([]byte, error)
		addr  string
	}{{"IMAP", m.readIMAP, d.beta.imaps.Addr().String()}, {"POP3", m.readPOP3, d.beta.pop3s.Addr().String()}} {
		got, err := way.fetch(way.addr, id)
		if err != nil {
			return "", fmt.Errorf("%s: %w", way.name, err)
		}
		if !bytes.Equal(got, d.first) {
			return "", fmt.Errorf("%s gives %d octets that are not the %d in the mailbox", way.name, len(got), len(d.first))
		}
	}
	return fmt.Sprintf("%d octets, the same over both as in the mailbox", len(d.first)), nil
}

// forge: somebody else sends in alice's name, straight to the receiver.
func (d *demo) forge(ctx context.Context) (string, error) {
	to := "bob@" + d.beta.Domain
	id := newID("forged", "forger.example")
	c, err := smtp.Dial(d.beta.smtp.Addr().String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.Hello("mail.forger.example"); err != nil {
		return "", err
	}
	d.show.hop("forger", "connects to %s, MAIL FROM:<x@forger.example>, From: alice@%s", d.beta.smtp.Addr(), d.alpha.Domain)
	_, err = transact(c, "x@forger.example", []string{to}, compose("alice@"+d.alpha.Domain, to, id, "Please pay this invoice"))
	var refused *smtp.SMTPError
	if !errors.As(err, &refused) || refused.Code != 550 || refused.EnhancedCode != (smtp.EnhancedCode{5, 7, 1}) {
		return "", fmt.Errorf("expected 550 5.7.1, got: %v", err)
	}
	text := strings.Join(strings.Fields(refused.Message), " ")
	d.show.hop("forger", "is refused: %d %d.%d.%d %s", refused.Code, refused.EnhancedCode[0], refused.EnhancedCode[1], refused.EnhancedCode[2], text)
	if n, err := d.bob.count(ctx, id); err != nil || n != 0 {
		return "", fmt.Errorf("the forged message arrived %d times (%v)", n, err)
	}
	return "550 5.7.1 although SPF passes for the forger's own domain", nil
}

// bounce: nobody of that name; the sender is told.
func (d *demo) bounce(ctx context.Context) (string, error) {
	from, to := "alice@"+d.alpha.Domain, "nobody@"+d.beta.Domain
	id := newID("unknown", d.alpha.Domain)
	if _, err := d.alpha.mua(from).submit(from, []string{to}, compose(from, to, id, "Is anybody there?")); err != nil {
		return "", err
	}
	var rep *report.Report
	_, err := d.alice.await(ctx, func(msg []byte) bool {
		r, err := report.Parse(bytes.NewReader(msg))
		if err != nil || r.Delivery == nil || messageID(r.Returned) != id {
			return false
		}
		rep = r
		return true
	})
	if err != nil {
		return "", err
	}
	failed := slices.ContainsFunc(rep.Delivery.Recipients, func(r report.Recipient) bool {
		return r.Final.Value == to && r.Action == report.Failed && r.Status.String() == "5.1.1"
	})
	if !failed {
		return "", fmt.Errorf("the report does not say that %s failed with 5.1.1: %+v", to, rep.Delivery.Recipients)
	}
	d.show.hop("alice", "reads the report: %s failed with 5.1.1", to)
	if err := d.alpha.refuses(from, to); err != nil {
		return "", err
	}
	return "5.1.1 reported to alice, and her next message there refused at once", nil
}

// refuses checks that the submission server stops a message to somebody suppressed.
func (o *org) refuses(from, to string) error {
	_, err := o.mua(from).submit(from, []string{to}, compose(from, to, newID("stopped", o.Domain), "Once more"))
	var refused *smtp.SMTPError
	if !errors.As(err, &refused) || refused.Code != 550 || refused.EnhancedCode != (smtp.EnhancedCode{5, 1, 0}) {
		return fmt.Errorf("%s to %s: expected 550 5.1.0, got: %v", from, to, err)
	}
	o.show.hop("MUA", "is refused: 550 5.1.0 %s", refused.Message)
	return nil
}

// crash: the process with the queue is killed after its 250, and started again.
func (d *demo) crash(ctx context.Context) (string, error) {
	s := d.alpha.settings
	s.Dir, s.WithMail, s.Frozen = filepath.Join(d.dir, "crash"), false, true
	c, err := startChild(s, d.show)
	if err != nil {
		return "", err
	}
	d.show.hop("process", "child %d runs the sender's queue in %s, and sends nothing yet", c.cmd.Process.Pid, s.Dir)
	from, to := "alice@"+s.Domain, "bob@"+d.beta.Domain
	id := newID("crash", s.Domain)
	sent := compose(from, to, id, "This one survives")
	m := d.alpha.mua(from)
	m.addr = c.addr
	if _, err := m.submit(from, []string{to}, sent); err != nil {
		return "", errors.Join(err, c.kill())
	}
	pid := c.cmd.Process.Pid
	if err := c.kill(); err != nil {
		return "", err
	}
	d.show.hop("process", "child %d is killed with SIGKILL right after the 250", pid)
	if n, err := d.bob.count(ctx, id); err != nil || n != 0 {
		return "", fmt.Errorf("the message arrived %d times before it was sent (%v)", n, err)
	}
	s.Frozen = false
	if c, err = startChild(s, d.show); err != nil {
		return "", err
	}
	d.show.hop("process", "child %d starts on the same directory", c.cmd.Process.Pid)
	got, err := d.bob.await(ctx, hasID(id))
	if err != nil {
		return "", errors.Join(err, c.kill())
	}
	if _, err := same(got, sent); err != nil {
		return "", errors.Join(err, c.kill())
	}
	if err := c.stop(); err != nil {
		return "", fmt.Errorf("the second child: %w", err)
	}
	// A third life would send what the second had not finished.
	if c, err = startChild(s, d.show); err != nil {
		return "", err
	}
	if err := c.stop(); err != nil {
		return "", fmt.Errorf("the third child: %w", err)
	}
	if n, err := d.bob.count(ctx, id); err != nil || n != 1 {
		return "", fmt.Errorf("the message arrived %d times, not once (%v)", n, err)
	}
	return "accepted before the kill, arrived once after it", nil
}

// many: n messages over several sessions at once.
func (d *demo) many(ctx context.Context, n int) (string, error) {
	from, to := "alice@"+d.alpha.Domain, "bob@"+d.beta.Domain
	begin := time.Now()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = newID(fmt.Sprintf("many-%d", i), d.alpha.Domain)
	}
	var next, failed atomic.Int64
	var firstErr error
	var once sync.Once
	var wg sync.WaitGroup
	for range min(n, 8) {
		wg.Go(func() {
			m := d.alpha.mua(from)
			m.show = nil
			for ctx.Err() == nil && failed.Load() == 0 {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if _, err := m.submit(from, []string{to}, compose(from, to, ids[i], fmt.Sprintf("Number %d", i))); err != nil {
					failed.Add(1)
					once.Do(func() { firstErr = fmt.Errorf("message %d: %w", i, err) })
				}
			}
		})
	}
	want := map[string]int{}
	for _, id := range ids {
		want[id] = 0
	}
	done := 0
	_, err := d.bob.await(ctx, func(msg []byte) bool {
		id := messageID(msg)
		if c, ok := want[id]; ok {
			want[id] = c + 1
			done++
			d.show.progress(done, n, begin)
		}
		return done >= n || failed.Load() > 0
	})
	wg.Wait()
	if err := errors.Join(firstErr, err); err != nil {
		return "", err
	}
	if err := d.bob.look(ctx); err != nil {
		return "", err
	}
	for id, c := range want {
		if c != 1 {
			return "", fmt.Errorf("%s arrived %d times, not once", id, c)
		}
	}
	took := time.Since(begin)
	return fmt.Sprintf("%d of %d, each once, %.0f a second from client to mailbox", done, n, float64(n)/took.Seconds()), nil
}

// settled: nothing is left behind in a queue.
func (d *demo) settled(ctx context.Context) (string, error) {
	for _, o := range []*org{d.alpha, d.beta} {
		deadline := time.Now().Add(patience)
		for {
			st, err := o.store.Stats(ctx)
			if err != nil {
				return "", err
			}
			if left := st.Items - o.waits(); left <= 0 {
				break
			}
			// The last result is settled a moment after the message arrived.
			if time.Now().After(deadline) {
				return "", fmt.Errorf("%s: %d items are left in the queue, %d of which wait for tomorrow", o.Domain, st.Items, o.waits())
			}
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	for _, o := range []*org{d.alpha, d.beta} {
		c, waits := o.queue.Stats(), uint64(o.waits())
		d.show.hop("queue", "%s: %d queued = %d delivered + %d failed + %d waiting", o.Domain, c.Queued, c.Delivered, c.Failed, waits)
		if c.Queued != c.Delivered+c.Failed+waits {
			return "", errors.New("accepted is not delivered + bounced + waiting")
		}
	}
	return "accepted = delivered + bounced + waiting", nil
}
