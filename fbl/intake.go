package fbl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl/suppress"
	"github.com/mailspine/mailspine/internal/report"
)

// ReviewHeader is the field that says why a report changed nothing.
const ReviewHeader = "X-Feedback-Review"

// The bounds of what is looked at in a report.
const (
	maxTokens     = 10
	maxCandidates = 100
)

// An Intake is a Deliverer for what comes back: complaints to the feedback addresses, and bounces to sealed return
// paths. It is a RecipientChecker too: other addresses, and return paths that are forged or too old, are unknown (550 5.1.1).
//
// nil means that a report was dealt with: its reader is suppressed, or it is with Review, or it was passed on. When the
// list or Review fail, in whatever way, so does Deliver, with a temporary error: who sent the report cannot mend that, and
// would not send it again. When Forward fails for now, so does Deliver; what Forward refuses for good goes to Review. To deliver
// a report again does no harm: it is the same entry, and Outcomes hears of an entry once.
//
// It is safe for concurrent use; its fields must not change once it is in use. It must not be copied.
type Intake struct {
	Tokens *Tokens // required
	// Addresses take complaints, such as fbl@example.org; none: none.
	Addresses []mailspine.Address
	Suppress  suppress.List // required
	// Review takes the reports that changed nothing, with the reason in ReviewHeader. Required.
	Review mailspine.Deliverer
	// ReviewTo is the recipient of what goes to Review; zero: the address that the report came to.
	ReviewTo mailspine.Address
	// Forward takes what came to a sealed return path, to send it on to the message's original sender, with the null
	// reverse-path. nil: bounces end here, and what is no bounce goes to Review.
	Forward mailspine.Deliverer
	// BounceFor is how long a hard bounce suppresses; 0: for ever. Complaints do for ever.
	BounceFor time.Duration

	// Outcomes is told of each complaint and bounce by which a recipient comes to be suppressed; nil: nobody. It is not
	// told of further ones about the same recipient and stream as long as the entry lasts: else a reader could make a sender
	// look as bad as he likes by sending one report many times.
	Outcomes mailspine.OutcomeSink
	Logger   *slog.Logger     // nil: slog.Default
	Trace    *Trace           // nil: none
	Now      func() time.Time // nil: time.Now

	adding sync.Mutex // makes one step of looking for an entry and adding it
}

var (
	_ mailspine.Deliverer        = (*Intake)(nil)
	_ mailspine.RecipientChecker = (*Intake)(nil)
)

// A Trace is a set of hooks, each of which may be nil. They are called on the path of a delivery,
// by many goroutines at once, and return soon.
type Trace struct {
	Complaint func(ctx context.Context, info ComplaintInfo) // one that counts
	Bounce    func(ctx context.Context, info BounceInfo)    // one that counts
	Reviewed  func(ctx context.Context, info ReviewInfo)
	Forwarded func(ctx context.Context, info ForwardInfo)
}

// ComplaintInfo describes a complaint that suppresses its reader.
type ComplaintInfo struct {
	Recipient mailspine.Address
	Scope     Scope
	Message   mailspine.MsgID // as in Opened
	Complaint *Complaint
	// Repeated says that the recipient was suppressed for this stream before.
	Repeated bool
}

// BounceInfo describes a bounce that suppresses its recipient.
type BounceInfo struct {
	Recipient mailspine.Address
	Scope     Scope
	Message   mailspine.MsgID
	Status    *mailspine.Error
	Repeated  bool // as in ComplaintInfo
}

// ReviewInfo describes a report that changed nothing.
type ReviewInfo struct {
	Envelope *mailspine.Envelope // as it went to Review
	Reason   string
}

// ForwardInfo describes what was passed on to an original sender.
type ForwardInfo struct {
	Envelope *mailspine.Envelope // as it went to Forward
	Scope    Scope
}

func (in *Intake) trace() *Trace {
	if in.Trace != nil {
		return in.Trace
	}
	return &Trace{}
}

func (in *Intake) logger() *slog.Logger {
	if in.Logger != nil {
		return in.Logger
	}
	return slog.Default()
}

func (in *Intake) now() time.Time {
	if in.Now != nil {
		return in.Now()
	}
	return time.Now()
}

// Validate says which field is missing.
func (in *Intake) Validate() error {
	switch {
	case in.Tokens == nil:
		return errors.New("fbl: Intake.Tokens is nil")
	case in.Suppress == nil:
		return errors.New("fbl: Intake.Suppress is nil")
	case in.Review == nil:
		return errors.New("fbl: Intake.Review is nil: what is not believed would be lost")
	}
	return in.Tokens.Validate()
}

func unknown(err error) error {
	return mailspine.Errorf(550, "5.1.1", "No such user here").WithCause(err)
}

// feedback reports whether an address is one of the feedback addresses.
func (in *Intake) feedback(a mailspine.Address) bool {
	n := normal(a)
	return slices.ContainsFunc(in.Addresses, func(b mailspine.Address) bool { return normal(b) == n })
}

// CheckRecipient takes the feedback addresses, and the return paths that we sealed.
func (in *Intake) CheckRecipient(ctx context.Context, _ *mailspine.Envelope, rcpt mailspine.Recipient) error {
	if err := in.Validate(); err != nil {
		return err
	}
	if in.feedback(rcpt.Address) {
		return nil
	}
	_, ok, err := in.Tokens.OpenPath(ctx, rcpt.Address)
	if !ok || worthless(err) != "" {
		return unknown(err)
	}
	return err
}

// worthless says what is wrong with a token that does not open; "" is for nil, and for errors that
// are temporary.
func worthless(err error) string {
	switch {
	case errors.Is(err, ErrForged):
		return "its token is forged or damaged"
	case errors.Is(err, ErrExpired):
		return "its token is too old"
	case errors.Is(err, ErrNoScope):
		return "the scope of its token is not known"
	}
	return ""
}

// retry makes an error of a part of ours temporary: 451 4.3.0, whatever it is itself.
func retry(what string, err error) error {
	return mailspine.Errorf(451, "4.3.0", "Local error in processing").WithCause(fmt.Errorf("fbl: %s: %w", what, err))
}

// Deliver deals with a report, for each of the recipients. What comes to a return path that does not open any more, as when a
// key was changed while the report was in a queue, goes to Review.
func (in *Intake) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if err := in.Validate(); err != nil {
		return err
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	for i, r := range env.Recipients {
		if in.feedback(r.Address) {
			errs[i] = in.complaint(ctx, env, i, msg)
			continue
		}
		o, ok, err := in.Tokens.OpenPath(ctx, r.Address)
		switch why := worthless(err); {
		case !ok:
			errs[i] = unknown(nil)
		case why != "":
			errs[i] = in.review(ctx, env, i, msg, "it came to a return path: "+why)
		case err != nil:
			errs[i] = retry("open a return path", err)
		default:
			errs[i] = in.bounce(ctx, env, i, msg, o)
		}
	}
	return errs.Err()
}

// complaint believes a report, or has it reviewed.
func (in *Intake) complaint(ctx context.Context, env *mailspine.Envelope, i int, msg mailspine.Content) error {
	c, err := Parse(ctx, msg)
	if errors.Is(err, ErrNotFeedback) {
		return in.review(ctx, env, i, msg, "it is not a feedback report")
	}
	if err != nil {
		return fmt.Errorf("fbl: read a report: %w", err)
	}
	switch c.Type {
	case TypeAbuse, TypeFraud, TypeVirus, TypeOptOut:
	default:
		return in.review(ctx, env, i, msg, "its Feedback-Type is "+c.Type)
	}
	who, why := reporter(env.Verdict)
	if why != "" {
		return in.review(ctx, env, i, msg, why)
	}
	o, rcpt, why, err := in.find(ctx, c)
	if err != nil {
		return err
	}
	if o == nil {
		return in.review(ctx, env, i, msg, why)
	}
	e := suppress.Entry{
		Key:      suppress.Key{Tenant: o.Scope.Tenant, Stream: o.Scope.Stream, Address: rcpt},
		Reason:   suppress.Complaint,
		Evidence: fmt.Sprintf("report %s from %s (%s), feedback type %s, about message %s", env.ID, env.From.Path(), who, c.Type, o.Message),
		Time:     in.now(),
	}
	repeated, err := in.suppress(ctx, e)
	if err != nil {
		return err
	}
	in.logger().InfoContext(ctx, "complaint", "id", env.ID, "from", env.From.String(), "reporter", who, "recipient", rcpt.String(),
		"tenant", o.Scope.Tenant, "stream", o.Scope.Stream, "message", o.Message, "type", c.Type, "repeated", repeated)
	if !repeated {
		in.outcome(ctx, o, mailspine.Outcome{Event: mailspine.EventComplained, Recipient: rcpt})
	}
	if f := in.trace().Complaint; f != nil {
		f(ctx, ComplaintInfo{Recipient: rcpt, Scope: o.Scope, Message: o.Message, Complaint: c, Repeated: repeated})
	}
	return nil
}

// reporter returns who vouches for a report, or why nobody does.
func reporter(v *mailspine.Verdict) (who, why string) {
	switch {
	case v == nil || v.DKIM != "pass" && v.SPF != "pass":
		return "", "the reporter passes neither DKIM nor SPF"
	case v.Disposition == "quarantine" || v.Disposition == "reject":
		// It passes for one domain, and claims to come from another, which disowns it.
		return "", "the reporter's domain disowns it (DMARC)"
	case v.DKIM == "pass" && len(v.DKIMDomains) > 0:
		return "dkim=" + v.DKIMDomains[0], ""
	case v.DKIM == "pass":
		return "dkim", ""
	}
	return "spf=" + v.SPFDomain, ""
}

// suppress adds an entry, and reports whether there was one of the same key.
func (in *Intake) suppress(ctx context.Context, e suppress.Entry) (repeated bool, err error) {
	in.adding.Lock()
	defer in.adding.Unlock()
	old, err := in.Suppress.Check(ctx, e.Key)
	if err == nil {
		err = in.Suppress.Add(ctx, e)
	}
	if err != nil {
		return false, retry("suppress", err)
	}
	// Check finds wider entries too. Those are not about this.
	return old != nil && old.Tenant == e.Tenant && old.Stream == e.Stream, nil
}

func (in *Intake) outcome(ctx context.Context, o *Opened, out mailspine.Outcome) {
	if in.Outcomes == nil {
		return
	}
	out.Time, out.ID, out.From = in.now(), o.Message, o.Scope.Sender
	out.Tenant, out.Stream = o.Scope.Tenant, o.Scope.Stream
	in.Outcomes.Record(ctx, out)
}

// find looks for a token of ours in a report, and for the recipient that it was made for; why says what is
// missing. The error is temporary.
func (in *Intake) find(ctx context.Context, c *Complaint) (o *Opened, rcpt mailspine.Address, why string, err error) {
	head := c.header()
	tokens := slices.Clone(head.Values(Header))
	for _, path := range append(head.Values("Return-Path"), c.OriginalMailFrom) {
		a, err := mailspine.ParseAddress(strings.Trim(strings.TrimSpace(path), "<>"))
		if err != nil {
			continue
		}
		if t, ok := in.Tokens.split(a); ok {
			tokens = append(tokens, t)
		}
	}
	if len(tokens) == 0 {
		return nil, rcpt, "it has no token of ours", nil
	}
	candidates := slices.Clone(c.Recipients)
	for _, name := range []string{"Delivered-To", "X-Original-To", "To", "Cc"} {
		for _, v := range head.Values(name) {
			list, err := mail.ParseAddressList(v)
			if err != nil {
				continue
			}
			for _, m := range list {
				if a, err := mailspine.ParseAddress(m.Address); err == nil && !a.IsZero() {
					candidates = append(candidates, a)
				}
			}
		}
	}
	candidates = candidates[:min(len(candidates), maxCandidates)]
	for _, t := range tokens[:min(len(tokens), maxTokens)] {
		o, err := in.Tokens.OpenToken(ctx, strings.TrimSpace(t))
		if bad := worthless(err); bad != "" {
			why = bad
			continue
		}
		if err != nil {
			return nil, rcpt, "", retry("open a token", err)
		}
		for _, a := range candidates {
			if o.For(a) {
				return o, a, "", nil
			}
		}
		why = "its token was made for none of the recipients that it names"
	}
	return nil, rcpt, why, nil
}

// review hands a report to a person.
func (in *Intake) review(ctx context.Context, env *mailspine.Envelope, i int, msg mailspine.Content, why string) error {
	sub := env.Subset([]int{i})
	if !in.ReviewTo.IsZero() {
		sub.Recipients[0].Address = in.ReviewTo
	}
	sub.Recipients[0].Notify = mailspine.NotifyNever // a forged sender must not hear of what becomes of it
	sub.ID = sub.PartID()
	msg, err := in.edit(ctx, msg, why)
	if err != nil {
		return err
	}
	if err := mailspine.ErrorAt(in.Review.Deliver(mailspine.WithSubset(ctx, []int{i}), sub, msg), 0); err != nil {
		return retry("review", err)
	}
	in.logger().WarnContext(ctx, "feedback changes nothing and waits for review", "id", env.ID, "from", env.From.String(), "reason", why)
	if f := in.trace().Reviewed; f != nil {
		f(ctx, ReviewInfo{Envelope: sub, Reason: why})
	}
	return nil
}

// edit puts the reason before a message, and drops what claims to be one.
func (in *Intake) edit(ctx context.Context, msg mailspine.Content, why string) (mailspine.Content, error) {
	field := []byte(ReviewHeader + ": " + clean(why) + "\r\n")
	edited, err := mailspine.Edit(ctx, msg, mailspine.HeaderEdit{
		Drop:    func(f mailspine.HeaderField) bool { return f.Is(ReviewHeader) },
		Prepend: field,
	})
	if errors.Is(err, mailspine.ErrHeaderTooLarge) {
		return mailspine.Prepend(msg, field), nil
	}
	if err != nil {
		return nil, fmt.Errorf("fbl: read a report: %w", err)
	}
	return edited, nil
}

// clean makes a header value of text that may have come from strangers.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 200)]
}

// bounce learns from a notification to a sealed return path, and passes it on.
func (in *Intake) bounce(ctx context.Context, env *mailspine.Envelope, i int, msg mailspine.Content, o *Opened) error {
	rep, err := parse(ctx, msg)
	if err != nil && !errors.Is(err, report.ErrNotReport) {
		return fmt.Errorf("fbl: read a bounce: %w", err)
	}
	counts := false
	if err == nil && rep.Delivery != nil {
		for _, r := range rep.Delivery.Recipients {
			rcpt, ok := failed(&r, o)
			if !ok {
				continue
			}
			status := &mailspine.Error{Code: 550, Enhanced: code(&r), Message: clean(r.Diagnostic.Value)}
			if err := in.bounced(ctx, env, o, rcpt, status); err != nil {
				return err
			}
			counts = true
			break // the path was made for one recipient
		}
	}
	switch {
	case in.Forward != nil && !o.Scope.Sender.IsZero():
		err := in.forward(ctx, env, i, msg, o)
		if s := mailspine.Status(err); s != nil && !s.Temporary() {
			// The sender is gone, or takes no mail.
			return in.review(ctx, env, i, msg, "it cannot be passed on: "+s.Reply())
		}
		return err
	case counts:
		return nil
	}
	return in.review(ctx, env, i, msg, "it came to a return path and is not a bounce that counts")
}

// failed reports whether a group of a notification says that the recipient of the return path failed for
// good, on the recipient's side.
func failed(r *report.Recipient, o *Opened) (mailspine.Address, bool) {
	if r.Action != report.Failed || !suppress.Hard(&mailspine.Error{Code: 550, Enhanced: code(r)}) {
		return mailspine.Address{}, false
	}
	for _, t := range []report.Typed{r.Original, r.Final} {
		a, err := mailspine.ParseAddress(t.Value)
		if err == nil && !a.IsZero() && o.For(a) {
			return a, true
		}
	}
	return mailspine.Address{}, false
}

// code returns the enhanced code of a failure. Where Status says nothing (5.0.0, or none), and the diagnostic is a
// reply that begins with one ("550 5.1.1 ..."), it is that.
func code(r *report.Recipient) mailspine.EnhancedCode {
	if r.Status[0] == 4 || r.Status[1] != 0 || r.Status[2] != 0 || r.Diagnostic.Type != "smtp" || len(r.Diagnostic.Value) < 5 || r.Diagnostic.Value[0] != '5' {
		return r.Status
	}
	word, _, _ := strings.Cut(r.Diagnostic.Value[4:], " ") // after "550 " or "550-"
	if c, err := mailspine.ParseEnhancedCode(word); err == nil && c[0] == 5 {
		return c
	}
	return r.Status
}

func (in *Intake) bounced(ctx context.Context, env *mailspine.Envelope, o *Opened, rcpt mailspine.Address, status *mailspine.Error) error {
	now := in.now()
	e := suppress.Entry{
		Key:      suppress.Key{Tenant: o.Scope.Tenant, Stream: o.Scope.Stream, Address: rcpt},
		Reason:   suppress.HardBounce,
		Evidence: fmt.Sprintf("notification %s about message %s: %s", env.ID, o.Message, status.Reply()),
		Time:     now,
	}
	if in.BounceFor > 0 {
		e.Expires = now.Add(in.BounceFor)
	}
	repeated, err := in.suppress(ctx, e)
	if err != nil {
		return err
	}
	in.logger().InfoContext(ctx, "bounce", "id", env.ID, "recipient", rcpt.String(), "tenant", o.Scope.Tenant, "stream", o.Scope.Stream,
		"message", o.Message, "status", status.Enhanced.String(), "repeated", repeated)
	if !repeated {
		in.outcome(ctx, o, mailspine.Outcome{Event: mailspine.EventBounced, Recipient: rcpt, Status: status, Cause: cause(status.Enhanced)})
	}
	if f := in.trace().Bounce; f != nil {
		f(ctx, BounceInfo{Recipient: rcpt, Scope: o.Scope, Message: o.Message, Status: status, Repeated: repeated})
	}
	return nil
}

// cause returns what a code of a hard bounce (see suppress.Hard) stands for.
func cause(c mailspine.EnhancedCode) mailspine.Cause {
	switch [2]int{c[1], c[2]} {
	case [2]int{1, 2}, [2]int{1, 10}:
		return mailspine.CauseDomainBad
	case [2]int{1, 6}:
		return mailspine.CauseMoved
	case [2]int{2, 1}:
		return mailspine.CauseInactive
	}
	return mailspine.CauseRecipientUnknown
}

// forward passes a message on to the original sender. It has the null reverse-path, so that it never comes back.
func (in *Intake) forward(ctx context.Context, env *mailspine.Envelope, i int, msg mailspine.Content, o *Opened) error {
	sub := env.Subset([]int{i})
	sub.From = mailspine.Address{}
	sub.Recipients[0] = mailspine.Recipient{Address: o.Scope.Sender, Notify: mailspine.NotifyNever}
	sub.Tenant, sub.Stream, sub.EnvID = o.Scope.Tenant, o.Scope.Stream, "" // the Verdict stays: it is about the message
	sub.ID = sub.PartID()
	if err := mailspine.ErrorAt(in.Forward.Deliver(mailspine.WithSubset(ctx, []int{i}), sub, msg), 0); err != nil {
		return fmt.Errorf("fbl: pass on a bounce: %w", err)
	}
	if f := in.trace().Forwarded; f != nil {
		f(ctx, ForwardInfo{Envelope: sub, Scope: o.Scope})
	}
	return nil
}
