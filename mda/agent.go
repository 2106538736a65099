package mda

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// An Agent delivers into mailboxes. It is a mailspine.Deliverer (nil means that each
// recipient's mailbox has the message, as durably as the store promises) and
// a mailspine.RecipientChecker. The fields must not be changed once it is in
// use; it is safe for concurrent use then.
//
// Results are per recipient:
//
//   - unknown: 550 5.1.1, at RCPT and at delivery alike;
//   - over quota: 452 4.2.2, so that queues try again; at RCPT too, when
//     nothing more fits;
//   - larger than the mailbox could ever take: 552 5.2.3;
//   - delivered here before, as its Delivered-To says: 554 5.4.6;
//   - a header block over mailspine.MaxHeader: 552 5.3.4;
//   - aliases that lead nowhere, or to too many: 451 4.3.5;
//   - what the store or the directory cannot do now: what mailspine.Status makes of it,
//     and so 452 4.3.1 when the disk is full.
//
// A recipient with several destinations is taken when all of them have the
// message. Repeating a delivery after a crash or a lost result does no harm: with the same Envelope.ID,
// recipient and mailbox, the message is not delivered twice, as long as the store
// remembers the delivery (mailbox.MaxDeliveries).
type Agent struct {
	// Mailboxes is where mail goes. nil: ErrNoStore, a temporary error.
	Mailboxes mailbox.Store
	// Directory says whose mailbox an address is. nil: nobody's, so that every recipient
	// is refused.
	Directory Directory

	// Separator begins the detail of an address (RFC 5233): with "+",
	// ann+lists@example.org is ann@example.org, and the message is filed into
	// her mailbox "lists" if there is one that has no special use. An address that the
	// Directory knows as it is has no detail. "": no details.
	Separator string

	// JunkMailbox is where messages go whose Verdict says "quarantine": "" means
	// "Junk". It is made if it is missing, with the special use \Junk; a mailbox that has
	// that use already is preferred. The messages get the keyword $Junk.
	JunkMailbox string
	// IgnoreVerdict delivers such messages like all others.
	IgnoreVerdict bool

	// Formats says in which form a mailbox wants its messages; nil: all as they are. Where it
	// wants another one, the original is filed first, exactly as it would be without a
	// policy, but into another mailbox (Format.Originals), and then the derived message. When there is no
	// derived message, because there is nothing to convert or the conversion failed, or
	// no room for both, the original is filed where the derived one would be.
	Formats FormatPolicy
	// Stager is where derived messages are made; nil: a mailspine.SpoolStager.
	Stager mailspine.Stager

	// MaxDestinations bounds the mailboxes that one recipient expands to; 0: 100.
	MaxDestinations int
	// Concurrency is how many recipients of a message are delivered to at the same
	// time; 0: 8.
	Concurrency int

	Logger *slog.Logger // nil: slog.Default()
}

var (
	_ mailspine.Deliverer        = (*Agent)(nil)
	_ mailspine.RecipientChecker = (*Agent)(nil)
)

// ErrNoStore is returned by an [Agent] without Mailboxes.
var ErrNoStore = errors.New("mda: Agent.Mailboxes is nil")

const (
	defaultJunk            = "Junk"
	defaultMaxDestinations = 100
	defaultConcurrency     = 8
	maxAliasDepth          = 10 // how long a chain of aliases may be
)

// CheckRecipient says whether there is a mailbox for a recipient, and room in it.
func (a *Agent) CheckRecipient(ctx context.Context, _ *mailspine.Envelope, rcpt mailspine.Recipient) error {
	dests, _, err := a.resolve(ctx, rcpt.Address)
	if err != nil {
		return err
	}
	if a.Mailboxes == nil {
		return ErrNoStore
	}
	for _, d := range dests {
		acct, err := a.Mailboxes.Account(ctx, d.Account)
		if err != nil {
			return a.failure(err)
		}
		q, err := acct.Quota(ctx)
		if err != nil {
			return a.failure(err)
		}
		if q.Limit.Bytes > 0 && q.Bytes >= q.Limit.Bytes || q.Limit.Messages > 0 && q.Messages >= q.Limit.Messages {
			return a.failure(mailbox.ErrOverQuota)
		}
	}
	return nil
}

// Deliver puts the message into the mailboxes of its recipients.
func (a *Agent) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if a.Mailboxes == nil {
		return ErrNoStore
	}
	if err := env.Validate(); err != nil {
		return err // it goes into header fields
	}
	head, err := mailspine.ReadHeader(ctx, msg, 0)
	if errors.Is(err, mailspine.ErrHeaderTooLarge) {
		return mailspine.Errorf(552, "5.3.4", "The header of the message is too large").WithCause(err)
	}
	if err != nil {
		return err
	}
	// RFC 5321 section 4.4: the server that makes the final delivery adds Return-Path and
	// may remove what claims to be one.
	if len(head.Values("Return-Path")) > 0 { // empty ones too
		msg, err = mailspine.Edit(ctx, msg, mailspine.HeaderEdit{
			Drop: func(f mailspine.HeaderField) bool { return f.Is("Return-Path") },
		})
		if err != nil {
			return err
		}
	}
	been := map[string]bool{} // the addresses it was delivered to
	for _, v := range head.Values("Delivered-To") {
		been[asciiLower(v)] = true
	}

	res := make(mailspine.RecipientErrors, len(env.Recipients))
	workers := a.Concurrency
	if workers <= 0 {
		workers = defaultConcurrency
	}
	conv := &conversions{msg: msg}
	defer conv.close()
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(workers, len(res)) {
		wg.Go(func() {
			for i := range next {
				res[i] = a.deliver(ctx, env, i, conv, been)
			}
		})
	}
	for i := range res {
		next <- i
	}
	close(next)
	wg.Wait()
	return res.Err()
}

// deliver delivers to one recipient.
func (a *Agent) deliver(ctx context.Context, env *mailspine.Envelope, i int, conv *conversions, been map[string]bool) error {
	rcpt := env.Recipients[i].Address
	dests, detail, err := a.resolve(ctx, rcpt)
	if err != nil {
		return err
	}
	if been[asciiLower(rcpt.String())] {
		return mailspine.Errorf(554, "5.4.6", "The message has been delivered to this address before: a loop")
	}
	trace := []byte("Return-Path: " + env.From.Path() + "\r\nDelivered-To: " + rcpt.String() + "\r\n")
	id := ""
	if env.ID != "" {
		id = string(env.ID) + " " + rcpt.String()
	}
	var errs mailspine.RecipientErrors
	for _, acct := range accounts(dests) {
		errs = append(errs, a.file(ctx, acct, detail, mailbox.DeliverOptions{Create: true, ID: id}, env, conv, trace))
	}
	if err := errs.Err(); err != nil {
		if len(errs) == 1 {
			return errs[0]
		}
		return mailspine.Status(err) // the worst of the destinations
	}
	mailspine.AttemptFrom(ctx).Record(i, mailspine.Receipt{Reply: "250 2.1.5 Delivered to the mailbox"})
	return nil
}

// An accountTarget is the mailboxes of one account.
type accountTarget struct {
	account   string
	mailboxes []string
}

// accounts groups destinations by account, in their order.
func accounts(dests []Destination) []accountTarget {
	var out []accountTarget
	at := map[string]int{}
	for _, d := range dests {
		i, ok := at[d.Account]
		if !ok {
			i = len(out)
			at[d.Account] = i
			out = append(out, accountTarget{account: d.Account})
		}
		name := d.Mailbox
		if name == "" {
			name = mailbox.Inbox
		}
		out[i].mailboxes = append(out[i].mailboxes, name)
	}
	return out
}

// file delivers to one account.
func (a *Agent) file(ctx context.Context, t accountTarget, detail string, opts mailbox.DeliverOptions, env *mailspine.Envelope, conv *conversions, trace []byte) error {
	acct, err := a.Mailboxes.Account(ctx, t.account)
	if err != nil {
		return a.failure(err)
	}
	if len(t.mailboxes) > mailbox.MaxTargets {
		return misconfigured(fmt.Errorf("mda: over %d mailboxes of account %q for one address", mailbox.MaxTargets, t.account))
	}
	opts.Mailboxes = t.mailboxes
	switch {
	case env.Verdict != nil && env.Verdict.Disposition == "quarantine" && !a.IgnoreVerdict:
		junk, err := a.junk(ctx, acct)
		if err != nil {
			return a.failure(err)
		}
		opts.Mailboxes, opts.Flags = []string{junk}, []mailbox.Flag{mailbox.Junk}
	case detail != "":
		if m, err := acct.Open(ctx, detail); err == nil {
			if info, err := m.Info(ctx); err == nil && info.SpecialUse == mailbox.UseNone {
				opts.Mailboxes = []string{info.Name}
			}
		}
	}
	msg := mailspine.Prepend(conv.msg, trace)
	plain, forms, err := a.forms(ctx, t.account, env, msg, opts.Mailboxes)
	if err != nil {
		return err
	}
	list, release, err := a.filings(ctx, conv, acct, msg, trace, plain, forms, opts)
	defer release()
	if err != nil {
		return a.failure(err)
	}
	for _, f := range list {
		d, err := a.deliverFiling(ctx, acct, f, msg)
		if err != nil {
			return a.failure(err)
		}
		for _, c := range d.Copies {
			a.logger().DebugContext(ctx, "mda: delivered", "account", t.account, "mailbox", c.Mailbox, "uid", c.UID, "repeated", c.Repeated)
		}
	}
	return nil
}

// junk returns the name of the junk mailbox of an account, which it makes if there is none.
func (a *Agent) junk(ctx context.Context, acct mailbox.Account) (string, error) {
	list, err := acct.Mailboxes(ctx)
	if err != nil {
		return "", err
	}
	for _, i := range list {
		if i.SpecialUse == mailbox.UseJunk {
			return i.Name, nil
		}
	}
	name := a.JunkMailbox
	if name == "" {
		name = defaultJunk
	}
	err = acct.Create(ctx, name, mailbox.CreateOptions{SpecialUse: mailbox.UseJunk})
	if errors.Is(err, mailbox.ErrExists) {
		err = nil // one without the use, or another delivery was faster
	}
	return name, err
}

// resolve returns the mailboxes of an address, and its detail.
func (a *Agent) resolve(ctx context.Context, addr mailspine.Address) (dests []Destination, detail string, err error) {
	if a.Directory == nil {
		return nil, "", noUser(nil)
	}
	first, detail, err := a.lookup(ctx, addr)
	if err != nil {
		return nil, "", err
	}
	max := a.MaxDestinations
	if max <= 0 {
		max = defaultMaxDestinations
	}
	seen := map[mailspine.Address]bool{addr: true}
	type level struct {
		list  []Destination
		depth int
	}
	for queue := []level{{first, 0}}; len(queue) > 0; { // bounded by max and maxAliasDepth
		l := queue[0]
		queue = queue[1:]
		for _, d := range l.list {
			if d.Alias.IsZero() {
				dests = append(dests, d)
			} else if !seen[d.Alias] {
				seen[d.Alias] = true
				if l.depth == maxAliasDepth || len(seen) > max {
					return nil, "", misconfigured(fmt.Errorf("mda: aliases of %s are nested too deeply, or too many", addr))
				}
				next, _, err := a.lookup(ctx, d.Alias)
				if errors.Is(err, ErrNoUser) {
					return nil, "", misconfigured(fmt.Errorf("mda: alias %s of %s leads nowhere", d.Alias, addr))
				}
				if err != nil {
					return nil, "", err
				}
				queue = append(queue, level{next, l.depth + 1})
			}
			if len(dests) > max {
				return nil, "", misconfigured(fmt.Errorf("mda: %s has over %d destinations", addr, max))
			}
		}
	}
	if len(dests) == 0 {
		return nil, "", misconfigured(fmt.Errorf("mda: aliases of %s lead back to it", addr))
	}
	return dests, detail, nil
}

// lookup asks the directory for an address as it is, and then without its detail.
func (a *Agent) lookup(ctx context.Context, addr mailspine.Address) ([]Destination, string, error) {
	dests, err := a.Directory.Lookup(ctx, addr)
	if err == nil && len(dests) > 0 {
		return dests, "", nil
	}
	if err != nil && !errors.Is(err, ErrNoUser) {
		return nil, "", err
	}
	if a.Separator != "" {
		user, detail, ok := strings.Cut(addr.Local, a.Separator)
		if ok && user != "" {
			dests, err = a.Directory.Lookup(ctx, mailspine.Address{Local: user, Domain: addr.Domain})
			if err == nil && len(dests) > 0 {
				return dests, detail, nil
			}
			if err != nil && !errors.Is(err, ErrNoUser) {
				return nil, "", err
			}
		}
	}
	return nil, "", noUser(err)
}

func noUser(err error) error {
	if err == nil {
		err = ErrNoUser
	}
	return mailspine.Errorf(550, "5.1.1", "No such user here").WithCause(err)
}

func misconfigured(err error) error {
	return mailspine.Errorf(451, "4.3.5", "The address is not configured correctly here").WithCause(err)
}

// failure gives the errors of the store their status.
func (a *Agent) failure(err error) error {
	switch {
	case errors.Is(err, mailbox.ErrOverQuota), errors.Is(err, mailbox.ErrLimit):
		return mailspine.Errorf(452, "4.2.2", "The mailbox is full").WithCause(err)
	case errors.Is(err, mailbox.ErrTooBig):
		return mailspine.Errorf(552, "5.2.3", "The message is larger than the mailbox takes").WithCause(err)
	case errors.Is(err, mailbox.ErrBadName):
		return misconfigured(err)
	}
	return fmt.Errorf("mda: %w", err)
}

func (a *Agent) logger() *slog.Logger {
	if a.Logger != nil {
		return a.Logger
	}
	return slog.Default()
}
