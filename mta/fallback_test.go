package mta

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A way is a Deliverer with a result for each local part; the others are taken.
type way struct {
	results  map[string]error
	receipts map[string]string // the Reply to record, by local part; none: nothing is recorded
	whole    error             // in place of results by recipient

	got []*mailspine.Envelope
}

func (w *way) Deliver(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
	w.got = append(w.got, env.Clone())
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	for i, r := range env.Recipients {
		errs[i] = w.results[r.Address.Local]
		if text, ok := w.receipts[r.Address.Local]; ok {
			mailspine.AttemptFrom(ctx).Record(i, mailspine.Receipt{Reply: text})
		}
	}
	if w.whole != nil {
		return w.whole
	}
	return errs.Err()
}

func (w *way) asked() string {
	var all []string
	for _, env := range w.got {
		var to []string
		for _, r := range env.Recipients {
			to = append(to, r.Address.Local)
		}
		all = append(all, strings.Join(to, " "))
	}
	return strings.Join(all, "; ")
}

var (
	unreached = mailspine.Errorf(451, "4.4.1", "Could not connect")
	noDNS     = mailspine.Errorf(451, "4.4.3", "No answer from the DNS")
	noRoute   = mailspine.Errorf(451, "4.4.4", "No way")
	inDoubt   = mailspine.Errorf(451, "4.4.2", "Lost the connection")
	lateDoubt = mailspine.Errorf(451, "4.4.7", "Out of time")
	noUser    = mailspine.Errorf(550, "5.1.1", "No such user")
	forGood   = mailspine.Errorf(550, "5.4.1", "No answer, ever")
	greylist  = mailspine.Errorf(451, "4.7.1", "Greylisted")
	badTLS    = mailspine.Errorf(451, "4.7.5", "The certificate is bad")
)

func quietFallback(to ...mailspine.Deliverer) *Fallback {
	return &Fallback{To: to, Logger: slog.New(slog.DiscardHandler)}
}

// Which results lead to another way.
func TestFallbackTries(t *testing.T) {
	always := func(*mailspine.Error) bool { return true }
	for _, tt := range []struct {
		name string
		err  error
		when func(*mailspine.Error) bool
		next bool
	}{
		{"taken", nil, nil, false},
		{"taken, always", nil, always, false},
		{"4.4.1", unreached, nil, true},
		{"4.4.3", noDNS, nil, true},
		{"4.4.4", noRoute, nil, true},
		{"4.4.1, wrapped", fmt.Errorf("x: %w", unreached), nil, true},
		{"a DNS error", &mailspine.DNSError{Name: "x", Kind: mailspine.ErrDNSTemporary}, nil, true},
		{"4.4.1, never", unreached, func(*mailspine.Error) bool { return false }, false},
		{"4.4.2", inDoubt, nil, false},
		{"4.4.2, always", inDoubt, always, false},
		{"4.4.7, always", lateDoubt, always, false},
		{"nonsense after the message, always", mailspine.Errorf(451, "4.5.0", "Not SMTP").WithCause(&smtpclient.InDoubtError{Err: io.EOF}), always, false},
		{"a time-out of ours, always", context.DeadlineExceeded, always, false},
		{"5.1.1, always", noUser, always, false},
		{"5.4.1, always", forGood, always, false},
		{"greylisted", greylist, nil, false},
		{"greylisted, always", greylist, always, true},
		{"TLS", badTLS, nil, false},
		{"unknown", errors.New("broken"), nil, false},
		{"unknown, always", errors.New("broken"), always, true},
		{"not now", &mailspine.NotNow{Reason: "cap"}, nil, false},
		{"not now, when it is asked for", &mailspine.NotNow{Reason: "cap"}, func(e *mailspine.Error) bool {
			var n *mailspine.NotNow
			return errors.As(e, &n)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, second := &way{whole: tt.err}, &way{}
			f := quietFallback(first, second)
			f.When = tt.when
			err := f.Deliver(t.Context(), envelope(t, "s@s.example", "a@d.example"), mailspine.StringContent("x"))
			if next := len(second.got) > 0; next != tt.next || len(first.got) != 1 {
				t.Errorf("asked %d and %d times", len(first.got), len(second.got))
			}
			switch {
			case tt.next && err != nil:
				t.Errorf("the second took it, and the error is %v", err)
			case !tt.next && !errors.Is(mailspine.ErrorAt(err, 0), tt.err):
				t.Errorf("%v, want %v", err, tt.err)
			}
		})
	}
}

// Each recipient goes its own way, under an ID of its own where they part; results and receipts are those of the
// Deliverer that counts, at the indices of the whole.
func TestFallbackRecipients(t *testing.T) {
	quota := &mailspine.NotNow{Reason: "cap", Until: time.Unix(2000, 0)}
	first := &way{
		results:  map[string]error{"b": unreached, "c": noUser, "d": unreached, "e": inDoubt, "f": unreached, "g": unreached},
		receipts: map[string]string{"a": "250 first", "b": "first", "c": "550 first", "d": "first", "f": "first", "g": "first"},
	}
	second := &way{
		results:  map[string]error{"d": greylist, "f": quota, "g": unreached},
		receipts: map[string]string{"d": "451 second", "f": "second"},
	}
	third := &way{receipts: map[string]string{"g": "250 third"}}
	f := quietFallback(first, second, third)
	a := &attempt{}
	env := envelope(t, "s@s.example", "a@d.example", "b@d.example", "c@d.example", "d@d.example", "e@d.example", "f@d.example", "g@d.example")
	before := fmt.Sprintf("%+v", env)
	err := f.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x"))
	for i, want := range []error{nil, nil, noUser, greylist, inDoubt, unreached, nil} {
		if got := mailspine.ErrorAt(err, i); got != want {
			t.Errorf("%s: %v, want %v", env.Recipients[i].Address, got, want)
		}
	}
	if first.asked() != "a b c d e f g" || second.asked() != "b d f g" || third.asked() != "g" {
		t.Errorf("asked %q, %q, %q", first.asked(), second.asked(), third.asked())
	}
	if id := first.got[0].ID; id != env.ID {
		t.Errorf("the first got ID %s", id)
	}
	if a, b := second.got[0].ID, third.got[0].ID; a == env.ID || a == b || a != env.Subset([]int{1, 3, 5, 6}).PartID() {
		t.Errorf("the parts have the IDs %s and %s", a, b)
	}
	var got []string
	for _, i := range slices.Sorted(maps.Keys(a.receipts)) {
		got = append(got, fmt.Sprint(i, " ", a.receipts[i].Reply))
	}
	// What took b recorded nothing, so nothing is known of b.
	if want := []string{"0 250 first", "2 550 first", "3 451 second", "5 first", "6 250 third"}; !slices.Equal(got, want) {
		t.Errorf("receipts %q, want %q", got, want)
	}
	if fmt.Sprintf("%+v", env) != before {
		t.Error("the envelope was changed")
	}
}

// Who did not try does not stand for one who did; of those who did not, the one that may be asked again first counts.
func TestFallbackNotNow(t *testing.T) {
	at := func(s int64) *mailspine.NotNow { return &mailspine.NotNow{Until: time.Unix(s, 0)} }
	open := &mailspine.NotNow{Reason: "some time"}
	soon, late := at(1000), at(2000)
	for _, tt := range []struct {
		first, second, want error
	}{
		{unreached, late, unreached},
		{late, unreached, unreached},
		{late, soon, soon},
		{soon, late, soon},
		{open, late, open},
		{late, open, open},
		{open, open, open},
		{late, noUser, noUser},
		{unreached, noDNS, noDNS},
		{unreached, fmt.Errorf("x: %w", late), unreached},
	} {
		f := quietFallback(&way{whole: tt.first}, &way{whole: tt.second})
		f.When = func(*mailspine.Error) bool { return true }
		err := f.Deliver(t.Context(), envelope(t, "s@s.example", "a@d.example"), mailspine.StringContent("x"))
		if got := mailspine.ErrorAt(err, 0); got != tt.want {
			t.Errorf("%v, then %v: %v, want %v", tt.first, tt.second, got, tt.want)
		}
	}
}

// When the delivery has no more time nothing else is begun, and what there is stays.
func TestFallbackEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	second := &way{}
	f := quietFallback(mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		cancel()
		return unreached
	}), second)
	err := f.Deliver(ctx, envelope(t, "s@s.example", "a@d.example"), mailspine.StringContent("x"))
	wantStatus(t, "result", err, "451 4.4.1")
	if len(second.got) > 0 {
		t.Error("the second was asked without time left")
	}
}

func TestFallbackMisconfigured(t *testing.T) {
	for want, f := range map[string]*Fallback{
		"mta: Fallback.To is empty":  {},
		"mta: Fallback.To[1] is nil": {To: []mailspine.Deliverer{&way{}, nil}},
	} {
		env := envelope(t, "s@s.example", "a@d.example")
		err := f.Deliver(t.Context(), env, mailspine.StringContent("x"))
		if err == nil || err.Error() != want {
			t.Errorf("Deliver: %v, want %s", err, want)
		}
		wantStatus(t, want, err, "451 4.3.0")
		wantStatus(t, want, f.CheckRecipient(t.Context(), env, env.Recipients[0]), "451 4.3.0")
		if _, err := f.Route(t.Context(), env, env.Recipients[0]); err == nil {
			t.Errorf("%s: Route has no error", want)
		}
	}
}

// What the first Deliverer can do besides is passed on, and of it no more than that.
func TestFallbackFinds(t *testing.T) {
	site := Checked{To: wrapper{siteRouter{&way{}}}, Recipients: mailspine.RecipientCheckerFunc(
		func(context.Context, *mailspine.Envelope, mailspine.Recipient) error { return nil })}
	env := envelope(t, "s@s.example", "a@D.example")
	for _, tt := range []struct {
		f     *Fallback
		route queue.Route
		check string
	}{
		{quietFallback(site, &way{}), "site:big", ""},
		{quietFallback(&way{}, site), "d.example", "550 5.7.1"},
		{quietFallback(quietFallback(site), &way{}), "site:big", ""},
	} {
		m := &Mux{Default: tt.f}
		for _, r := range []queue.Router{tt.f, m} {
			if got, err := r.Route(t.Context(), env, env.Recipients[0]); got != tt.route || err != nil {
				t.Errorf("%q, %v, want %q", got, err, tt.route)
			}
		}
		wantStatus(t, string(tt.route), m.CheckRecipient(t.Context(), env, env.Recipients[0]), tt.check)
		if _, ok := mailspine.Find[*way](tt.f); ok {
			t.Error("Find goes through a Fallback")
		}
	}
	if _, ok := mailspine.Find[mailspine.Stager](quietFallback(stager{&way{}})); ok {
		t.Error("a Fallback passes a Stager on")
	}
}

// Outside of a queue those behind find no Attempt: a queue takes one for a sign that it stands behind another.
func TestFallbackBeforeQueues(t *testing.T) {
	store := memqueue.New(nil)
	defer store.Close()
	quiet := slog.New(slog.DiscardHandler)
	f := quietFallback(&way{whole: unreached}, &queue.Queue{Store: store, Logger: quiet})
	env := envelope(t, "s@s.example", "a@d.example")
	if err := f.Deliver(t.Context(), env, mailspine.StringContent("x\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), env.ID); err != nil {
		t.Errorf("the message is not stored under its own ID: %v", err)
	}
}

// In a queue: the second way's result and receipt are what is settled and told, each way asks for leave by itself, and what
// is in doubt waits for the first way.
func TestFallbackInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		first := mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			errs := make(mailspine.RecipientErrors, len(env.Recipients))
			tries++
			for i, r := range env.Recipients {
				mailspine.AttemptFrom(ctx).Record(i, mailspine.Receipt{RemoteMTA: "first.example"})
				if r.Address.Local == "doubt" && tries == 1 {
					errs[i] = inDoubt
				} else if r.Address.Local != "doubt" {
					errs[i] = unreached
				}
			}
			return errs.Err()
		})
		second := mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, _ mailspine.Content) error {
			a := mailspine.AttemptFrom(ctx)
			if err := a.BeforeCommit(ctx, time.Minute); err != nil {
				return err
			}
			for i := range env.Recipients {
				a.Record(i, mailspine.Receipt{RemoteMTA: "second.example"})
			}
			return nil
		})
		store := memqueue.New(nil)
		outcomes := make(chan mailspine.Outcome, 10)
		f := quietFallback(first, second)
		q := &queue.Queue{
			Store: store, Next: f, Router: f, Logger: slog.New(slog.DiscardHandler), Hostname: "q.example",
			Outcomes: mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) { outcomes <- o }),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		if err := q.Deliver(ctx, envelope(t, "s@s.example", "closed@d.example", "doubt@d.example"), mailspine.StringContent("x\r\n")); err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 3 {
			o := <-outcomes
			got = append(got, fmt.Sprintf("%s %s by %s", o.Recipient.Local, o.Event, o.Receipt.RemoteMTA))
		}
		slices.Sort(got)
		want := []string{"closed delivered by second.example", "doubt deferred by first.example", "doubt delivered by first.example"}
		if !slices.Equal(got, want) || tries != 2 {
			t.Errorf("%q after %d tries, want %q", got, tries, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		store.Close()
	})
}

// Two real hosts. The first is not there: the second gets the message. The first is lost after the final dot: it may
// have the message, and the second gets nothing.
func TestFallbackSmarthosts(t *testing.T) {
	next := &sink{}
	second := &Smarthost{Address: serve(t, newReceiverFor(next))}
	relay := &Relay{Hostname: "out.sender.example", Logger: slog.New(slog.DiscardHandler), IdleTimeout: -1}
	second.Relay = relay
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	first := &Smarthost{Address: l.Addr().String(), Relay: relay}
	f := quietFallback(first, second)

	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		br := bufio.NewReader(conn)
		fmt.Fprint(conn, "220 first.example\r\n")
		data := false
		for {
			line, err := br.ReadString('\n')
			switch {
			case err != nil || line == ".\r\n":
				return // without an answer
			case data:
			case strings.HasPrefix(line, "DATA"):
				data = true
				fmt.Fprint(conn, "354 go\r\n")
			default:
				fmt.Fprint(conn, "250 first.example\r\n")
			}
		}
	}()
	env := envelope(t, "ann@sender.example", "bob@here.example")
	err = f.Deliver(t.Context(), env, mailspine.StringContent(hello))
	<-served
	wantStatus(t, "lost after the dot", mailspine.ErrorAt(err, 0), "451 4.4.2")
	if n := len(next.all()); n != 0 {
		t.Errorf("the second host got %d messages", n)
	}
	l.Close()
	a := &attempt{}
	if err := f.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent(hello)); err != nil {
		t.Errorf("not there: %v", err)
	}
	if n := len(next.all()); n != 1 || a.commits != 1 || !strings.HasPrefix(a.receipts[0].Reply, "250") {
		t.Errorf("the second host got %d messages; %+v", n, a)
	}
}

// newReceiverFor takes mail for here.example unchecked.
func newReceiverFor(next mailspine.Deliverer) *Receiver {
	r := newReceiver(next)
	r.Checker = nil
	return r
}

// Whatever the ways answer: a recipient that was taken is given to nobody after that, every one that is left follows
// the chain to its first result that ends it, and nothing is reported as taken that was not.
func TestFallbackModel(t *testing.T) {
	errs := []error{nil, unreached, noDNS, noRoute, inDoubt, noUser, forGood, greylist, errors.New("x"), &mailspine.NotNow{}, &mailspine.NotNow{Until: time.Unix(5, 0)}}
	goes := map[error]bool{unreached: true, noDNS: true, noRoute: true}
	rapid.Check(t, func(rt *rapid.T) {
		env := &mailspine.Envelope{ID: "X"}
		n := rapid.IntRange(1, 5).Draw(rt, "recipients")
		for i := range n {
			env.Recipients = append(env.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: fmt.Sprintf("r%d", i), Domain: "d.example"}})
		}
		var ways []*way
		var to []mailspine.Deliverer
		for w := range rapid.IntRange(1, 4).Draw(rt, "ways") {
			d := &way{results: map[string]error{}, receipts: map[string]string{}}
			for _, r := range env.Recipients {
				d.results[r.Address.Local] = rapid.SampledFrom(errs).Draw(rt, "result")
				if rapid.Bool().Draw(rt, "receipt") {
					d.receipts[r.Address.Local] = fmt.Sprint("way ", w)
				}
			}
			ways, to = append(ways, d), append(to, d)
		}
		a := &attempt{}
		err := quietFallback(to...).Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent("x"))
		for i, r := range env.Recipients {
			// The model: go along the chain.
			var want error
			receipt, some := "", false
			last := 0
			for w, d := range ways {
				res := d.results[r.Address.Local]
				last = w
				var late *mailspine.NotNow
				if w == 0 || !errors.As(res, &late) { // before it there was none that did not try, or it would have ended there
					want = res
					receipt, some = d.receipts[r.Address.Local]
				}
				if !goes[res] {
					break
				}
			}
			if got := mailspine.ErrorAt(err, i); got != want {
				rt.Fatalf("%s: %v, want %v", r.Address, got, want)
			}
			if rec, ok := a.receipts[i]; ok != some || rec.Reply != receipt {
				rt.Fatalf("%s: receipt %q, want %q", r.Address, rec.Reply, receipt)
			}
			for w, d := range ways {
				asked := 0
				for _, env := range d.got {
					for _, x := range env.Recipients {
						if x == r {
							asked++
						}
					}
				}
				if should := w <= last; should != (asked == 1) || asked > 1 {
					rt.Fatalf("%s: way %d was asked %d times, the last is %d", r.Address, w, asked, last)
				}
			}
		}
	})
}
