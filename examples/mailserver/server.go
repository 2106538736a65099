package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/fbl"
	"github.com/mailspine/mailspine/fbl/suppress"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/imap"
	"github.com/mailspine/mailspine/mda/mailbox/maildir"
	"github.com/mailspine/mailspine/mda/pop3"
	"github.com/mailspine/mailspine/msa"
	"github.com/mailspine/mailspine/mta"
	"github.com/mailspine/mailspine/mta/egress"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
	"github.com/mailspine/mailspine/queue/filequeue"
)

const (
	// grace is how long doors and deliveries, each, may go on when the server stops.
	grace = 20 * time.Second
	// bounceFor is how long an address that does not exist gets no mail of the user who tried: nobody can
	// take an entry away while the server runs, and mailboxes come to exist.
	bounceFor = 7 * 24 * time.Hour
	// reviewMailbox is where the first user finds complaints that changed nothing.
	reviewMailbox = "Feedback"
)

// A server is all the parts, assembled.
type server struct {
	o     *options
	log   *slog.Logger
	doors []*door
	queue *queue.Queue
	tls   *transport

	// For mailtool queue: -dir has the spool in queue/, and there the socket.
	control *control.Server
	socket  net.Listener

	// What is in the directory.
	messages   *filequeue.Store
	mail       *maildir.Store
	suppressed *suppress.File
	scopes     *fbl.FileScopes

	closers []closer // in the order of opening
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	failed  chan error // the first part that ended by itself
}

// A closer is what has to be closed when nobody uses it any more.
type closer struct {
	name  string
	close func() error
}

// newServer takes the ports, opens what is in the directory and assembles the parts.
// Nothing runs yet. After an error nothing is left open.
func newServer(o *options, log *slog.Logger) (_ *server, err error) {
	s := &server{o: o, log: log, failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			for _, d := range s.doors {
				d.listener.Close()
			}
			if s.socket != nil {
				s.socket.Close()
			}
			s.close()
		}
	}()
	// Ports first: if one is taken, nothing has been touched.
	if err := s.listen(); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("-dir: %w", err)
	}
	if err := s.assemble(); err != nil {
		return nil, err
	}
	// Not the context of a signal: a start that has come this far is ended in order.
	return s, furnish(context.Background(), o, s.mail)
}

// open opens what is in the directory, and makes what is missing.
func (s *server) open() (err error) {
	dir := func(name string) string { return filepath.Join(s.o.dir, name) }
	if err := os.MkdirAll(s.o.dir, 0o700); err != nil {
		return err
	}
	// The queue comes first: it has a lock, which keeps a second server out.
	if s.messages, err = filequeue.Open(dir("queue"), &filequeue.Options{Logger: s.log}); err != nil {
		return err
	}
	s.opened("queue", s.messages.Close)
	if s.socket, err = control.Listen(filepath.Join(dir("queue"), "control")); err != nil {
		return err
	}
	if s.mail, err = maildir.Open(dir("mail"), &maildir.Options{Logger: s.log}); err != nil {
		return err
	}
	s.opened("mail", s.mail.Close)
	if s.suppressed, err = suppress.Open(dir("suppressed"), &suppress.Options{Logger: s.log}); err != nil {
		return err
	}
	s.opened("suppressed", s.suppressed.Close)
	if s.scopes, err = fbl.OpenScopes(dir("scopes"), nil); err != nil {
		return err
	}
	s.opened("scopes", s.scopes.Close)
	return nil
}

// assemble makes the parts and puts one behind the other.
func (s *server) assemble() error {
	o, log := s.o, s.log
	tlsConfig, err := newTLS(o, log)
	if err != nil {
		return err
	}
	keys, err := newSigningKeys(o, tlsConfig.Certificates[0].Leaf)
	if err != nil {
		return err
	}
	tokenKeys, err := newTokenKeys(o)
	if err != nil {
		return err
	}
	tokens := &fbl.Tokens{Keys: tokenKeys, Scopes: s.scopes}
	if err := tokens.Validate(); err != nil {
		return err
	}
	users, err := newLogins(o)
	if err != nil {
		return err
	}
	inside, err := s.newLocal(tokens)
	if err != nil {
		return err
	}
	resolver := newResolver(o, log)
	if s.tls, err = s.newTransport(resolver); err != nil {
		return err
	}
	mux, relay, err := s.newMux(inside, resolver)
	if err != nil {
		return err
	}

	// Both ways in end in the queue, and what leaves it goes where the mux says.
	signer := &auth.Signer{Keys: keys, Logger: log}
	s.queue = &queue.Queue{
		Store: s.messages, Next: mux, Router: mux, Gate: relay, Hostname: o.hostname, Grace: grace, Logger: log, Notifications: signer,
	}
	signer.Next = s.queue
	if err := s.tls.mail(keys, s.queue); err != nil {
		return err
	}
	s.control = &control.Server{Queue: s.queue, Logger: log}

	// From the users: is it to go there at all, a token for complaints, and the signature.
	submission := &msa.Server{
		Hostname: o.hostname, TLSConfig: tlsConfig, Auth: users, Logger: log,
		Next: &suppress.Filter{
			List: s.suppressed, Logger: log,
			Next: &fbl.Stamp{Tokens: tokens, Next: &auth.Signer{Required: true, Keys: keys, Next: s.queue, Logger: log}},
		},
		// When some recipients are suppressed and others are not, the queue takes the message for these, too: it fails
		// before the mailboxes or the relay once more, and the sender gets a notification.
		Undelivered: signer,
	}
	// From the world: for those whom the mux knows, and checked.
	receiver := &mta.Receiver{
		Hostname: o.hostname, TLSConfig: tlsConfig, Recipients: mux, Next: s.queue, Logger: log,
		Checker: &auth.Checker{Resolver: resolver, ID: o.hostname, BIMI: &bimi.Verifier{}, Logger: log},
	}
	// And out of the mailboxes.
	read := &imap.Server{Mailboxes: s.mail, Auth: users, TLSConfig: tlsConfig, Logger: log}
	fetch := &pop3.Server{Mailboxes: s.mail, Auth: users, TLSConfig: tlsConfig, Logger: log}
	s.connect(map[string]endpoint{
		"smtp":        {receiver, receiver.Serve},
		"submission":  {submission, submission.Serve},
		"submissions": {submission, submission.ServeTLS},
		"imap":        {read, read.Serve},
		"imaps":       {read, read.ServeTLS},
		"pop3":        {fetch, fetch.Serve},
		"pop3s":       {fetch, fetch.ServeTLS},
	})
	return nil
}

// newLocal is the way into the mailboxes, and to the intakes of complaints about what we sent and of reports about TLS.
func (s *server) newLocal(tokens *fbl.Tokens) (*local, error) {
	directory, err := newDirectory(s.o)
	if err != nil {
		return nil, err
	}
	feedback := mailspine.Address{Local: feedbackName, Domain: s.o.domain}
	review := mda.DirectoryFunc(func(context.Context, mailspine.Address) ([]mda.Destination, error) {
		return []mda.Destination{{Account: s.o.first(), Mailbox: reviewMailbox}}, nil
	})
	reviewer := &mda.Agent{Mailboxes: s.mail, Directory: review, IgnoreVerdict: true, Logger: s.log}
	return &local{
		programs: map[mailspine.Address]inside{
			feedback: &fbl.Intake{
				Tokens: tokens, Addresses: []mailspine.Address{feedback}, Suppress: s.suppressed, Logger: s.log, Review: reviewer,
			},
			s.o.reports(): s.newReports(reviewer),
		},
		mailboxes: &mda.Agent{Mailboxes: s.mail, Directory: directory, Separator: "+", Logger: s.log},
	}, nil
}

// newMux has a way for each recipient. Only the one to the mailboxes takes mail from strangers. The Relay is the one to the
// world, by which the queue sees which sites take no more just now.
func (s *server) newMux(inside mailspine.Deliverer, resolver mailspine.Resolver) (*mta.Mux, *mta.Relay, error) {
	o := s.o
	relay := &mta.Relay{
		Resolver: resolver, Hostname: o.hostname, Port: o.mxPort, AllowPrivate: o.allowPrivate, Logger: s.log,
		BySite: true,
	}
	s.tls.join(relay)
	s.opened("connections", func() error { relay.CloseIdle(); return nil })
	if len(o.sources) > 0 {
		state, err := egress.Open(filepath.Join(o.dir, "egress"), &egress.Options{Logger: s.log})
		if err != nil {
			return nil, nil, fmt.Errorf("-dir: %w", err)
		}
		s.opened("egress", state.Close)
		pool := egress.Pool{Name: "all"}
		for _, ip := range o.sources {
			src := egress.Source{Name: ip.String(), Addr: ip}
			if o.warmUp {
				src.WarmUp = egress.Geometric{}
			}
			pool.Members = append(pool.Members, egress.Member{Source: src})
		}
		selector := &egress.Selector{Pools: []egress.Pool{pool}, State: state, Logger: s.log}
		if err := selector.Validate(); err != nil {
			return nil, nil, fmt.Errorf("-source: %w", err)
		}
		s.opened("egress counts", selector.Close)
		relay.Egress = selector
	}
	// Before each way out the list is looked at once more, for what was queued when a complaint came.
	out := func(d mailspine.Deliverer) mailspine.Deliverer {
		return &suppress.Filter{List: s.suppressed, Next: d, Bounces: &suppress.BounceRule{For: bounceFor}, Logger: s.log}
	}
	inside = &suppress.Filter{List: s.suppressed, Next: inside, Logger: s.log}
	mux := &mta.Mux{Routes: map[string]mailspine.Deliverer{o.domain: inside, o.hostname: inside}, Default: out(relay)}

	// The targets of flags are looked up as the system does, hosts file included, unless a name server was given.
	var names mailspine.Resolver = &dns.System{}
	if o.dns != "" {
		names = resolver
	}
	for domain, target := range o.routes {
		host := &mta.Smarthost{Address: target, Relay: &mta.Relay{Resolver: names, Hostname: o.hostname, Logger: s.log}}
		if err := host.Validate(); err != nil {
			return nil, nil, fmt.Errorf("-route: %s: %w", domain, err)
		}
		mux.Routes[domain] = out(host)
	}
	if o.relay != "" {
		host := &mta.Smarthost{Address: o.relay, Relay: &mta.Relay{Resolver: names, Hostname: o.hostname, Egress: relay.Egress, Logger: s.log}}
		if err := host.Validate(); err != nil {
			return nil, nil, fmt.Errorf("-relay: %w", err)
		}
		mux.Default = out(host)
	}
	return mux, relay, nil
}

func newResolver(o *options, log *slog.Logger) mailspine.Resolver {
	c := &dns.Client{Logger: log}
	if o.dns != "" {
		c.Servers = []string{o.dns}
	}
	if o.trustDNS {
		c.Trusted = c.Servers
	}
	return &dns.Cache{Resolver: c}
}

// opened notes what close has to close.
func (s *server) opened(name string, close func() error) {
	s.closers = append(s.closers, closer{name, close})
}

// close closes the stores, the one that was opened last first.
func (s *server) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		if err := s.closers[i].close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", s.closers[i].name, err))
		}
	}
	s.closers = nil
	return errors.Join(errs...)
}

// start runs the parts.
func (s *server) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	run := func(name string, f func() error) {
		s.wg.Go(func() {
			if err := f(); err != nil {
				select {
				case s.failed <- fmt.Errorf("%s: %w", name, err):
				default: // one reason to stop is enough
				}
			}
		})
	}
	run("queue", func() error { return s.queue.Run(ctx) })
	run("control", func() error { return s.control.Serve(s.socket) })
	run("MTA-STS policies", func() error { return s.tls.run(ctx) })
	if s.tls.reporter != nil {
		run("TLS reports", func() error { return s.tls.reporter.Run(ctx) })
	}
	for _, d := range s.doors {
		run(d.name, func() error { return d.serve(d.listener) })
	}
}

// stop ends the parts in order: the doors, so that nothing new comes in; the queue, whose deliveries may end, and its
// control socket; and when nobody uses them, the stores.
func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	s.shut(ctx)
	s.cancel()
	if s.control.Shutdown(ctx) != nil {
		s.control.Close()
	}
	s.wg.Wait()
	return s.close()
}
