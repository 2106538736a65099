package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/authres"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
	"github.com/mailspine/mailspine/auth/spf"
)

// DefaultTimeout is how long Check.Finish waits, unless Checker.Timeout says
// otherwise.
const DefaultTimeout = 30 * time.Second

// A Checker authenticates incoming messages: SPF, DKIM and DMARC, and BIMI on request. Resolver and
// ID are required. It is safe for concurrent use as long as its fields do not
// change.
//
// What one message can cause is bounded: see the packages spf, dkim, dmarc and bimi for the
// lookups. The header block is kept in memory up to its bound, of the body nothing.
type Checker struct {
	Resolver mailspine.Resolver
	// ID is the authserv-id, the name under which this receiver's results are
	// known to those behind it, usually its host name (RFC 8601 section 2.5).
	ID string
	// Timeout bounds the wait of Check.Finish, after which what is not known is
	// temperror; 0: DefaultTimeout.
	Timeout time.Duration
	// MaxHeader bounds the header block, in octets; 0: mailspine.MaxHeader.
	MaxHeader int

	// CheckHelo also evaluates SPF for the HELO name when there is a MAIL FROM (RFC 7208
	// section 2.3). It decides nothing, and is reported.
	CheckHelo bool
	// Monitor never refuses and never quarantines: everything is only reported.
	Monitor bool
	// AcceptTempError takes a message whose DMARC result is temperror. False: it
	// is refused for now (451 4.7.1), so that a failing name server does not open
	// the door to what the policy would refuse; unless SPF or DKIM passes for the author
	// domain itself, since such a message cannot fail.
	AcceptTempError bool
	// AcceptNoAuthor takes a message that has not exactly one author domain:
	// no From field or several, or one that cannot be read. False: it is refused (550
	// 5.7.1), since no policy can protect what its reader will see (RFC 9989 section 11.5).
	AcceptNoAuthor bool

	// TLSReports are the addresses where reports about TLS arrive, those of tlsrpt.Intake. Their senders may sign them with keys that are for
	// nothing else (s=tlsrpt, RFC 8460 section 3), so for a message all of whose recipients are among them such a key counts too, as
	// dkim.Verifier.Services says: for DMARC, in Results and in the Verdict. Put no address here that people read. The case of the local part
	// does not matter. nil: there are none, and these keys sign nothing.
	TLSReports []mailspine.Address

	// SPF, DKIM and DMARC have the limits of their protocols; the zero values are
	// the defaults. An empty Resolver, Receiver, MaxHeader or Now in them is taken from the fields here.
	SPF   spf.Verifier
	DKIM  dkim.Verifier
	DMARC dmarc.Verifier
	// BIMI looks up the indicator of the author domain when DMARC passes with an enforced
	// policy, once the message is complete; its zero value has the defaults, as above. nil: indicators are not looked for, and no result
	// mentions them. That is the default since an indicator looks like a promise to readers, and nothing vouches
	// for it yet: see package bimi. The fields that only a receiver may write are forged in either case.
	BIMI *bimi.Verifier

	Logger *slog.Logger     // nil: slog.Default()
	Now    func() time.Time // nil: time.Now
}

// Validate reports which required field is missing. Servers call it when they start.
func (c *Checker) Validate() error {
	switch {
	case c.Resolver == nil:
		return errors.New("auth: Checker.Resolver is nil")
	case c.ID == "":
		return errors.New("auth: Checker.ID is empty")
	}
	return nil
}

func (c *Checker) spf() *spf.Verifier {
	v := c.SPF
	if v.Resolver == nil {
		v.Resolver = c.Resolver
	}
	if v.Receiver == "" {
		v.Receiver = c.ID
	}
	if v.Now == nil {
		v.Now = c.Now
	}
	return &v
}

func (c *Checker) dkim(env *mailspine.Envelope) *dkim.Verifier {
	v := c.DKIM
	if c.takesReports(env) && !slices.Contains(v.Services, dkim.ServiceTLSRPT) {
		v.Services = append(slices.Clone(v.Services), dkim.ServiceTLSRPT)
		if len(v.Services) == 1 {
			v.Services = append(v.Services, dkim.ServiceEmail) // what none meant
		}
	}
	if v.Resolver == nil {
		v.Resolver = c.Resolver
	}
	if v.MaxHeader == 0 {
		v.MaxHeader = c.MaxHeader
	}
	if v.Now == nil {
		v.Now = c.Now
	}
	return &v
}

// takesReports reports whether a message is for TLSReports only.
func (c *Checker) takesReports(env *mailspine.Envelope) bool {
	if len(c.TLSReports) == 0 {
		return false // the usual case
	}
	other := slices.ContainsFunc(env.Recipients, func(r mailspine.Recipient) bool {
		return !slices.ContainsFunc(c.TLSReports, func(a mailspine.Address) bool {
			return strings.EqualFold(a.Local, r.Address.Local) && a.Equal(mailspine.Address{Local: a.Local, Domain: r.Address.Domain})
		})
	})
	return len(env.Recipients) > 0 && !other
}

func (c *Checker) dmarc() *dmarc.Verifier {
	v := c.DMARC
	if v.Resolver == nil {
		v.Resolver = c.Resolver
	}
	return &v
}

func (c *Checker) bimi() *bimi.Verifier {
	v := *c.BIMI
	if v.Resolver == nil {
		v.Resolver = c.Resolver
	}
	return &v
}

// Start begins the check of a message that will be written to the result. Of
// env it reads From, Origin and, for TLSReports, Recipients, now. SPF is evaluated in the background from here on. ctx
// is that of the transaction: when it ends, what is not known becomes temperror.
//
// Finish or Cancel must be called in the end; until then goroutines run.
func (c *Checker) Start(ctx context.Context, env *mailspine.Envelope) *Check {
	ctx, cancel := context.WithCancel(ctx)
	k := &Check{c: c, ctx: ctx, cancel: cancel, dkim: c.dkim(env).Start(ctx)}
	ip, helo, from := env.Origin.Addr.Addr(), env.Origin.Helo, env.From
	v := c.spf()
	k.wait.Go(func() { k.res.SPF = v.Check(ctx, ip, helo, from) })
	if c.CheckHelo && !from.IsZero() {
		k.wait.Go(func() { k.res.Helo = v.CheckHelo(ctx, ip, helo) })
	}
	return k
}

// A Check is the check of one message. It is used by one goroutine.
type Check struct {
	c      *Checker
	ctx    context.Context // of the transaction, as Start was given it
	cancel context.CancelFunc
	wait   sync.WaitGroup // SPF, HELO and the DMARC discovery
	dkim   *dkim.Stream

	headed bool
	policy *dmarc.Discovery // nil: there is no author domain
	author error            // why
	bimi   bimi.Message     // what BIMI needs of the header; zero without Checker.BIMI

	res  Results
	done bool
}

// Write takes the next part of the message, as it is staged: lines ended by
// CRLF, dots not stuffed. It never fails and blocks for no lookup.
func (k *Check) Write(p []byte) (int, error) {
	if k.done {
		return len(p), nil
	}
	k.dkim.Write(p)
	if !k.headed && k.dkim.HeaderDone() {
		k.header()
	}
	return len(p), nil
}

// header runs once, when the header block is complete.
func (k *Check) header() {
	k.headed = true
	block, tooLarge := k.dkim.HeaderBlock()
	if tooLarge {
		k.author = errors.New("the header block is too large")
		return
	}
	h, err := mailspine.ParseHeader(bytes.NewReader(block), len(block)+1)
	if err == nil && h.Body < int64(len(block)) {
		// A line that is no field ends the block for some readers and not for
		// others, and a From field may stand below it.
		err = errors.New("a line in the header block is no field (RFC 5322 section 2.2)")
	}
	if err != nil {
		k.author = err
		return
	}
	domain, err := dmarc.Author(h)
	if err != nil {
		k.author = err
		return
	}
	if k.c.BIMI != nil {
		k.bimi = bimi.Read(h)
	}
	v := k.c.dmarc()
	k.wait.Go(func() { k.policy = v.Discover(k.ctx, domain) })
}

// Cancel gives up on a message whose transaction has ended, and waits for what
// runs in the background. After Finish it does nothing, so it can be deferred.
func (k *Check) Cancel() {
	k.done = true
	k.cancel()
	k.dkim.Cancel()
	k.wait.Wait()
}

// Finish ends the message and returns the results. It waits for lookups, at
// most for Checker.Timeout (and for the Resolver to notice, if it passes); what is not
// known then is temperror. There is always a result. It can be called once.
func (k *Check) Finish() *Results {
	limit := k.c.Timeout
	if limit <= 0 {
		limit = DefaultTimeout
	}
	timer := time.AfterFunc(limit, k.cancel)
	k.res.DKIM = k.dkim.Finish() // first: it completes a header without a body
	if !k.headed {
		k.header()
	}
	k.wait.Wait()
	r := &k.res
	r.ID, r.c = k.c.ID, k.c
	if k.policy == nil {
		r.DMARC = dmarc.Rejected(k.author)
	} else {
		var ids []dmarc.Identifier
		for _, v := range r.DKIM {
			ids = append(ids, dmarc.Identifier{Domain: v.Domain, Status: string(v.Status)})
		}
		r.DMARC = k.policy.Evaluate(k.ctx, dmarc.Identifier{Domain: r.SPF.Domain, Status: string(r.SPF.Status)}, ids)
	}
	if k.c.BIMI != nil {
		r.BIMI = k.c.bimi().Verify(k.ctx, k.bimi, r.DMARC, r.DKIM)
	}
	if !timer.Stop() {
		k.logger().LogAttrs(context.WithoutCancel(k.ctx), slog.LevelWarn, "authentication timed out",
			slog.Duration("limit", limit), slog.String("spf_domain", r.SPF.Domain))
	}
	k.done = true
	k.cancel()
	k.logger().LogAttrs(context.WithoutCancel(k.ctx), slog.LevelDebug, "authentication",
		slog.String("spf", string(r.SPF.Status)), slog.Int("signatures", len(r.DKIM)),
		slog.String("dmarc", string(r.DMARC.Status)), slog.String("author", r.DMARC.FromDomain),
		slog.String("disposition", string(r.Disposition())), slog.String("bimi", string(r.BIMI.Status)))
	return r
}

func (k *Check) logger() *slog.Logger {
	if k.c.Logger != nil {
		return k.c.Logger
	}
	return slog.Default()
}

// Forged reports whether a header field of an incoming message pretends to be
// a result of this receiver, or could be taken for one: an Authentication-Results field with
// its ID, whatever the case, the form of an international name, a trailing dot, comments and
// version; one whose id cannot be told; every Received-SPF, which has
// no id; and the fields of BIMI that only a receiver may write. It goes into mailspine.HeaderEdit.Drop, before Results.Header is prepended. With an empty
// ID every Authentication-Results field is forged.
func (c *Checker) Forged(f mailspine.HeaderField) bool {
	switch {
	case f.Is("Received-SPF"), bimi.Reserved(f):
		return true
	case f.Is("Authentication-Results"):
		id, ok := authres.ID(f.Value())
		return !ok || c.ID == "" || authres.SameID(id, c.ID)
	}
	return false
}

// Results are what a Check found.
type Results struct {
	ID    string
	SPF   spf.Result          // of MAIL FROM, or of HELO for a null reverse-path
	Helo  spf.Result          // of HELO, if Checker.CheckHelo asks for it besides; Status "": not checked
	DKIM  []dkim.Verification // in header order; empty: no signature
	DMARC dmarc.Result
	BIMI  bimi.Result // Status "": not looked for

	c *Checker
}

// Disposition is what is to be done with the message: none, quarantine or reject. It is the DMARC
// result's, as the Checker's fields allow. Reject may be for now only: see Reject.
func (r *Results) Disposition() dmarc.Policy {
	switch {
	case r.c != nil && r.c.Monitor:
		return dmarc.NonePolicy
	case r.Reject() != nil:
		return dmarc.Reject
	case r.DMARC.Status == dmarc.Fail && r.DMARC.Disposition == dmarc.Quarantine:
		return dmarc.Quarantine
	}
	return dmarc.NonePolicy
}

// Reject returns the answer to the final dot that the results ask for, or nil
// to take the message:
//
//   - 550 5.7.1 for a DMARC fail whose policy is reject, with the author domain in the text (RFC
//     9989 section 7.2);
//   - 550 5.7.1 for a message without exactly one author domain, unless Checker.AcceptNoAuthor;
//   - 451 4.7.1 for a DMARC temperror, unless Checker.AcceptTempError, or
//     unless SPF or DKIM passes for the author domain itself.
func (r *Results) Reject() *mailspine.Error {
	c := r.c
	if c == nil {
		c = &Checker{}
	}
	if c.Monitor {
		return nil
	}
	cause := func() error { return fmt.Errorf("dmarc=%s: %s", r.DMARC.Status, r.DMARC.Problem) }
	switch r.DMARC.Status {
	case dmarc.Fail:
		if r.DMARC.Disposition == dmarc.Reject {
			return mailspine.Errorf(550, "5.7.1", "Rejected by the DMARC policy of %s", r.DMARC.FromDomain)
		}
	case dmarc.PermError:
		if !c.AcceptNoAuthor {
			return mailspine.Errorf(550, "5.7.1", "Message has not exactly one author domain in From").WithCause(cause())
		}
	case dmarc.TempError:
		aligned := len(r.DMARC.AlignedDKIM) > 0 || r.DMARC.AlignedSPF != ""
		if !c.AcceptTempError && !aligned {
			return mailspine.Errorf(451, "4.7.1", "DMARC of %s cannot be evaluated now, try again later", r.DMARC.FromDomain).WithCause(cause())
		}
	}
	return nil
}

// order ranks DKIM results for the Verdict: what says most comes first.
func order() []dkim.Status {
	return []dkim.Status{dkim.Pass, dkim.TempError, dkim.Fail, dkim.Policy, dkim.PermError}
}

// Verdict returns the results in short, for the envelope.
func (r *Results) Verdict() *mailspine.Verdict {
	v := &mailspine.Verdict{
		SPF: string(r.SPF.Status), SPFDomain: r.SPF.Domain, DKIM: string(dkim.None),
		DMARC: string(r.DMARC.Status), FromDomain: r.DMARC.FromDomain,
		Policy: string(r.DMARC.Policy), Disposition: string(r.Disposition()),
		BIMI: string(r.BIMI.Status), Indicator: r.BIMI.Indicator, Evidence: r.BIMI.Evidence,
	}
	ranks := order()
	best := len(ranks)
	for _, s := range r.DKIM {
		if s.Status == dkim.Pass {
			v.DKIMDomains = append(v.DKIMDomains, s.Domain)
		}
		for i, st := range ranks[:best] {
			if s.Status == st {
				best = i
				v.DKIM = string(st)
			}
		}
	}
	return v
}

// AuthenticationResults returns the results as the content of an
// Authentication-Results field.
func (r *Results) AuthenticationResults() *authres.Header {
	h := &authres.Header{ID: r.ID}
	add := func(s *spf.Result) {
		if s.Status == "" {
			return
		}
		res := authres.Result{Method: "spf", Value: string(s.Status), Reason: s.Problem}
		if s.Identity == spf.MailFrom {
			res.Properties = append(res.Properties, authres.Property{Type: "smtp", Name: "mailfrom", Value: s.Sender})
		} else {
			res.Properties = append(res.Properties, authres.Property{Type: "smtp", Name: "helo", Value: s.Helo})
		}
		h.Results = append(h.Results, res)
	}
	add(&r.SPF)
	add(&r.Helo)
	for _, s := range r.DKIM {
		h.Results = append(h.Results, authres.Result{
			Method: "dkim", Value: string(s.Status), Reason: s.Problem,
			Properties: []authres.Property{
				{Type: "header", Name: "d", Value: s.Domain},
				{Type: "header", Name: "s", Value: s.Selector},
				{Type: "header", Name: "a", Value: s.Algorithm},
				{Type: "header", Name: "b", Value: s.Signature},
			},
		})
	}
	if len(r.DKIM) == 0 {
		h.Results = append(h.Results, authres.Result{Method: "dkim", Value: string(dkim.None)})
	}
	d := authres.Result{Method: "dmarc", Value: string(r.DMARC.Status), Reason: r.DMARC.Problem,
		Properties: []authres.Property{{Type: "header", Name: "from", Value: r.DMARC.FromDomain}}}
	if r.DMARC.Record != nil {
		// RFC 9989 section 9.1: the policy to be applied after local options.
		d.Properties = append(d.Properties, authres.Property{Type: "policy", Name: "dmarc", Value: string(r.Disposition())})
	}
	h.Results = append(h.Results, d)
	if r.BIMI.Status != "" {
		h.Results = append(h.Results, r.bimi())
	}
	return h
}

// bimi is the result of BIMI, as section "Affix BIMI Status to Authentication Results Header Field" has it.
func (r *Results) bimi() authres.Result {
	b := &r.BIMI
	res := authres.Result{Method: "bimi", Value: string(b.Status), Comment: b.Problem, Properties: []authres.Property{
		{Type: "header", Name: "d", Value: b.Domain},
		{Type: "header", Name: "selector", Value: b.Selector},
	}}
	add := func(name, value string) {
		if len(value) <= authres.MaxValue { // part of a URI is worse than none
			res.Properties = append(res.Properties, authres.Property{Type: "policy", Name: name, Value: value})
		}
	}
	if b.Status == bimi.Pass {
		add("authority", "none") // the evidence has not been checked
		add("indicator-uri", b.Indicator)
		add("logo-preference", b.Preference)
	}
	return res
}

// Header returns the fields to prepend to the message: Authentication-Results,
// then those of BIMI if it passes, then Received-SPF. They are folded, ended by CRLF, and nothing that strangers
// wrote can add to them.
func (r *Results) Header() []byte {
	head := append(r.AuthenticationResults().Field(), r.BIMI.Header()...)
	return append(head, r.SPF.Header(r.ID)...)
}
