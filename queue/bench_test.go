package queue_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/report"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A bench is a Queue on a memory store in a synctest bubble, with a Next whose
// answers a test decides.
type bench struct {
	*testing.T
	q     *queue.Queue
	store queue.Store
	start time.Time
	stop  func() error // ends Run and returns its error

	mu     sync.Mutex
	got    []delivered
	answer func(ctx context.Context, env *mailspine.Envelope) error
}

type delivered struct {
	at   time.Duration
	env  *mailspine.Envelope
	body string
}

// run runs f in a bubble with a queue that is running. setup may change the
// queue before it starts.
func run(t *testing.T, setup func(b *bench), f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := memqueue.New(nil)
		b := &bench{T: t, store: store, start: time.Now()}
		b.q = &queue.Queue{
			Store: store, Hostname: "mx.example.org", Retry: queue.DefaultRetry{Jitter: -1},
			Now:    func() time.Time { return time.Now().UTC() },
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
		b.q.Next = mailspine.DelivererFunc(b.deliver)
		if setup != nil {
			setup(b)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- b.q.Run(ctx) }()
		stopped := false
		b.stop = func() error {
			stopped = true
			cancel()
			return <-done
		}
		f(b)
		if !stopped {
			if err := b.stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
		}
		store.Close()
	})
}

func (b *bench) deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	body, err := mailspine.ReadContent(ctx, msg, 1<<20)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.got = append(b.got, delivered{time.Since(b.start), env.Clone(), string(body)})
	answer := b.answer
	b.mu.Unlock()
	if answer == nil || strings.HasPrefix(string(env.ID), "dsn-") {
		return nil
	}
	return answer(ctx, env)
}

func (b *bench) setAnswer(f func(context.Context, *mailspine.Envelope) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = f
}

// log lists what Next got: when, and for whom. Reports are marked.
func (b *bench) log() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []string
	for _, d := range b.got {
		var to []string
		for _, r := range d.env.Recipients {
			to = append(to, r.Address.Local)
		}
		s := fmt.Sprintf("%v %s", d.at.Truncate(time.Second), strings.Join(to, "+"))
		if strings.HasPrefix(string(d.env.ID), "dsn-") {
			s += " report"
		}
		lines = append(lines, s)
	}
	return strings.Join(lines, ", ")
}

func (b *bench) wantLog(want string) {
	b.Helper()
	synctest.Wait()
	if got := b.log(); got != want {
		b.Errorf("Next got\n  %s\nwant\n  %s", got, want)
	}
}

// reports returns the reports that Next got, parsed.
func (b *bench) reports() []*report.Report {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*report.Report
	for _, d := range b.got {
		if !strings.HasPrefix(string(d.env.ID), "dsn-") {
			continue
		}
		if !d.env.From.IsZero() || d.env.Recipients[0].Notify != mailspine.NotifyNever {
			b.Errorf("a report is from %s, with NOTIFY %v", d.env.From.Path(), d.env.Recipients[0].Notify)
		}
		r, err := report.Parse(strings.NewReader(d.body))
		if err != nil {
			b.Fatalf("parsing a report: %v\n%s", err, d.body)
		}
		all = append(all, r)
	}
	return all
}

func (b *bench) report() *report.Report {
	b.Helper()
	all := b.reports()
	if len(all) != 1 {
		b.Fatalf("%d reports, want 1; Next got %s", len(all), b.log())
	}
	return all[0]
}

// actions lists what a report tells of whom.
func actions(r *report.Report) string {
	var s []string
	for _, x := range r.Delivery.Recipients {
		s = append(s, fmt.Sprintf("%s %s %v", strings.SplitN(x.Final.Value, "@", 2)[0], x.Action, x.Status))
	}
	return strings.Join(s, ", ")
}

func (b *bench) stats() queue.Stats {
	b.Helper()
	synctest.Wait()
	st, err := b.store.(queue.Inspector).Stats(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	return st
}

func addr(s string) mailspine.Address {
	a, err := mailspine.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

const letter = "From: sender@example.org\r\nSubject: A letter\r\nMessage-ID: <1@example.org>\r\n\r\nDear reader,\r\n"

func envelope(id string, rcpts ...string) *mailspine.Envelope {
	env := &mailspine.Envelope{ID: mailspine.MsgID(id), From: addr("sender@example.org")}
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(r)})
	}
	return env
}

func (b *bench) send(env *mailspine.Envelope) {
	b.Helper()
	if err := b.q.Deliver(context.Background(), env, mailspine.StringContent(letter)); err != nil {
		b.Fatalf("Deliver: %v", err)
	}
}

// byLocal answers by the local part of each recipient; unknown ones are taken.
func byLocal(answers map[string]error) func(context.Context, *mailspine.Envelope) error {
	return func(_ context.Context, env *mailspine.Envelope) error {
		res := make(mailspine.RecipientErrors, len(env.Recipients))
		for i, r := range env.Recipients {
			res[i] = answers[r.Address.Local]
		}
		return res.Err()
	}
}

var (
	errBusy    = mailspine.Errorf(450, "4.2.1", "Mailbox busy")
	errUnknown = mailspine.Errorf(550, "5.1.1", "No such user")
)
