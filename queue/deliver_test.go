package queue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

func TestZeroQueue(t *testing.T) {
	var q queue.Queue
	if err := q.Deliver(context.Background(), envelope("m1", "ann@example.net"), mailspine.StringContent(letter)); !errors.Is(err, queue.ErrNoStore) {
		t.Errorf("Deliver: %v, want ErrNoStore", err)
	}
	if err := q.Run(context.Background()); !errors.Is(err, queue.ErrNoStore) {
		t.Errorf("Run: %v, want ErrNoStore", err)
	}
	q.Store = memqueue.New(nil)
	if err := q.Run(context.Background()); !errors.Is(err, queue.ErrNoNext) {
		t.Errorf("Run: %v, want ErrNoNext", err)
	}
	if q.Stats() != (queue.Counts{}) {
		t.Errorf("Stats: %+v", q.Stats())
	}
	st, err := q.Stage(context.Background(), 10)
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
}

// items lists a store's items as "id route: recipients".
func items(t *testing.T, s queue.Store) map[string]queue.Item {
	t.Helper()
	all := map[string]queue.Item{}
	for it, err := range s.(queue.Inspector).List(context.Background(), queue.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		var to []string
		for _, r := range it.Envelope.Recipients {
			to = append(to, r.Address.Local)
		}
		all[fmt.Sprintf("%s: %s", it.Route, strings.Join(to, " "))] = it
	}
	return all
}

func TestDeliverSplitsByRoute(t *testing.T) {
	ctx := context.Background()
	s := memqueue.New(nil)
	q := &queue.Queue{Store: s}
	env := envelope("", "ann@Example.NET", "bob@bücher.example", "cid@example.net", "dan@[192.0.2.1]", "eve@xn--bcher-kva.example")
	if err := q.Deliver(ctx, env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if env.ID != "" {
		t.Errorf("Deliver changed the envelope: ID %s", env.ID)
	}
	got := items(t, s)
	for _, want := range []string{"example.net: ann cid", "xn--bcher-kva.example: bob eve", "[192.0.2.1]: dan"} {
		if it, ok := got[want]; !ok || it.Message.Validate() != nil {
			t.Errorf("no item %q with an ID in %v", want, got)
		}
	}
	if len(got) != 3 {
		t.Errorf("items %v, want 3", got)
	}
}

func TestDeliverRouter(t *testing.T) {
	ctx := context.Background()
	nowhere := mailspine.Errorf(550, "5.1.2", "No way there")
	broken := errors.New("the database is down")
	for name, c := range map[string]struct {
		rcpts []string
		items string
		err   error
		code  int
	}{
		"all":        {[]string{"a@x.example", "b@y.example"}, "pool: a b", nil, 0},
		"some":       {[]string{"a@x.example", "n@nowhere.example"}, "nowhere.example: n,pool: a", nil, 0},
		"none":       {[]string{"n@nowhere.example", "m@nowhere.example"}, "", nowhere, 550},
		"not now":    {[]string{"a@x.example", "t@broken.example"}, "", broken, 451},
		"not at all": {[]string{"n@nowhere.example", "t@broken.example"}, "", broken, 451},
	} {
		s := memqueue.New(nil)
		q := &queue.Queue{Store: s, Router: queue.RouterFunc(func(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) (queue.Route, error) {
			switch r.Address.Domain {
			case "nowhere.example":
				return "", nowhere
			case "broken.example":
				return "", broken
			}
			return "pool", nil
		})}
		err := q.Deliver(ctx, envelope("m1", c.rcpts...), mailspine.StringContent(letter))
		if !errors.Is(err, c.err) || err != nil && mailspine.Status(err).Code != c.code {
			t.Errorf("%s: Deliver: %v, want %v with code %d", name, err, c.err, c.code)
		}
		got := items(t, s)
		n := 0
		for _, want := range strings.Split(c.items, ",") {
			if want == "" {
				continue
			}
			n++
			if _, ok := got[want]; !ok {
				t.Errorf("%s: no item %q in %v", name, want, got)
			}
		}
		if len(got) != n {
			t.Errorf("%s: items %v, want %q", name, got, c.items)
		}
	}
}

func TestDeliverRefuses(t *testing.T) {
	ctx := context.Background()
	full := memqueue.New(&memqueue.Options{MaxMessages: 1})
	q := &queue.Queue{Store: full}
	if err := q.Deliver(ctx, envelope("m0", "a@example.net"), mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	loop := strings.Repeat("Received: from a by b; Mon, 1 Jan 2001 00:00:00 +0000\r\n", 101) + letter
	for name, c := range map[string]struct {
		env     *mailspine.Envelope
		msg     string
		replies string
	}{
		"full":          {envelope("m1", "a@example.net"), letter, "452 4.3.1"},
		"invalid":       {&mailspine.Envelope{ID: "a b"}, letter, "554 5.5.4"},
		"no recipients": {envelope("m1"), letter, "554 5.5.4"},
		"loop":          {envelope("m1", "a@example.net"), loop, "554 5.4.6"},
		"loop, huge":    {envelope("m1", "a@example.net"), "X: " + strings.Repeat("x", mailspine.MaxHeader) + "\r\n" + loop, "554 5.4.6"},
	} {
		err := q.Deliver(ctx, c.env, mailspine.StringContent(c.msg))
		if err == nil || !strings.HasPrefix(mailspine.Status(err).Reply(), c.replies) {
			t.Errorf("%s: Deliver: %v, want %s", name, err, c.replies)
		}
	}
	if c := q.Stats(); c.Queued != 1 || c.Refused != 5 {
		t.Errorf("Stats: %+v, want 1 queued and 5 refused", c)
	}
	// What was delivered before is not refused: a lost reply.
	if err := q.Deliver(ctx, envelope("m0", "a@example.net"), mailspine.StringContent(letter)); err != nil {
		t.Errorf("Deliver of a stored ID: %v", err)
	}
	q.MaxHops = -1
	q.Store = memqueue.New(nil)
	if err := q.Deliver(ctx, envelope("m1", "a@example.net"), mailspine.StringContent(loop)); err != nil {
		t.Errorf("with MaxHops -1: %v", err)
	}
	q = &queue.Queue{Store: q.Store}
	if err := q.Deliver(ctx, envelope("m2", "a@example.net"), mailspine.StringContent("no header\r\nReceived: x\r\n")); err != nil {
		t.Errorf("a message without a header: %v", err)
	}
	huge := "X: " + strings.Repeat("x", mailspine.MaxHeader) + "\r\n\r\n"
	if err := q.Deliver(ctx, envelope("m3", "a@example.net"), mailspine.StringContent(huge)); err != nil {
		t.Errorf("a message with a huge header: %v", err)
	}
}

func TestHoldUntil(t *testing.T) {
	run(t, nil, func(b *bench) {
		env := envelope("m1", "ann@example.net")
		env.HoldUntil = time.Now().Add(30 * 24 * time.Hour)
		b.answer = byLocal(map[string]error{"ann": errBusy})
		b.send(env)
		time.Sleep(30*24*time.Hour + 6*time.Minute)
		// The lifetime begins when the hold ends: the message is not expired.
		b.wantLog("720h0m0s ann, 720h5m0s ann")
	})
}

// A store that is a Stager is given the data.
type stagingStore struct {
	queue.Store
	mailspine.SpoolStager
	staged int
}

func (s *stagingStore) Stage(ctx context.Context, size int64) (mailspine.Stage, error) {
	s.staged++
	return s.SpoolStager.Stage(ctx, size)
}

func TestStage(t *testing.T) {
	s := &stagingStore{Store: memqueue.New(nil)}
	st, err := mailspine.StagerOf(&queue.Queue{Store: s}).Stage(context.Background(), 100)
	if err != nil || s.staged != 1 {
		t.Fatalf("Stage: %v, the store was asked %d times", err, s.staged)
	}
	st.Close()
}

func TestRunTwice(t *testing.T) {
	run(t, nil, func(b *bench) {
		synctest.Wait()
		if err := b.q.Run(context.Background()); !errors.Is(err, queue.ErrRunning) {
			t.Errorf("second Run: %v, want ErrRunning", err)
		}
		if err := b.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		// And again, after the first has ended.
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		b.send(envelope("m1", "ann@example.net"))
		if err := b.q.Run(ctx); err != nil {
			t.Errorf("Run again: %v", err)
		}
		b.wantLog("0s ann")
	})
}

func TestRunClosedStore(t *testing.T) {
	run(t, nil, func(b *bench) {
		synctest.Wait()
		b.store.Close()
		if err := b.stop(); err != nil && !errors.Is(err, queue.ErrClosed) {
			t.Errorf("Run on a closed store: %v, want ErrClosed", err)
		}
	})
}

// A hasty store knows no delays.
type hasty struct{ queue.Store }

func (s hasty) Put(ctx context.Context, m queue.Message, msg mailspine.Content) error {
	m.Delay = 0
	return s.Store.Put(ctx, m, msg)
}

// HoldUntil holds whatever the store makes of the delay, which is bounded.
func TestHoldUntilFar(t *testing.T) {
	run(t, func(b *bench) { b.q.Store, b.q.Poll = hasty{b.store}, time.Hour }, func(b *bench) {
		env := envelope("m1", "ann@example.net")
		env.HoldUntil = time.Now().Add(10 * 24 * time.Hour) // more than the lifetime
		b.send(env)
		time.Sleep(11 * 24 * time.Hour)
		b.wantLog("240h0m0s ann")
	})
	store := memqueue.New(nil)
	q := &queue.Queue{Store: store}
	env := envelope("m1", "ann@example.net")
	env.HoldUntil = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := q.Deliver(context.Background(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	if it := items(t, store)["example.net: ann"]; it.Due < 364*24*time.Hour || it.Due > 366*24*time.Hour {
		t.Errorf("due in %v, want a year", it.Due)
	}
}

// What a settlement and a report have to hold is bounded by splitting the recipients of a route.
func TestDeliverSplitsMany(t *testing.T) {
	store := memqueue.New(nil)
	q := &queue.Queue{Store: store}
	env := envelope("m1")
	for i := range 2500 {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(fmt.Sprintf("u%d@example.net", i))})
	}
	if err := q.Deliver(context.Background(), env, mailspine.StringContent(letter)); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for it, err := range store.List(context.Background(), queue.Filter{Route: "example.net"}) {
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(it.States))
	}
	if slices.Sort(sizes); !slices.Equal(sizes, []int{500, 1000, 1000}) {
		t.Errorf("items of %v recipients, want 500, 1000 and 1000", sizes)
	}
}
