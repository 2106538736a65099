package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/mailbox/maildir"
	"github.com/mailspine/mailspine/msa"
	"github.com/mailspine/mailspine/mta"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// The demo lives on loopback, which a relay refuses to connect to unless told.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// Settings are what an organisation needs to run. They can be handed to a
// child process as JSON.
type settings struct {
	Domain   string
	Dir      string            // queue and mailboxes
	DNS      string            // the address of the name server
	MXPort   uint16            // where the other side's MX listens, since 25 needs root
	Users    map[string]string // login name to password
	DKIM     []byte            // private key, PEM
	Cert     []byte            // PEM
	CertKey  []byte            // PEM
	CA       []byte            // PEM
	Frozen   bool              // accept and store, but send nothing
	WithMail bool              // also receive, and keep mailboxes
}

func (s *settings) host() string { return "mx." + s.Domain }

const selector = "demo"

// An org is one organisation's mail system: what an application assembles from
// the packages.
type org struct {
	settings
	show     *show
	mail     *maildir.Store // nil: no mailboxes
	queue    *queue.Queue
	store    *filequeue.Store
	submit   *msa.Server
	receiver *mta.Receiver
	relay    *mta.Relay

	submission, smtp net.Listener

	cancel context.CancelFunc
	wg     sync.WaitGroup
	errs   chan error
}

// newOrg assembles the parts. Nothing runs yet.
func newOrg(s settings, sh *show, wire bool) (*org, error) {
	o := &org{settings: s, show: sh, errs: make(chan error, 4)}
	logger := slog.New(slog.DiscardHandler)
	who := strings.SplitN(s.Domain, ".", 2)[0]
	hop := func(part, format string, args ...any) { sh.hop(who+" "+part, format, args...) }

	tlsConfig, err := serverTLS(s.Cert, s.CertKey)
	if err != nil {
		return nil, err
	}
	key, err := dkim.ParseKey(s.DKIM)
	if err != nil {
		return nil, err
	}
	resolver := &dns.Cache{Resolver: &dns.Client{Servers: []string{s.DNS}, Logger: logger}}

	// The way out: a relay that demands verified TLS of everybody.
	o.relay = &mta.Relay{
		Resolver: resolver, Hostname: s.host(), Port: s.MXPort, AllowPrivate: loopback,
		TLSPolicy: mta.TLSRules{"": {Level: mta.TLSVerify, Roots: roots(s.CA)}},
		Logger:    logger,
	}
	o.relay.Trace = relayTrace(hop, sh, who, wire)
	mux := &mta.Mux{Default: o.relay}

	// The way in: mailboxes for the users of the domain.
	if s.WithMail {
		if o.mail, err = maildir.Open(filepath.Join(s.Dir, "mail"), &maildir.Options{Logger: logger}); err != nil {
			return nil, err
		}
		directory, err := mda.Users(slices.Collect(maps.Keys(s.Users))...)
		if err != nil {
			return nil, err
		}
		agent := &mda.Agent{Mailboxes: o.mail, Directory: directory, Logger: logger}
		mux.Routes = map[string]mailspine.Deliverer{s.Domain: &told{Deliverer: agent, taken: func(env *mailspine.Envelope) {
			hop("mailbox", "filed for %s, file and directory synced", paths(env))
		}}}
	}

	// Between the two: the queue.
	if o.store, err = filequeue.Open(filepath.Join(s.Dir, "queue"), &filequeue.Options{Logger: logger}); err != nil {
		return nil, err
	}
	o.queue = &queue.Queue{
		Store: o.store, Next: mux, Router: mux, Hostname: s.host(), Logger: logger,
		Trace: &queue.Trace{
			Queued: func(_ context.Context, q queue.QueuedInfo) {
				hop("queue", "%s to %s stored and synced", q.Envelope.ID, paths(q.Envelope))
			},
			Failed: func(_ context.Context, r queue.ResultInfo) {
				hop("queue", "%s: given up: %s", r.Recipient.Address.Path(), r.Result.Status.Reply())
			},
			Reported: func(_ context.Context, r queue.ReportedInfo) {
				hop("queue", "delivery status notification to %s", paths(r.Envelope))
			},
		},
	}
	signer := &auth.Signer{
		Required: true, Logger: logger,
		Next: &told{Deliverer: o.queue, before: func(env *mailspine.Envelope) {
			hop("signer", "%s signed with DKIM: d=%s s=%s", env.ID, s.Domain, selector)
		}},
		Keys: auth.KeyMap{s.Domain: {{Domain: s.Domain, Selector: selector, Key: key}}},
	}
	o.queue.Notifications = signer
	// The doors: submission for the users, a receiver for the world.
	users := &msa.MemoryUsers{Memory: 1024, Passes: 1} // cheap hashes: the demo is short
	for user, password := range s.Users {
		if err := users.Add(mailspine.Login{Name: user}, password); err != nil {
			return nil, err
		}
	}
	o.submit = &msa.Server{Hostname: s.host(), TLSConfig: tlsConfig, Auth: users, Next: signer, Logger: logger}
	if wire {
		o.submit.Trace = &msa.Trace{Wire: func(_ context.Context, _ netip.AddrPort, sent bool, line string) {
			sh.wire(who+" MSA", !sent, line)
		}}
	}
	if s.WithMail {
		o.receiver = &mta.Receiver{
			Hostname: s.host(), TLSConfig: tlsConfig, Recipients: mux, Next: o.queue, Logger: logger,
			Checker: &auth.Checker{Resolver: resolver, ID: s.host(), Logger: logger},
			Trace: &mta.ReceiverTrace{
				Checked: func(_ context.Context, env *mailspine.Envelope, r *auth.Results) {
					v := r.Verdict()
					hop("receiver", "from %s: spf=%s dkim=%s dmarc=%s, policy %s", env.From.Path(), v.SPF, v.DKIM, v.DMARC, v.Policy)
				},
			},
		}
	}
	return o, nil
}

// A told is a Deliverer that says what passes through it.
type told struct {
	mailspine.Deliverer
	before func(*mailspine.Envelope) // nil: says nothing
	taken  func(*mailspine.Envelope) // nil: says nothing
}

// Unwrap lets what is inside be found.
func (d *told) Unwrap() mailspine.Deliverer { return d.Deliverer }

func (d *told) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if d.before != nil {
		d.before(env)
	}
	err := d.Deliverer.Deliver(ctx, env, msg)
	if err == nil && d.taken != nil {
		d.taken(env)
	}
	return err
}

func paths(env *mailspine.Envelope) string {
	var s []string
	for _, r := range env.Recipients {
		s = append(s, r.Address.Path())
	}
	return strings.Join(s, ", ")
}

func relayTrace(hop func(part, format string, args ...any), sh *show, who string, wire bool) *mta.RelayTrace {
	t := &mta.RelayTrace{
		Resolved: func(_ context.Context, i mta.ResolvedInfo) {
			if i.Err != nil {
				hop("DNS", "MX of %s: %v", i.Domain, i.Err)
				return
			}
			hop("DNS", "MX of %s is %s", i.Domain, strings.Join(i.Hosts, ", "))
		},
		TLS: func(_ context.Context, i mta.TLSDoneInfo) {
			if i.Err != nil {
				hop("relay", "TLS with %s: %v", i.Host, i.Err)
				return
			}
			hop("relay", "STARTTLS with %s: %s, certificate of %s verified", i.Host, i.TLS.Version, i.TLS.Peer)
		},
		Reply: func(_ context.Context, i mta.ReplyInfo) {
			if i.Command == "message" || strings.HasPrefix(i.Reply, "5") || strings.HasPrefix(i.Reply, "4") {
				hop("relay", "%s answers %s: %s", i.Host, i.Command, i.Reply)
			}
		},
	}
	if wire {
		t.Wire = func(_ context.Context, l mta.WireLine) { sh.wire(who+" relay", !l.Sent, l.Line) }
	}
	return t
}

// port returns the port of a listener.
func port(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// start opens the ports that are not open yet, chosen by the kernel, and runs
// servers and queue until stop.
func (o *org) start() (err error) {
	if o.submission, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.cancel = cancel
	run := func(what string, f func() error) {
		o.wg.Go(func() {
			if err := f(); err != nil {
				o.errs <- fmt.Errorf("%s: %s: %w", o.Domain, what, err)
			}
		})
	}
	if !o.Frozen {
		run("queue", func() error { return o.queue.Run(ctx) })
	}
	run("submission", func() error { return o.submit.Serve(o.submission) })
	if o.receiver != nil {
		run("receiver", func() error { return o.receiver.Serve(o.smtp) })
	}
	return nil
}

// stop ends everything in order: doors first, then the queue, then the stores.
func (o *org) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	errs := []error{o.submit.Shutdown(ctx)}
	if o.receiver != nil {
		errs = append(errs, o.receiver.Shutdown(ctx))
	}
	if o.cancel != nil {
		o.cancel()
	}
	o.wg.Wait()
	errs = append(errs, o.store.Close())
	if o.mail != nil {
		errs = append(errs, o.mail.Close())
	}
	close(o.errs)
	for err := range o.errs {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mua is the mail program of one of the users.
func (o *org) mua(user string) *mua {
	return &mua{show: o.show, addr: o.submission.Addr().String(), host: o.host(), roots: roots(o.CA), user: user, password: o.Users[user]}
}

// zone is what the organisation publishes.
func (s *settings) zone() (dnstest.Zone, error) {
	key, err := dkim.ParseKey(s.DKIM)
	if err != nil {
		return nil, err
	}
	k := dkim.SigningKey{Domain: s.Domain, Selector: selector, Key: key}
	return dnstest.Zone{
		s.Domain:             {dnstest.MX(10, s.host()), dnstest.TXT("v=spf1 mx -all")},
		s.host():             {dnstest.A("127.0.0.1"), dnstest.TXT("v=spf1 a -all")},
		k.Name():             {dnstest.TXT(k.Record().String())},
		"_dmarc." + s.Domain: {dnstest.TXT("v=DMARC1; p=reject")},
	}, nil
}

// newSettings makes keys and certificate for a domain.
func newSettings(domain, dir string, ca *authority, users map[string]string) (settings, error) {
	s := settings{Domain: domain, Dir: dir, CA: ca.pem(), Users: users, WithMail: true}
	key, err := dkim.GenerateRSA(2048)
	if err != nil {
		return s, err
	}
	if s.DKIM, err = dkim.MarshalKey(key); err != nil {
		return s, err
	}
	s.Cert, s.CertKey, err = ca.issue(s.host())
	return s, err
}
