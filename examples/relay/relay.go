package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/mta"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// grace is how long the clients and the deliveries, each, may go on when the relay stops.
const grace = 20 * time.Second

// answer is how long who asked at the control socket may still take the answer.
const answer = 2 * time.Second

// A relay is all the parts, assembled.
type relay struct {
	o        *options
	log      *slog.Logger
	listener net.Listener
	door     *mta.Receiver
	queue    *queue.Queue
	store    *filequeue.Store
	out      *mta.Relay // what all routes send with

	control *control.Server // with the socket; nil: none
	socket  net.Listener

	cancel  context.CancelFunc
	running sync.WaitGroup // the queue
	wg      sync.WaitGroup // all parts
	failed  chan error     // the first part that ended by itself
}

// newRelay takes the port, opens the spool and assembles the parts. Nothing runs yet. After an
// error nothing is left open.
func newRelay(o *options, log *slog.Logger) (*relay, error) {
	r := &relay{o: o, log: log, failed: make(chan error, 1)}
	mux, err := r.routes()
	if err != nil {
		return nil, err
	}
	// The port first: if it is taken, nothing has been touched.
	// No keep-alive probes: the door's own time-outs find clients that are gone.
	lc := net.ListenConfig{KeepAlive: -1}
	if r.listener, err = lc.Listen(context.Background(), "tcp", o.listen); err != nil {
		return nil, fmt.Errorf("-listen: %w", err)
	}
	if r.store, err = filequeue.Open(o.spool, &filequeue.Options{Logger: log}); err != nil {
		r.listener.Close()
		return nil, fmt.Errorf("-spool: %w", err)
	}
	if o.control != "" {
		if r.socket, err = control.Listen(o.control); err != nil {
			r.listener.Close()
			r.store.Close()
			return nil, fmt.Errorf("-control: %w", err)
		}
	}
	r.queue = &queue.Queue{
		Store: r.store, Next: mux, Router: mux, Hostname: o.hostname, Logger: log,
		Concurrency: o.sessions, PerRoute: o.perRoute(), Gate: r.out, Grace: grace,
	}
	var next mailspine.Deliverer = r.queue
	if o.keys != nil {
		next = &auth.Signer{Next: r.queue, Keys: o.keys, Logger: log}
		r.queue.Notifications = next
	}
	r.control = &control.Server{Queue: r.queue, Logger: log}
	r.door = &mta.Receiver{
		Hostname: o.hostname, Recipients: mux, Next: next, Logger: log,
		// Clients are hosts of the network: one of them may be the source of all mail.
		Limits: mta.ReceiverLimits{MaxConnsPerAddr: -1, MaxCommands: -1},
	}
	return r, nil
}

// routes is the way of each recipient, and who may use it.
func (r *relay) routes() (*mta.Mux, error) {
	// One for all, and with room for the connections to some hundreds of hosts to be used again.
	// The hosts are the operator's own, so that -sessions is what they are said to take; a host that turns connections away gets fewer.
	n := r.o.perRoute()
	r.out = &mta.Relay{
		Resolver: &dns.System{}, Hostname: r.o.hostname, MaxIdle: max(512, r.o.sessions), Logger: r.log,
		Limits: mta.SiteLimits{Initial: n, Max: n},
	}
	to := func(address string) (mailspine.Deliverer, error) {
		host := &mta.Smarthost{Address: address, Relay: r.out}
		return mta.Checked{To: host, Recipients: r}, host.Validate()
	}
	mux := &mta.Mux{Routes: make(map[string]mailspine.Deliverer, len(r.o.routes))}
	hosts := map[string]mailspine.Deliverer{}
	for domain, address := range r.o.routes {
		if hosts[address] == nil {
			host, err := to(address)
			if err != nil {
				return nil, fmt.Errorf("-routes: %s: %w", domain, err)
			}
			hosts[address] = host
		}
		mux.Routes[domain] = hosts[address]
	}
	switch {
	case r.o.relay != "":
		host, err := to(r.o.relay)
		if err != nil {
			return nil, fmt.Errorf("-relay: %w", err)
		}
		mux.Default = host
	case r.o.hold:
		mux.Default = mta.Checked{Recipients: r} // it goes nowhere now
	}
	return mux, nil
}

var errNoRelay = mailspine.Errorf(550, "5.7.1", "Relaying denied")

// CheckRecipient implements mailspine.RecipientChecker: whoever is of the network may send, to anybody.
func (r *relay) CheckRecipient(_ context.Context, env *mailspine.Envelope, _ mailspine.Recipient) error {
	client := env.Origin.Addr.Addr().Unmap().WithZone("")
	for _, p := range r.o.networks {
		if p.Contains(client) {
			return nil
		}
	}
	return errNoRelay
}

// start runs the parts.
func (r *relay) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	run := func(name string, f func() error) {
		r.wg.Go(func() {
			if err := f(); err != nil {
				select {
				case r.failed <- fmt.Errorf("%s: %w", name, err):
				default: // one reason to stop is enough
				}
			}
		})
	}
	if !r.o.hold {
		r.running.Add(1)
		run("queue", func() error { defer r.running.Done(); return r.queue.Run(ctx) })
	}
	if r.socket != nil {
		run("control", func() error { return r.control.Serve(r.socket) })
	}
	run("door", func() error { return r.door.Serve(r.listener) })
}

// stop ends the parts in order: the door, so that nothing new comes in; the queue, whose deliveries may end, with
// the sight of it; and when nobody uses it, the store.
func (r *relay) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := r.door.Shutdown(ctx); err != nil {
		r.log.Warn("connections were cut off", "err", err) // what they were sending was not accepted
		r.door.Close()                                     // waits for what has arrived in full
	}
	r.cancel()
	// The control socket is there as long as deliveries are.
	if r.socket != nil {
		r.running.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), answer)
		defer cancel()
		if r.control.Shutdown(ctx) != nil {
			r.control.Close()
		}
	}
	r.wg.Wait()
	r.out.CloseIdle()
	if err := r.store.Close(); err != nil {
		return errors.Join(errors.New("close the spool"), err)
	}
	return nil
}
