package mta

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A DNS time-out is 451 4.4.3, and the message stays in the queue until the name can be
// looked up: then it is delivered, once.
func TestQueueKeepsMailThroughDNSTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := dnstest.New(dnstest.Zone{
			"dest.example":     {dnstest.Timeout},
			"mx1.dest.example": {dnstest.A("192.0.2.1")},
		})
		n := newNetwork(t)
		n.scripts["192.0.2.1"] = []script{golden(t, "starttls")}
		n.certs = newCA(t).server(t, "mx1.dest.example")
		relay := n.relay()
		relay.Resolver = dns
		store := memqueue.New(nil)
		deferred := make(chan string, 10)
		delivered := make(chan mailspine.Receipt, 1)
		q := &queue.Queue{
			Store: store, Hostname: "out.sender.example", Logger: slog.New(slog.DiscardHandler),
			Next: &Mux{Default: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
				err := relay.Deliver(ctx, env, msg)
				if st := mailspine.Status(err); st != nil {
					deferred <- st.Reply()
				}
				return err
			})},
			Router: &Mux{Default: relay},
			Outcomes: mailspine.OutcomeSinkFunc(func(_ context.Context, o mailspine.Outcome) {
				if o.Event == mailspine.EventDelivered {
					delivered <- o.Receipt
				}
			}),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		if err := q.Deliver(ctx, envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")); err != nil {
			t.Fatal(err)
		}
		if got := <-deferred; got != "451 4.4.3 The mail exchangers of dest.example could not be looked up, try again later" {
			t.Errorf("deferred with %q", got)
		}
		synctest.Wait() // the result is settled, and the retry waits
		if st, _ := store.Stats(ctx); st.Messages != 1 {
			t.Errorf("%d messages are stored, want the one", st.Messages)
		}
		dns.Set("dest.example", dnstest.MX(10, "mx1.dest.example"))
		r := <-delivered
		if r.RemoteMTA != "mx1.dest.example" || r.Reply != "250 2.0.0 Ok" || r.TLS.Version != "TLS 1.3" || !r.DSNRelayed {
			t.Errorf("receipt %+v", r)
		}
		cancel()
		<-done
		if st, _ := store.Stats(context.Background()); st.Messages != 0 {
			t.Errorf("%d messages are left", st.Messages)
		}
		store.Close()
		n.done()
	})
}

// A Receiver stages into its Next and tells its traces what happens.
func TestReceiverTrace(t *testing.T) {
	r := newReceiver(&sink{})
	var got []string
	gone := make(chan struct{})
	r.Trace = &ReceiverTrace{}
	r.Trace.Connected = func(context.Context, netip.AddrPort) { got = append(got, "connected") }
	r.Trace.Disconnected = func(context.Context, netip.AddrPort, time.Duration) { got = append(got, "disconnected"); close(gone) }
	r.Trace.Message = func(_ context.Context, env *mailspine.Envelope, size int64, err error) {
		got = append(got, "message "+mailspine.Status(err).Reply())
	}
	lines := map[bool]int{}
	r.Trace.Wire = func(_ context.Context, _ netip.AddrPort, sent bool, _ string) { lines[sent]++ }
	send(t, serve(t, r), "eve@none.example", "bob@here.example", from("victim.example", "\r\nhi\r\n"))
	<-gone
	want := []string{"connected", "message 550 5.7.1 Rejected by the DMARC policy of victim.example", "disconnected"}
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("%q, want %q", got, want)
	}
	if lines[true] == 0 || lines[false] == 0 {
		t.Errorf("lines of the wire: %v", lines)
	}
	if s := r.Stats(); s.Refused != 1 || s.Messages != 0 {
		t.Errorf("stats %+v", s)
	}
}

// Shutdown lets a transaction end, and then no connection is taken.
func TestReceiverShutdown(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	next := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		close(begun)
		<-finish
		return nil
	})
	r := newReceiver(next)
	addr := serve(t, r)
	reply := make(chan string, 1)
	go func() {
		reply <- send(t, addr, "ann@good.example", "bob@here.example", from("good.example", "\r\nhi\r\n"))
	}()
	<-begun
	down := make(chan error, 1)
	go func() { down <- r.Shutdown(context.Background()) }()
	close(finish)
	if got := <-reply; len(got) < 3 || got[:3] != "250" {
		t.Errorf("the message under way was answered %q", got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("a connection was taken after Shutdown")
	}
}

// wrap is a wrapper.
type wrap struct{ mailspine.Deliverer }

func (w wrap) Unwrap() mailspine.Deliverer { return w.Deliverer }

// Two routes may lead into one queue, which is idempotent by ID: both parts arrive, once.
func TestMuxIntoOneQueue(t *testing.T) {
	store := memqueue.New(nil)
	q := &queue.Queue{Store: store, Hostname: "h.example", Logger: slog.New(slog.DiscardHandler)}
	m := &Mux{Routes: map[string]mailspine.Deliverer{"a.example": wrap{q}}, Default: q}
	env := envelope(t, "ann@sender.example", "x@a.example", "y@b.example")
	if err := m.Deliver(t.Context(), env, mailspine.StringContent("x\r\n")); err != nil {
		t.Fatal(err)
	}
	st, err := store.Stats(t.Context())
	if err != nil || st.Messages != 2 {
		t.Errorf("the queue has %d messages, %v: one of two recipients is lost", st.Messages, err)
	}
	// Delivered again, after a crash, nothing is doubled.
	if err := m.Deliver(t.Context(), env, mailspine.StringContent("x\r\n")); err != nil {
		t.Fatal(err)
	}
	if st, _ := store.Stats(t.Context()); st.Messages != 2 {
		t.Errorf("%d messages after a repetition", st.Messages)
	}
}
