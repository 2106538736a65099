package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

var putCases = []testCase{
	{"RoundTrip", "Put stores a message and its items; Lease hands out its recipients, and when the last is done the message is removed with its content.", func(k *kit) {
		k.put(message("m1", "example.net: ann bob"))
		l := k.one(long)
		if l.Envelope.ID != "m1" || l.Route != "example.net" || rcpts(l) != "ann bob" || l.Attempts != 0 || l.Envelope.From != address("sender@example.org") {
			k.Errorf("leased %+v of %+v", l, l.Envelope)
		}
		if len(l.Recipients) != 2 || l.Recipients[0].Index != 0 || l.Recipients[1].Index != 1 || l.Recipients[0].Last.Status != nil || l.Recipients[0].Warned {
			k.Errorf("states %+v", l.Recipients)
		}
		if l.Size != text("m1").Size() {
			k.Errorf("Size is %d, want %d", l.Size, text("m1").Size())
		}
		if got := k.read("m1"); got != "Subject: m1\r\n\r\nHello.\r\n" {
			k.Errorf("content is %q", got)
		}
		k.finish(l, queue.Delivered)
		k.gone("m1")
		k.none("the message is done")
	}, 0},
	{"PutIdempotent", "Put is idempotent: a Put of an ID that is stored changes nothing and returns nil.", func(k *kit) {
		k.put(simple("m1"))
		other := message("m1", "example.com: eve mallory")
		if err := k.s.Put(k.ctx, other, mailspine.StringContent("other")); err != nil {
			k.Fatalf("second Put: %v", err)
		}
		if got := k.read("m1"); !strings.HasPrefix(got, "Subject: m1") {
			k.Errorf("the content changed to %q", got)
		}
		l := k.one(long)
		if rcpts(l) != "ann" {
			k.Errorf("the recipients changed to %s", rcpts(l))
		}
		k.put(simple("m1")) // also while it is leased
		k.none("the only item is leased")
		k.finish(l, queue.Delivered)
	}, 0},
	{"Tombstone", "A Put of an ID that was stored within the last hour changes nothing and returns nil.", func(k *kit) {
		k.put(simple("m1"))
		k.finish(k.one(long), queue.Delivered)
		k.put(simple("m1"))
		k.none("the message was finished a moment ago")
		k.gone("m1")
		k.put(simple("m2"))
		k.finish(k.one(long), queue.Failed)
		k.put(simple("m2"))
		k.none("a message that failed is finished too")
	}, 0},
	{"TombstoneEnds", "A Store remembers the ID of a message that it has finished with for TombstoneTTL, and not for ever.", func(k *kit) {
		k.put(simple("m1"))
		k.finish(k.one(long), queue.Delivered)
		time.Sleep(queue.TombstoneTTL - time.Minute)
		k.put(simple("m1"))
		k.none("the hour is not over")
		time.Sleep(2 * time.Minute)
		k.put(simple("m1"))
		k.finish(k.one(long), queue.Delivered)
	}, hours},
	{"PutConcurrent", "Put is idempotent, also when several put the same ID at the same time.", func(k *kit) {
		var wg sync.WaitGroup
		errs := make([]error, 16)
		for i := range errs {
			wg.Go(func() { errs[i] = k.s.Put(k.ctx, message("m1", "example.net: ann", "example.com: bob"), text("m1")) })
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				k.Errorf("Put: %v", err)
			}
		}
		if l := k.lease(100, long); len(l) != 2 {
			k.Errorf("%d items, want 2: %v", len(l), names(l))
		}
	}, 0},
	{"BadMessage", "Every recipient is in exactly one item, and the envelope is valid and has an ID; otherwise the error is ErrBadMessage, and nothing is stored.", func(k *kit) {
		for name, change := range map[string]func(*queue.Message){
			"no envelope":            func(m *queue.Message) { m.Envelope = nil },
			"no ID":                  func(m *queue.Message) { m.Envelope.ID = "" },
			"bad ID":                 func(m *queue.Message) { m.Envelope.ID = "../../etc/passwd" },
			"no recipients":          func(m *queue.Message) { m.Envelope.Recipients, m.Items = nil, nil },
			"no items":               func(m *queue.Message) { m.Items = nil },
			"empty item":             func(m *queue.Message) { m.Items = append(m.Items, queue.NewItem{Route: "x"}) },
			"recipient in no item":   func(m *queue.Message) { m.Items[0].Recipients = []int{0} },
			"recipient in two items": func(m *queue.Message) { m.Items = append(m.Items, m.Items[0]) },
			"recipient twice in one": func(m *queue.Message) { m.Items[0].Recipients = []int{0, 1, 1} },
			"recipient out of range": func(m *queue.Message) { m.Items[0].Recipients = []int{0, 2} },
			"negative recipient":     func(m *queue.Message) { m.Items[0].Recipients = []int{0, -1} },
			"recipient null":         func(m *queue.Message) { m.Envelope.Recipients[1] = mailspine.Recipient{} },
			"meta over 4 KiB": func(m *queue.Message) {
				m.Envelope.Meta = map[string]string{"k": strings.Repeat("x", mailspine.MaxMeta)}
			},
			"control character in it": func(m *queue.Message) { m.Envelope.From.Local = "a\r\nb" },
		} {
			m := message("m1", "example.net: ann bob")
			change(&m)
			if err := k.s.Put(k.ctx, m, text("m1")); !errors.Is(err, queue.ErrBadMessage) {
				k.Errorf("%s: Put: %v, want queue.ErrBadMessage", name, err)
			}
		}
		k.none("nothing was put")
		k.gone("m1")
		k.put(simple("m1")) // a refused ID is not used up
	}, 0},
	{"PutAllOrNothing", "Put is all or nothing: content that cannot be read, or is shorter than its size, leaves nothing behind.", func(k *kit) {
		for name, c := range map[string]mailspine.Content{
			"open fails":      broken{err: io.ErrClosedPipe},
			"reading fails":   broken{data: "Subject: hal", err: io.ErrClosedPipe},
			"ends too early":  broken{data: "Subject: hal", err: io.EOF},
			"ends unexpected": broken{data: "Subject: hal", err: io.ErrUnexpectedEOF},
		} {
			if err := k.s.Put(k.ctx, simple("m1"), c); err == nil {
				k.Errorf("%s: Put returned nil", name)
			}
			k.none(name)
			k.gone("m1")
		}
		k.put(simple("m1"))
		if got := k.read("m1"); !strings.HasPrefix(got, "Subject: m1\r\n") {
			k.Errorf("content is %q", got)
		}
	}, 0},
	{"PutKeepsNothing", "Slices and envelopes given to a Store are not kept.", func(k *kit) {
		m := message("m1", "example.net: ann bob")
		m.Envelope.Meta = map[string]string{"k": "v"}
		m.Envelope.Verdict = &mailspine.Verdict{SPF: "pass", DKIMDomains: []string{"example.org"}}
		k.put(m)
		m.Envelope.Recipients[0].Address.Local = "eve"
		m.Envelope.Meta["k"] = "changed"
		m.Envelope.Verdict.SPF = "fail"
		m.Envelope.Verdict.DKIMDomains[0] = "example.com"
		m.Items[0].Recipients[0] = 7
		l := k.one(long)
		if rcpts(l) != "ann bob" || l.Envelope.Meta["k"] != "v" || l.Envelope.Verdict.SPF != "pass" || l.Envelope.Verdict.DKIMDomains[0] != "example.org" {
			k.Errorf("leased what was changed after Put: %+v", l.Envelope)
		}
	}, 0},
	{"PutDelay", "The items of a message are first due after its Delay.", func(k *kit) {
		m := simple("m1")
		m.Delay = k.tick
		start := time.Now()
		k.put(m)
		l := k.after(start, k.tick, long)
		if l.Attempts != 0 {
			k.Errorf("%d attempts after a delay", l.Attempts)
		}
	}, 0},
	{"Delays", "Delays, never instants, cross the interface: no time in an Envelope decides when its items are due.", func(k *kit) {
		past, future := time.Date(1971, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC)
		for i, when := range []time.Time{past, future} {
			m := simple(fmt.Sprintf("m%d", i))
			m.Envelope.HoldUntil, m.Envelope.Origin.Time = when, when
			m.Envelope.DeliverBy = mailspine.DeliverBy{Time: when}
			k.put(m)
			l := k.one(long)
			if l.Age > patience || l.Age < 0 || !l.Envelope.HoldUntil.Equal(when) {
				k.Errorf("Age is %v, HoldUntil %v", l.Age, l.Envelope.HoldUntil)
			}
			k.finish(l, queue.Delivered)
		}
	}, 0},
	{"DelayLongest", "The longest Delay is one that does not end, not one that has passed.", func(k *kit) {
		const never = time.Duration(math.MaxInt64)
		m := simple("put")
		m.Delay = never
		k.put(m)
		k.none("it is never due")
		k.put(simple("leased"))
		l := k.one(never)
		if lost, err := k.s.Extend(k.ctx, never, l.Token); err != nil || len(lost) != 0 {
			k.Fatalf("Extend: lost %v, %v", lost, err)
		}
		k.none("the lease never ends")
		s := settlement(l, queue.Open)
		s.Delay = never
		k.settle(s)
		k.put(simple("abandoned"))
		k.abandon(never, k.one(long))
		if k.h.Synctest {
			time.Sleep(365 * 24 * time.Hour)
		}
		k.none("none of the three is ever due")
	}, 0},
	{"Meta", "What nobody knows in Envelope.Meta comes back as it was put, up to its limit.", func(k *kit) {
		m := simple("m1")
		m.Envelope.Meta = map[string]string{"x-unknown-7": "v\x00\xff", "": "", "long": ""}
		size := 0
		for key, v := range m.Envelope.Meta {
			size += len(key) + len(v)
		}
		m.Envelope.Meta["long"] = strings.Repeat("é", (mailspine.MaxMeta-size)/2)
		want := maps.Clone(m.Envelope.Meta)
		k.put(m)
		l := k.one(long)
		k.finish(l, queue.Open)
		if is[queue.Controller](k) {
			k.control(queue.Filter{}, reroute("elsewhere"), changed(1))
		}
		if k.h.Reopen != nil {
			k.reopen()
		}
		if got := k.one(long).Envelope.Meta; !maps.Equal(got, want) {
			k.Errorf("Meta is %.200q, want %.200q", got, want)
		}
	}, 0},
	{"Hold", "The items of a message with a Hold are not leased.", func(k *kit) {
		m := simple("m1")
		m.Hold = "content filter"
		k.put(m)
		k.none("it is held")
		if k.h.Synctest {
			time.Sleep(30 * 24 * time.Hour)
			k.none("it is held, for however long")
		}
		if got := k.read("m1"); !strings.HasPrefix(got, "Subject: m1") {
			k.Errorf("content of a held message: %q", got)
		}
		k.put(m) // and it is there to Put
	}, 0},
	{"ManyItems", "A message has one item for each route, with the recipients of that route in their original order.", func(k *kit) {
		m := queue.Message{Envelope: &mailspine.Envelope{ID: "m1", From: address("sender@example.org")}}
		const routes, each = 20, 10
		for r := range routes {
			m.Items = append(m.Items, queue.NewItem{Route: queue.Route("r" + string(rune('a'+r)))})
		}
		for i := range routes * each {
			m.Envelope.Recipients = append(m.Envelope.Recipients, mailspine.Recipient{Address: mailspine.Address{Local: "u" + string(rune('a'+i/26)) + string(rune('a'+i%26)), Domain: "example.net"}})
			it := &m.Items[i%routes]
			it.Recipients = append([]int{i}, it.Recipients...) // in the wrong order
		}
		k.put(m)
		l := k.lease(100, long)
		if len(l) != routes {
			k.Fatalf("%d items, want %d", len(l), routes)
		}
		for _, x := range l {
			r := int(x.Route[1] - 'a')
			for j, st := range x.Recipients {
				if want := r + routes*j; st.Index != want || x.Envelope.Recipients[j] != m.Envelope.Recipients[want] {
					k.Fatalf("item %s, recipient %d: index %d, %v; want index %d", x.Route, j, st.Index, x.Envelope.Recipients[j], want)
				}
			}
		}
	}, 0},
	{"SameRoute", "Several items of a message may have the same route.", func(k *kit) {
		k.put(message("m1", "example.net: ann", "example.net: bob cid"))
		l := k.lease(10, long)
		if len(l) != 2 || l[0].Token.Item == l[1].Token.Item || rcpts(l[0]) != "ann" || rcpts(l[1]) != "bob cid" {
			k.Fatalf("leased %v, want two items of example.net", names(l))
		}
		k.finish(l[0], queue.Delivered)
		k.read("m1")
		k.finish(l[1], queue.Delivered)
		k.gone("m1")
		k.none("both items are done")
	}, 0},
	{"Cancelled", "A method whose context has ended returns its error, and nothing has happened.", func(k *kit) {
		k.put(simple("m1"))
		l := k.one(long)
		k.put(simple("m2"))
		ctx, cancel := context.WithCancel(k.ctx)
		cancel()
		_, errLease := k.s.Lease(ctx, queue.LeaseRequest{Max: 1})
		_, errExtend := k.s.Extend(ctx, k.tick, l.Token)
		_, errSettle := k.s.Settle(ctx, settlement(l, queue.Delivered))
		_, errOpen := k.s.Open(ctx, "m1")
		for name, err := range map[string]error{
			"Put": k.s.Put(ctx, simple("m3"), text("m3")), "Lease": errLease, "Extend": errExtend, "Settle": errSettle,
			"Abandon": k.s.Abandon(ctx, 0, "", l.Token), "Open": errOpen,
		} {
			if !errors.Is(err, context.Canceled) {
				k.Errorf("%s: %v, want context.Canceled", name, err)
			}
		}
		if l2 := k.one(long); l2.Envelope.ID != "m2" {
			k.Errorf("leased %s, want m2 alone", l2.Envelope.ID)
		}
		k.finish(l, queue.Delivered) // the lease was kept
		k.gone("m3")
	}, 0},
	{"Closed", "After Close every operation returns ErrClosed.", func(k *kit) {
		k.put(simple("m1"))
		l := k.one(long)
		if err := k.s.Close(); err != nil {
			k.Fatalf("Close: %v", err)
		}
		_, errLease := k.s.Lease(k.ctx, queue.LeaseRequest{Max: 1})
		_, errExtend := k.s.Extend(k.ctx, k.tick, l.Token)
		_, errSettle := k.s.Settle(k.ctx, settlement(l, queue.Delivered))
		_, errOpen := k.s.Open(k.ctx, "m1")
		for name, err := range map[string]error{
			"Put": k.s.Put(k.ctx, simple("m3"), text("m3")), "Lease": errLease, "Extend": errExtend, "Settle": errSettle,
			"Abandon": k.s.Abandon(k.ctx, 0, "", l.Token), "Open": errOpen,
		} {
			if !errors.Is(err, queue.ErrClosed) {
				k.Errorf("%s: %v, want queue.ErrClosed", name, err)
			}
		}
		if err := k.s.Close(); err != nil && !errors.Is(err, queue.ErrClosed) {
			k.Errorf("second Close: %v, want nil or queue.ErrClosed", err)
		}
	}, 0},
}

// broken is content of 100 octets whose reader fails after data.
type broken struct {
	data string
	err  error
}

func (b broken) Size() int64 { return 100 }

func (b broken) Open(context.Context) (io.ReadCloser, error) {
	if b.data == "" {
		return nil, b.err
	}
	return io.NopCloser(io.MultiReader(strings.NewReader(b.data), failing{b.err})), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
