package imap

import (
	"errors"
	"io"
	"reflect"
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

// The bounds of LIST: each mailbox is compared with each pattern, in as many steps as the lengths of the two
// multiply to.
const (
	maxPatterns = 20
	maxPattern  = 1000
)

// List lists mailboxes (RFC 5258).
func (x *session) List(w *imapserver.ListWriter, ref string, patterns []string, o *imap.ListOptions) error {
	defer x.conn.work()()
	if len(patterns) == 0 { // RFC 9051 section 6.3.9: what the separator is
		return w.WriteList(&imap.ListData{Attrs: []imap.MailboxAttr{imap.MailboxAttrNoSelect}, Delim: delim})
	}
	if len(patterns) > maxPatterns || slices.ContainsFunc(patterns, func(p string) bool { return len(ref)+len(p) > maxPattern }) {
		return no(imap.ResponseCodeLimit, "Too many patterns, or one that is too long")
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
	// What is below a name, for all of them in one pass.
	hasMailbox, hasSubscribed := map[string]bool{}, map[string]bool{}
	for _, m := range infos {
		for _, up := range mailbox.Above(m.Name) {
			hasMailbox[up] = hasMailbox[up] || !m.NonExistent
			hasSubscribed[up] = hasSubscribed[up] || m.Subscribed
		}
	}
	if ref != "" && !strings.HasSuffix(ref, mailbox.Separator) {
		ref += mailbox.Separator
	}
	levels := isLSub(w) && strings.Contains(patterns[0], "%")
	for _, m := range infos {
		if err := x.ctx.Err(); err != nil {
			return x.fail(err)
		}
		if !slices.ContainsFunc(patterns, func(p string) bool { return match(m.Name, ref, p) }) {
			continue
		}
		subscribedBelow := o.SelectRecursiveMatch && hasSubscribed[m.Name]
		existsBelow := hasMailbox[m.Name]
		if levels && !m.Subscribed && hasSubscribed[m.Name] {
			if err := w.WriteList(&imap.ListData{Mailbox: m.Name, Delim: delim, Attrs: []imap.MailboxAttr{imap.MailboxAttrNoSelect}}); err != nil {
				return err
			}
			continue
		}
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

// isLSub reports whether it is LSUB that lists. With % that has to name what is above a subscribed mailbox, too (RFC 3501 section 6.3.9),
// but the engine's options are those of LIST (SUBSCRIBED); only its writer knows.
func isLSub(w *imapserver.ListWriter) bool {
	f := reflect.ValueOf(w).Elem().FieldByName("lsub")
	return f.Kind() == reflect.Bool && f.Bool()
}

// match reports whether a name is what LIST asks for: "*" is any text, "%" any without a separator. It takes steps as
// many as the lengths of name and pattern multiply to; imapserver.MatchList takes exponentially many.
func match(name, ref, pattern string) bool {
	if p, ok := strings.CutPrefix(pattern, mailbox.Separator); ok { // an absolute name
		ref, pattern = "", p
	}
	pattern = ref + pattern
	if len(pattern) >= len(mailbox.Inbox) && strings.EqualFold(pattern[:len(mailbox.Inbox)], mailbox.Inbox) {
		pattern = mailbox.Inbox + pattern[len(mailbox.Inbox):] // in any case (RFC 9051 section 5.1)
	}
	// at has, for each length of name, whether the pattern so far matches so much of it.
	at := make([]bool, len(name)+1)
	at[0] = true
	for _, c := range []byte(pattern) {
		switch c {
		case '*', '%':
			for i := 1; i <= len(name); i++ {
				at[i] = at[i] || at[i-1] && (c == '*' || name[i-1] != delim)
			}
		default:
			for i := len(name); i > 0; i-- {
				at[i] = at[i-1] && name[i-1] == c
			}
			at[0] = false
		}
	}
	return at[len(name)]
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
	src := &clientReader{r: r}
	n, err := io.Copy(stage, src)
	if src.err != nil || err == nil && n != r.Size() {
		return nil, no(imap.ResponseCodeUnavailable, "The message did not come whole")
	}
	if err != nil {
		return nil, x.fail(err)
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

// A clientReader remembers an error of the client, to tell it from one of the store.
type clientReader struct {
	r   io.Reader
	err error
}

func (c *clientReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
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
