package imap

import (
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// Create makes a mailbox.
func (x *session) Create(name string, options *imap.CreateOptions) error {
	defer x.conn.work()()
	var o mailbox.CreateOptions
	for _, u := range options.SpecialUse {
		use, err := mailbox.CleanSpecialUse(mailbox.SpecialUse(u))
		if err != nil || o.SpecialUse != "" {
			return no("USEATTR", "A mailbox cannot have that use") // RFC 6154 section 3
		}
		o.SpecialUse = use
	}
	// RFC 9051 section 6.3.4: a separator at the end says that others will be made below it.
	name = strings.TrimSuffix(name, mailbox.Separator)
	return x.fail(x.account.Create(x.ctx, name, o))
}

// Delete removes a mailbox.
func (x *session) Delete(name string) error {
	defer x.conn.work()()
	return x.fail(x.account.Delete(x.ctx, name))
}

// Rename gives a mailbox another name.
func (x *session) Rename(from, to string, _ *imap.RenameOptions) error {
	defer x.conn.work()()
	return x.fail(x.account.Rename(x.ctx, from, strings.TrimSuffix(to, mailbox.Separator)))
}

// Subscribe adds a name to the subscriptions.
func (x *session) Subscribe(name string) error {
	defer x.conn.work()()
	return x.fail(x.account.SetSubscribed(x.ctx, name, true))
}

// Unsubscribe takes one away.
func (x *session) Unsubscribe(name string) error {
	defer x.conn.work()()
	return x.fail(x.account.SetSubscribed(x.ctx, name, false))
}

// maxPatterns bounds the patterns of LIST, and maxWildcards the wildcards in one, since matching backtracks.
const (
	maxPatterns  = 20
	maxWildcards = 6
)

// List lists mailboxes (RFC 5258).
func (x *session) List(w *imapserver.ListWriter, ref string, patterns []string, o *imap.ListOptions) error {
	defer x.conn.work()()
	if len(patterns) == 0 { // RFC 9051 section 6.3.9: what the separator is
		return w.WriteList(&imap.ListData{Attrs: []imap.MailboxAttr{imap.MailboxAttrNoSelect}, Delim: delim})
	}
	if len(patterns) > maxPatterns || slices.ContainsFunc(patterns, func(p string) bool {
		return strings.Count(p, "*")+strings.Count(p, "%") > maxWildcards
	}) {
		return no(imap.ResponseCodeLimit, "Too many patterns or wildcards")
	}
	infos, err := x.account.Mailboxes(x.ctx)
	if err != nil {
		return x.fail(err)
	}
	there := map[string]bool{}
	for _, m := range infos {
		there[m.Name] = true
	}
	// What is above a mailbox, and is none, is listed too when it is asked for level by level.
	for _, m := range infos {
		for _, up := range mailbox.Above(m.Name) {
			if !there[up] {
				there[up] = true
				infos = append(infos, mailbox.Info{Name: up, NonExistent: true})
			}
		}
	}
	slices.SortFunc(infos, func(a, b mailbox.Info) int {
		if (a.Name == mailbox.Inbox) != (b.Name == mailbox.Inbox) { // INBOX first
			if a.Name == mailbox.Inbox {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	below := func(name string, f func(mailbox.Info) bool) bool {
		return slices.ContainsFunc(infos, func(m mailbox.Info) bool {
			return strings.HasPrefix(m.Name, name+mailbox.Separator) && f(m)
		})
	}
	for _, m := range infos {
		if !slices.ContainsFunc(patterns, func(p string) bool { return match(m.Name, ref, p) }) {
			continue
		}
		subscribedBelow := o.SelectRecursiveMatch && below(m.Name, func(m mailbox.Info) bool { return m.Subscribed })
		existsBelow := below(m.Name, func(m mailbox.Info) bool { return !m.NonExistent })
		switch {
		case o.SelectSpecialUse && m.SpecialUse == "",
			o.SelectSubscribed && !m.Subscribed && !subscribedBelow,
			!o.SelectSubscribed && m.NonExistent && !existsBelow: // a subscription alone
			continue
		}
		d := &imap.ListData{Mailbox: m.Name, Delim: delim}
		if m.NonExistent {
			d.Attrs = append(d.Attrs, imap.MailboxAttrNonExistent, imap.MailboxAttrNoSelect)
		}
		if m.Subscribed && (o.ReturnSubscribed || o.SelectSubscribed) {
			d.Attrs = append(d.Attrs, imap.MailboxAttrSubscribed)
		}
		if existsBelow {
			d.Attrs = append(d.Attrs, imap.MailboxAttrHasChildren)
		} else if !m.NonExistent {
			d.Attrs = append(d.Attrs, imap.MailboxAttrHasNoChildren)
		}
		if m.SpecialUse != "" {
			d.Attrs = append(d.Attrs, imap.MailboxAttr(m.SpecialUse))
		}
		if subscribedBelow {
			d.ChildInfo = &imap.ListDataChildInfo{Subscribed: true}
		}
		if o.ReturnStatus != nil && !m.NonExistent {
			if d.Status, err = x.status(m, o.ReturnStatus); errors.Is(err, mailbox.ErrNoMailbox) {
				continue // it was deleted this moment
			} else if err != nil {
				return x.fail(err)
			}
		}
		if err := w.WriteList(d); err != nil {
			return err
		}
	}
	return nil
}

// match is imapserver.MatchList, with INBOX in any case.
func match(name, ref, pattern string) bool {
	if strings.EqualFold(ref+pattern, mailbox.Inbox) {
		return name == mailbox.Inbox
	}
	return imapserver.MatchList(name, delim, ref, pattern)
}

// Status tells the state of a mailbox.
func (x *session) Status(name string, o *imap.StatusOptions) (*imap.StatusData, error) {
	defer x.conn.work()()
	box, err := x.account.Open(x.ctx, name)
	if err != nil {
		return nil, x.fail(err)
	}
	info, err := box.Info(x.ctx)
	if err != nil {
		return nil, x.fail(err)
	}
	d, err := x.status(info, o)
	return d, x.fail(err)
}

func (x *session) status(m mailbox.Info, o *imap.StatusOptions) (*imap.StatusData, error) {
	d := &imap.StatusData{Mailbox: m.Name, UIDNext: imap.UID(m.UIDNext), UIDValidity: m.UIDValidity}
	number := func(n int) *uint32 { u := uint32(n); return &u }
	d.NumMessages, d.NumUnseen, d.NumDeleted, d.NumRecent = number(m.Messages), number(m.Unseen), number(m.Deleted), number(0)
	d.Size = &m.Size
	limit := x.AppendLimit()
	d.AppendLimit = &limit
	if o.DeletedStorage {
		box, err := x.account.Open(x.ctx, m.Name)
		if err != nil {
			return nil, err
		}
		snap, err := box.Snapshot(x.ctx)
		if err != nil {
			return nil, err
		}
		var n int64
		for _, msg := range snap.Messages {
			if mailbox.HasFlag(msg.Flags, mailbox.Deleted) {
				n += msg.Size
			}
		}
		d.DeletedStorage = &n
	}
	return d, nil
}

// Append files a message.
func (x *session) Append(name string, r imap.LiteralReader, o *imap.AppendOptions) (*imap.AppendData, error) {
	defer x.conn.work()()
	box, err := x.account.Open(x.ctx, name)
	if errors.Is(err, mailbox.ErrNoMailbox) {
		return nil, no(imap.ResponseCodeTryCreate, "There is no such mailbox")
	}
	if err != nil {
		return nil, x.fail(err)
	}
	flags, err := storeFlags(o.Flags)
	if err != nil {
		return nil, x.fail(err)
	}
	var stager mailspine.Stager = &mailspine.SpoolStager{}
	if x.srv.Stager != nil {
		stager = x.srv.Stager
	}
	stage, err := stager.Stage(x.ctx, r.Size())
	if err != nil {
		return nil, x.fail(err)
	}
	defer stage.Close()
	if n, err := io.Copy(stage, r); err != nil || n != r.Size() {
		return nil, x.fail(errors.Join(err, x.ctx.Err(), io.ErrUnexpectedEOF))
	}
	msg, err := stage.Content()
	if err != nil {
		return nil, x.fail(err)
	}
	c, err := box.Append(x.ctx, msg, mailbox.AppendOptions{Flags: flags, InternalDate: o.Time})
	if errors.Is(err, mailbox.ErrNoMailbox) {
		return nil, no(imap.ResponseCodeTryCreate, "There is no such mailbox")
	}
	if err != nil {
		return nil, x.fail(err)
	}
	x.srv.stats.appended.Add(1)
	return &imap.AppendData{UID: imap.UID(c.UID), UIDValidity: c.UIDValidity}, nil
}

// storeFlags makes flags of the store of a client's. \Recent cannot be set, and is left out.
func storeFlags(flags []imap.Flag) ([]mailbox.Flag, error) {
	var out []mailbox.Flag
	for _, f := range flags {
		if !strings.EqualFold(string(f), `\Recent`) {
			out = append(out, mailbox.Flag(f))
		}
	}
	return mailbox.CleanFlags(out)
}
