package mda

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A FormatPolicy says in which form a mailbox wants its messages. Package
// mda/convert has one. It is safe for concurrent use.
//
// Format is asked once for each mailbox that gets a message: dest is the account, and
// the name of the mailbox as the message is filed there, after detail and verdict had their say. msg is the message as
// the mailbox would get it, valid until Format returns. The zero [Format] wants it as it
// is. An error means that it could not be found out: the delivery
// fails as mailspine.Status says, which is temporarily unless it is a *mailspine.Error.
type FormatPolicy interface {
	Format(ctx context.Context, dest Destination, env *mailspine.Envelope, msg mailspine.Content) (Format, error)
}

// The FormatPolicyFunc type makes a FormatPolicy of a function.
type FormatPolicyFunc func(ctx context.Context, dest Destination, env *mailspine.Envelope, msg mailspine.Content) (Format, error)

// Format calls f.
func (f FormatPolicyFunc) Format(ctx context.Context, dest Destination, env *mailspine.Envelope, msg mailspine.Content) (Format, error) {
	return f(ctx, dest, env, msg)
}

// A Format is a form of messages, made by a conversion. The zero value is no conversion.
type Format struct {
	// Name names the form, in at most 64 octets; "": as it is. Formats of one name are the same conversion: the
	// Agent converts a message once for all recipients. It is part of the
	// DeliverOptions.ID, so that a repeated delivery finds what it filed.
	Name string
	// Originals is the mailbox that gets the original, made if it is missing; "": "Originals".
	// A mailbox that is its own Originals gets the original alone.
	Originals string
	// Convert writes the derived message to w, and says whether there is one: when it is false,
	// nothing was written, and the original is filed alone. After an error, whatever was
	// written, the original is filed in the place of the derived message as well. The same message must give
	// the same result. nil: as it is.
	//
	// It is given the message without the Return-Path and Delivered-To of the
	// recipient, which are put before what it writes; with them if they are not ASCII, since
	// they may then have to be converted, too.
	Convert func(ctx context.Context, w io.Writer, msg mailspine.Content) (changed bool, err error)
}

const (
	defaultOriginals = "Originals"
	maxFormats       = 16 // derived messages kept while a message is delivered
	maxFormatName    = 64
)

// A made is a derived message. content is nil when there is none.
type made struct {
	once    sync.Once
	content mailspine.Content
	stage   mailspine.Stage
	err     error
}

func (m *made) close() {
	if m.stage != nil {
		m.stage.Close()
	}
}

// conversions are the derived messages of one message, shared by its recipients.
type conversions struct {
	msg mailspine.Content // without trace fields of recipients

	mu    sync.Mutex
	forms map[string]*made
}

// close gives back all derived messages, once nobody uses them.
func (c *conversions) close() {
	for _, m := range c.forms {
		m.close()
	}
}

// derive returns the derived message with the trace fields of a recipient, or nil if there is none. release
// must be called when it is not used any more.
func (a *Agent) derive(ctx context.Context, c *conversions, f Format, trace []byte) (derived mailspine.Content, release func(), err error) {
	release = func() {}
	if !ascii(trace) {
		m := &made{}
		a.convert(ctx, m, f, mailspine.Prepend(c.msg, trace))
		return m.content, m.close, m.err
	}
	c.mu.Lock()
	m := c.forms[f.Name]
	if m == nil {
		m = &made{}
		if len(c.forms) < maxFormats {
			if c.forms == nil {
				c.forms = map[string]*made{}
			}
			c.forms[f.Name] = m
		} else {
			release = m.close
		}
	}
	c.mu.Unlock()
	m.once.Do(func() { a.convert(ctx, m, f, c.msg) })
	if m.err != nil || m.content == nil {
		return nil, release, m.err
	}
	return mailspine.Prepend(m.content, trace), release, nil
}

// convert fills in m.
func (a *Agent) convert(ctx context.Context, m *made, f Format, msg mailspine.Content) {
	stager := a.Stager
	if stager == nil {
		stager = &mailspine.SpoolStager{}
	}
	if m.stage, m.err = stager.Stage(ctx, msg.Size()); m.err != nil {
		return
	}
	changed, err := f.Convert(ctx, m.stage, msg)
	if err == nil && changed {
		m.content, err = m.stage.Content()
	}
	if m.err = err; err != nil {
		m.content = nil
	}
}

func ascii(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 }) }

// A form is a Format, and the mailboxes of an account that want it.
type form struct {
	Format
	mailboxes []string
}

// forms asks the policy, and returns the mailboxes that get the message as it is, and
// the forms of the others.
func (a *Agent) forms(ctx context.Context, account string, env *mailspine.Envelope, msg mailspine.Content, names []string) (plain []string, forms []form, err error) {
	if a.Formats == nil {
		return names, nil, nil
	}
	for _, name := range names { // mailbox.MaxTargets at most
		clean, err := mailbox.CleanName(name)
		if err != nil {
			return nil, nil, a.failure(err)
		}
		f, err := a.Formats.Format(ctx, Destination{Account: account, Mailbox: clean}, env, msg)
		if err != nil {
			return nil, nil, fmt.Errorf("mda: format of mailbox %q: %w", clean, err)
		}
		if f.Originals == "" {
			f.Originals = defaultOriginals
		}
		if f.Originals, err = mailbox.CleanName(f.Originals); err != nil {
			return nil, nil, a.failure(err)
		}
		if len(f.Name) > maxFormatName {
			return nil, nil, misconfigured(fmt.Errorf("mda: the name of a format has over %d octets", maxFormatName))
		}
		if f.Name == "" || f.Convert == nil || f.Originals == clean {
			plain = append(plain, name)
			continue
		}
		i := slices.IndexFunc(forms, func(g form) bool { return g.Name == f.Name && g.Originals == f.Originals })
		if i < 0 {
			i = len(forms)
			forms = append(forms, form{Format: f})
		}
		forms[i].mailboxes = append(forms[i].mailboxes, name)
	}
	return plain, forms, nil
}

// A filing is one delivery into mailboxes of an account.
type filing struct {
	msg     mailspine.Content
	options mailbox.DeliverOptions
}

// filings returns what is delivered into the mailboxes of an account, in order: the
// original where it belongs, then what was derived of it, so that at no moment there is
// only a part of the message. release must be called afterwards.
//
// The original has the ID that it would have without a policy; a form has its own. Whatever a mailbox that wants
// a form gets goes by the ID of the form, so that it gets one message, even if a conversion
// fails today and succeeds when the delivery is repeated.
func (a *Agent) filings(ctx context.Context, c *conversions, acct mailbox.Account, msg mailspine.Content, trace []byte, plain []string, forms []form, opts mailbox.DeliverOptions) (list []filing, release func(), err error) {
	var releases []func()
	release = func() {
		for _, r := range releases {
			r()
		}
	}
	originals := slices.Clone(plain) // and what nothing was to be converted for
	boxes := slices.Clone(plain)     // all that the message itself goes to, if the forms are filed
	var later []filing
	var octets, messages int64 // what it all takes
	for _, f := range forms {
		derived, done, err := a.derive(ctx, c, f.Format, trace)
		releases = append(releases, done)
		if ctx.Err() != nil {
			return nil, release, ctx.Err()
		}
		o := opts
		o.Mailboxes = f.mailboxes
		if o.ID != "" {
			o.ID += " " + f.Name
		}
		switch {
		case err != nil:
			a.logger().WarnContext(ctx, "mda: conversion failed, the original is filed", "format", f.Name, "err", err)
			derived = msg
		case derived == nil:
			originals, boxes = append(originals, f.mailboxes...), append(boxes, f.mailboxes...)
			continue
		case !slices.Contains(boxes, f.Originals):
			boxes = append(boxes, f.Originals)
		}
		octets += derived.Size() * int64(len(f.mailboxes))
		messages += int64(len(f.mailboxes))
		later = append(later, filing{derived, o})
	}
	octets += msg.Size() * int64(len(boxes))
	messages += int64(len(boxes))
	if len(boxes) > len(originals) { // for a derived message
		if len(boxes) <= mailbox.MaxTargets && affordable(ctx, acct, octets, messages) {
			originals = boxes
		} else {
			// Rather the original where its reader looks for it than a message that waits
			// until there is room for both.
			for i := range later {
				later[i].msg = msg
			}
		}
	}
	if len(originals) > 0 {
		opts.Mailboxes = originals
		list = append(list, filing{msg, opts})
	}
	return append(list, later...), release, nil
}

// affordable says whether so much fits into an account.
func affordable(ctx context.Context, acct mailbox.Account, octets, messages int64) bool {
	q, err := acct.Quota(ctx)
	if err != nil {
		return true // the delivery will tell
	}
	return (q.Limit.Bytes <= 0 || q.Bytes+octets <= q.Limit.Bytes) && (q.Limit.Messages <= 0 || q.Messages+messages <= q.Limit.Messages)
}

// deliverFiling delivers one filing. A derived message that is too big for the mailbox gives way to
// the original.
func (a *Agent) deliverFiling(ctx context.Context, acct mailbox.Account, f filing, original mailspine.Content) (mailbox.Delivered, error) {
	d, err := acct.Deliver(ctx, f.msg, f.options)
	if f.msg != original && errors.Is(err, mailbox.ErrTooBig) {
		a.logger().WarnContext(ctx, "mda: derived message is too big, the original is filed", "err", err)
		return acct.Deliver(ctx, original, f.options)
	}
	return d, err
}
