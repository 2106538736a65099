package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
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
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
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
	"github.com/mailspine/mailspine/queue/filequeue"
)

// The demo lives on loopback, which a relay refuses to connect to unless told.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// Settings are what an organisation needs to run. They can be handed to a
// child process as JSON.
type settings struct {
	Domain   string
	Dir      string          // queue and mailboxes
	DNS      string          // the address of the name server
	MXPort   uint16          // where the other side's MX listens, since 25 needs root
	Users    map[string]user // by login name
	DKIM     []byte          // private key, PEM
	Cert     []byte          // PEM
	CertKey  []byte          // PEM
	CA       []byte          // PEM
	Pools    []pool          // what mail is sent from; none: the system's choice
	Secret   []byte          // key of the feedback tokens
	Frozen   bool            // accept and store, but send nothing
	WithMail bool            // also receive, and keep mailboxes
}

// A user may log in, and sends for a tenant.
type user struct{ Password, Tenant string }

// A pool is a set of addresses for some tenants.
type pool struct {
	Name    string
	Tenants []string
	Sources []source
}

// A source is an address that mail is sent from.
type source struct {
	Name   string
	Addr   netip.Addr
	Weight int
	WarmUp egress.Ladder // copies on its first, second, ... sending day; nil: no cap
}

// bounces is the domain of the return paths, and of the feedback address.
func (s *settings) bounces() string { return "bounces." + s.Domain }

func (s *settings) feedback() mailspine.Address {
	return mailspine.Address{Local: "fbl", Domain: s.bounces()}
}

func (s *settings) indicator() string { return "https://" + s.Domain + "/indicator.svg" }

func (s *settings) sourceHost(src source) string { return src.Name + "." + s.Domain }

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
	imap     *imap.Server // with mailboxes only, as pop3 and receiver
	pop3     *pop3.Server
	relay    *mta.Relay
	egress   *egress.Selector // nil: no pools
	warmth   *egress.File     // what the pools sent
	list     *suppress.File   // who gets no more mail
	scopes   *fbl.FileScopes  // whose mail a token is about

	stranger atomic.Pointer[tls.Config] // who answers in our place; nil: nobody
	deferred chan queue.ResultInfo      // what could not be delivered yet; nobody needs to listen

	outbound mailspine.Deliverer // signs and queues what the organisation itself sends

	mu   sync.Mutex
	held map[queue.ItemID]string // why an item waits
	from map[string]int          // messages taken, by who sent them: name in EHLO and address

	submission, smtp, imaps, pop3s net.Listener

	cancel context.CancelFunc
	wg     sync.WaitGroup
	errs   chan error
}

// newOrg assembles the parts. Nothing runs yet.
func newOrg(s settings, sh *show, wire bool) (*org, error) {
	o := &org{settings: s, show: sh, errs: make(chan error, 5), deferred: make(chan queue.ResultInfo, 1), held: map[queue.ItemID]string{}, from: map[string]int{}}
	logger := slog.New(slog.DiscardHandler)
	who := strings.SplitN(s.Domain, ".", 2)[0]
	hop := func(part, format string, args ...any) { sh.hop(who+" "+part, format, args...) }

	tlsConfig, err := serverTLS(s.Cert, s.CertKey)
	if err != nil {
		return nil, err
	}
	receiverTLS := tlsConfig.Clone()
	receiverTLS.GetConfigForClient = o.config
	key, err := dkim.ParseKey(s.DKIM)
	if err != nil {
		return nil, err
	}
	// What the name server says about DNSSEC is believed. Elsewhere it would be one on the same host.
	resolver := &dns.Cache{Resolver: &dns.Client{Servers: []string{s.DNS}, Trusted: []string{s.DNS}, Logger: logger}}

	// The way out: a relay that demands verified TLS of everybody. Whose key is the right one the zone of the other side says.
	o.relay = &mta.Relay{
		Resolver: resolver, Hostname: s.host(), Port: s.MXPort, AllowPrivate: loopback,
		TLSPolicy: mta.TLSRules{"": {Level: mta.TLSVerify}},
		Logger:    logger,
	}
	o.relay.Trace = relayTrace(hop, sh, who, wire)
	if len(s.Pools) > 0 {
		if o.warmth, err = egress.Open(filepath.Join(s.Dir, "egress"), nil); err != nil {
			return nil, err
		}
		now := time.Now() // the demo is over before the day is, even at midnight
		o.egress = &egress.Selector{
			Pools: s.pools(), Domains: []egress.Domain{{Name: s.Domain}}, State: o.warmth, Logger: logger,
			Now: func() time.Time { return now },
			// The return paths are sealed: the domain behind is the one that counts.
			SendingDomain: func(env *mailspine.Envelope) string { return strings.TrimPrefix(env.From.Domain, "bounces.") },
		}
		o.relay.Egress = o.egress
	}
	// Before it, whoever complained or does not exist is spared; what the relay
	// refuses for that reason is added.
	if o.list, err = suppress.Open(filepath.Join(s.Dir, "suppress"), &suppress.Options{Logger: logger}); err != nil {
		return nil, err
	}
	mux := &mta.Mux{Default: &suppress.Filter{List: o.list, Next: o.relay, Bounces: &suppress.BounceRule{}, Logger: logger}}

	// The way in: mailboxes for the users of the domain.
	if s.WithMail {
		if o.mail, err = maildir.Open(filepath.Join(s.Dir, "mail"), &maildir.Options{Logger: logger}); err != nil {
			return nil, err
		}
		directory, err := mda.Users(slices.Collect(maps.Keys(s.Users))...)
		if err != nil {
			return nil, err
		}
		directory["postmaster@"+s.Domain] = []mda.Destination{{Account: "postmaster@" + s.Domain}}
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
				hop("queue", "%s to %s stored and synced", brief(string(q.Envelope.ID)), paths(q.Envelope))
			},
			Held: func(_ context.Context, h queue.HeldInfo) {
				hop("queue", "%s to %s waits: %s", h.Envelope.ID, paths(h.Envelope), h.Reason)
				o.mu.Lock()
				defer o.mu.Unlock()
				o.held[h.Item] = h.Reason
			},
			Deferred: func(_ context.Context, r queue.ResultInfo) {
				hop("queue", "%s waits: %s", r.Recipient.Address.Path(), r.Result.Status.Reply())
				select {
				case o.deferred <- r:
				default:
				}
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
			hop("signer", "%s signed with DKIM: d=%s s=%s", brief(string(env.ID)), s.Domain, selector)
		}},
		Keys: auth.KeyMap{s.Domain: {{Domain: s.Domain, Selector: selector, Key: key}}},
	}
	o.queue.Notifications, o.outbound = signer, signer
	// Each copy gets a token of its own, in its header and in its return path; what comes back to those, and
	// to the feedback address, is heard by the intake.
	if o.scopes, err = fbl.OpenScopes(filepath.Join(s.Dir, "scopes"), nil); err != nil {
		return nil, err
	}
	tokens := &fbl.Tokens{Keys: [][]byte{s.Secret}, Domain: s.bounces(), Scopes: o.scopes}
	stamp := &fbl.Stamp{Tokens: tokens, ReturnPath: true, Next: signer}
	if s.WithMail {
		mux.Routes[s.bounces()] = &fbl.Intake{
			Tokens: tokens, Addresses: []mailspine.Address{s.feedback()}, Suppress: o.list, Forward: o.queue,
			Review: o.queue, ReviewTo: mailspine.Address{Local: "postmaster", Domain: s.Domain}, Logger: logger,
			Trace: &fbl.Trace{
				Complaint: func(_ context.Context, i fbl.ComplaintInfo) {
					hop("feedback", "%s complained of %s's mail: token and reporter are authentic, no more to this reader", i.Recipient.Path(), i.Scope.Tenant)
				},
				Bounce: func(_ context.Context, i fbl.BounceInfo) {
					hop("feedback", "%s bounced with %s: no more to this address", i.Recipient.Path(), i.Status.Enhanced)
				},
				Reviewed: func(_ context.Context, i fbl.ReviewInfo) {
					hop("feedback", "a report changes nothing and is kept for review: %s", i.Reason)
				},
				Forwarded: func(_ context.Context, i fbl.ForwardInfo) {
					hop("feedback", "the report is passed on to %s", i.Scope.Sender.Path())
				},
			},
		}
	}
	// The doors: submission for the users, a receiver for the world.
	users := &msa.MemoryUsers{Memory: 1024, Passes: 1} // cheap hashes: the demo is short
	for name, u := range s.Users {
		if err := users.Add(mailspine.Login{Name: name, Tenant: u.Tenant}, u.Password); err != nil {
			return nil, err
		}
	}
	o.submit = &msa.Server{Hostname: s.host(), TLSConfig: tlsConfig, Auth: users, Logger: logger,
		// Who submits hears at once that a recipient is suppressed. In a message to others too, the
		// filter before the relay tells the sender.
		Next: &suppress.Filter{List: o.list, Next: stamp, Logger: logger}, Undelivered: stamp,
	}
	if wire {
		o.submit.Trace = &msa.Trace{Wire: func(_ context.Context, _ netip.AddrPort, sent bool, line string) {
			sh.wire(who+" MSA", !sent, line)
		}}
	}
	if s.WithMail {
		o.receiver = &mta.Receiver{
			Hostname: s.host(), TLSConfig: receiverTLS, Recipients: mux, Next: o.queue, Logger: logger,
			Checker: &auth.Checker{Resolver: resolver, ID: s.host(), BIMI: &bimi.Verifier{}, Logger: logger},
			Trace: &mta.ReceiverTrace{
				Checked: func(_ context.Context, env *mailspine.Envelope, r *auth.Results) {
					v := r.Verdict()
					hop("receiver", "from <%s>: spf=%s dkim=%s dmarc=%s bimi=%s", brief(env.From.String()), v.SPF, v.DKIM, v.DMARC, v.BIMI)
					if v.Indicator != "" {
						hop("receiver", "the author's indicator is %s", v.Indicator)
					}
				},
				Message: func(_ context.Context, env *mailspine.Envelope, _ int64, err error) {
					if err == nil {
						o.mu.Lock()
						defer o.mu.Unlock()
						o.from[env.Origin.Helo+" "+env.Origin.Addr.Addr().String()]++
					}
				},
			},
		}
	}
	if s.WithMail {
		o.imap = &imap.Server{Mailboxes: o.mail, Auth: users, TLSConfig: tlsConfig, Logger: logger}
		o.pop3 = &pop3.Server{Mailboxes: o.mail, Auth: users, TLSConfig: tlsConfig, Logger: logger}
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
		s = append(s, "<"+brief(r.Address.String())+">")
	}
	return strings.Join(s, ", ")
}

// brief shortens sealed return paths and the IDs of parts, which have over 60 characters.
func brief(s string) string {
	local, domain, ok := strings.Cut(s, "@")
	if len(local) > 40 {
		local = local[:12] + "..."
	}
	if ok {
		local += "@" + domain
	}
	return local
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
			by := map[string]string{"dane": "DANE", "mta-sts": "MTA-STS"}[i.Policy]
			hop("relay", "STARTTLS with %s: %s, verified by %s", i.Host, i.TLS.Version, cmp.Or(by, "an authority"))
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
	for _, l := range []*net.Listener{&o.submission, &o.imaps, &o.pop3s} {
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
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
	if !o.WithMail { // nobody reads here
		o.imaps.Close()
		o.pop3s.Close()
	}
	if !o.Frozen {
		run("queue", func() error { return o.queue.Run(ctx) })
	}
	run("submission", func() error { return o.submit.Serve(o.submission) })
	if o.receiver != nil {
		run("receiver", func() error { return o.receiver.Serve(o.smtp) })
		run("IMAP", func() error { return o.imap.ServeTLS(o.imaps) })
		run("POP3", func() error { return o.pop3.ServeTLS(o.pop3s) })
	}
	return nil
}

// stop ends everything in order: doors first, then the queue, then the stores.
func (o *org) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	errs := []error{o.submit.Shutdown(ctx)}
	if o.receiver != nil {
		errs = append(errs, o.receiver.Shutdown(ctx), o.imap.Shutdown(ctx), o.pop3.Shutdown(ctx))
	}
	if o.cancel != nil {
		o.cancel()
	}
	o.wg.Wait()
	errs = append(errs, o.store.Close())
	errs = append(errs, o.list.Close(), o.scopes.Close())
	if o.egress != nil {
		errs = append(errs, o.egress.Close(), o.warmth.Close())
	}
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
	return &mua{show: o.show, addr: o.submission.Addr().String(), host: o.host(), roots: roots(o.CA), user: user, password: o.Users[user].Password}
}

// zone is what the organisation publishes.
func (s *settings) zone() (dnstest.Zone, error) {
	key, err := dkim.ParseKey(s.DKIM)
	if err != nil {
		return nil, err
	}
	k := dkim.SigningKey{Domain: s.Domain, Selector: selector, Key: key}
	zone := dnstest.Zone{
		s.host():             {dnstest.A("127.0.0.1"), dnstest.TXT("v=spf1 a -all")},
		k.Name():             {dnstest.TXT(k.Record().String())},
		"_dmarc." + s.Domain: {dnstest.TXT("v=DMARC1; p=reject")},
		// What a mail program may show beside the mail of the domain.
		"default._bimi." + s.Domain: {dnstest.TXT("v=BIMI1; l=" + s.indicator() + "; a=")},
	}
	policy := "v=spf1 mx"
	for _, p := range s.Pools {
		for _, src := range p.Sources {
			policy += " ip4:" + src.Addr.String()
			zone[s.sourceHost(src)] = []dnstest.Record{dnstest.A(src.Addr.String()), dnstest.TXT("v=spf1 a -all")}
		}
	}
	for _, domain := range []string{s.Domain, s.bounces()} {
		zone[domain] = []dnstest.Record{dnstest.Signed, dnstest.MX(10, s.host()), dnstest.TXT(policy + " -all")}
	}
	return zone, nil
}

// pools is what the relay sends from.
func (s *settings) pools() []egress.Pool {
	var pools []egress.Pool
	for _, p := range s.Pools {
		ep := egress.Pool{Name: p.Name, Tenants: p.Tenants}
		for _, src := range p.Sources {
			m := egress.Member{Source: egress.Source{Name: src.Name, Addr: src.Addr, Hostname: s.sourceHost(src)}, Weight: src.Weight}
			if src.WarmUp != nil {
				m.Source.WarmUp = src.WarmUp
			}
			ep.Members = append(ep.Members, m)
		}
		pools = append(pools, ep)
	}
	return pools
}

// newSettings makes keys and certificate for a domain.
func newSettings(domain, dir string, ca *authority, users map[string]user) (settings, error) {
	s := settings{Domain: domain, Dir: dir, CA: ca.pem(), Users: users, WithMail: true}
	key, err := dkim.GenerateRSA(2048)
	if err != nil {
		return s, err
	}
	if s.DKIM, err = dkim.MarshalKey(key); err != nil {
		return s, err
	}
	s.Secret = make([]byte, fbl.MinKey)
	rand.Read(s.Secret)
	s.Cert, s.CertKey, err = ca.issue(s.host())
	return s, err
}
