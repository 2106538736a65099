package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

const (
	maxShownHeader = 64 << 10 // octets of a header that are shown
	maxShownBody   = 64 << 20 // octets of a message in JSON
)

func showFlags(t *queueTool, fs *flag.FlagSet) {
	fs.BoolVar(&t.body, "body", false, "show the whole message")
	fs.BoolVar(&t.raw, "raw", false, "write the message as it is, and nothing else; not to a terminal")
}

func showCheck(t *queueTool) error {
	switch {
	case t.id == "":
		return errors.New("the message ID is missing")
	case t.raw && (t.body || t.json):
		return errors.New("-raw excludes -body and -json")
	case t.raw && isTerminal(t.stdout):
		return errors.New("-raw: a message can drive a terminal; write it to a file")
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// show shows one message.
func show(ctx context.Context, t *queueTool) int {
	v, err := t.look(ctx)
	if err != nil {
		return t.failed(err)
	}
	defer v.close()
	id := mailspine.MsgID(t.id)
	var items []queue.Item // as many as the message has routes
	for it, err := range v.List(ctx, queue.Filter{ID: id}) {
		if err != nil {
			return t.failed(err)
		}
		items = append(items, it)
	}
	if len(items) == 0 {
		return t.failed(fmt.Errorf("message %s: %w", id, queue.ErrNotFound))
	}
	slices.SortFunc(items, func(a, b queue.Item) int { return cmp.Compare(a.ID, b.ID) })
	content, err := v.open(ctx, id)
	if err != nil {
		return t.failed(err)
	}
	defer content.Close()
	w := bufio.NewWriter(t.stdout)
	switch {
	case t.raw:
		_, err = io.Copy(w, content)
	case t.json:
		err = t.showJSON(w, items, content)
	default:
		showEnvelope(w, items[0])
		for _, it := range items {
			showOne(w, it)
		}
		fmt.Fprintln(w)
		err = t.showContent(w, content)
	}
	if err = errors.Join(err, w.Flush()); err != nil {
		return t.failed(err)
	}
	return exitOK
}

func (t *queueTool) showContent(w *bufio.Writer, content io.Reader) error {
	if t.body {
		_, err := copyPrintable(w, content, false, 0)
		return err
	}
	more, err := copyPrintable(w, content, true, maxShownHeader)
	if more {
		fmt.Fprintln(w, "\n... and more; -body shows all")
	}
	return err
}

// field prints a line of what is known of a message.
func field(w io.Writer, name, format string, args ...any) {
	fmt.Fprintf(w, "%-10s %s\n", name, printable(fmt.Sprintf(format, args...)))
}

// showEnvelope prints what the items of a message share.
func showEnvelope(w io.Writer, it queue.Item) {
	field(w, "Message", "%s", it.Message)
	field(w, "Size", "%s", count(it.Size, "octet"))
	field(w, "Age", "%s", short(it.Age))
	env := it.Envelope
	if env == nil {
		return
	}
	field(w, "From", "%s", env.From.Path())
	for _, f := range []struct{ name, value string }{{"Tenant", env.Tenant}, {"Stream", env.Stream}, {"Pool", env.Pool}} {
		if f.value != "" {
			field(w, f.name, "%s", f.value)
		}
	}
	if s := originText(env.Origin); s != "" {
		field(w, "Received", "%s", s)
	}
	if s := wishes(env); s != "" {
		field(w, "Asked", "%s", s)
	}
	if v := env.Verdict; v != nil {
		field(w, "Verdict", "spf=%s dkim=%s dmarc=%s disposition=%s; author domain %s", orDash(v.SPF), orDash(v.DKIM), orDash(v.DMARC), orDash(v.Disposition), orDash(v.FromDomain))
	}
	for _, k := range slices.Sorted(maps.Keys(env.Meta)) {
		field(w, "Meta", "%s=%s", k, env.Meta[k])
	}
}

func originText(o mailspine.Origin) string {
	var parts []string
	add := func(format, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	if o.Addr.IsValid() {
		add("from %s", o.Addr.String())
	}
	add("called %s", o.Helo)
	add("by %s", o.Proto)
	add("with %s", o.TLS.Version)
	add("as %s", o.Login)
	if !o.Time.IsZero() {
		add("at %s", o.Time.UTC().Format(time.RFC3339))
	}
	return strings.Join(parts, " ")
}

// wishes is what the sender asked for, but for each recipient.
func wishes(env *mailspine.Envelope) string {
	var parts []string
	add := func(ok bool, format string, args ...any) {
		if ok {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(env.Ret == mailspine.RetFull, "RET=FULL")
	add(env.Ret == mailspine.RetHdrs, "RET=HDRS")
	add(env.EnvID != "", "ENVID=%s", env.EnvID)
	add(env.Body == mailspine.Body8Bit, "8BITMIME")
	add(env.Body == mailspine.BodyBinary, "BINARYMIME")
	add(env.UTF8, "SMTPUTF8")
	add(env.RequireTLS, "REQUIRETLS")
	add(env.Priority != 0, "priority %d", env.Priority)
	add(!env.HoldUntil.IsZero(), "not before %s", env.HoldUntil.UTC().Format(time.RFC3339))
	add(!env.DeliverBy.Time.IsZero(), "by %s", env.DeliverBy.Time.UTC().Format(time.RFC3339))
	return strings.Join(parts, ", ")
}

// showOne prints an item and what became of each of its recipients.
func showOne(w io.Writer, it queue.Item) {
	state := it.State.String()
	switch it.State {
	case queue.ItemWaiting:
		state += ", next attempt in " + short(max(0, it.Due))
	case queue.ItemLeased:
		state += " for " + short(max(0, it.Due))
	}
	fmt.Fprintf(w, "\nItem %d: %s; route %s; %s\n", it.ID, state, orDash(string(it.Route)), count(int64(it.Attempts), "attempt"))
	if it.Reason != "" {
		fmt.Fprintf(w, "  %s\n", printable(it.Reason))
	}
	if it.Envelope == nil {
		return
	}
	for i, r := range it.Envelope.Recipients {
		fmt.Fprintf(w, "  %s", printable(r.Address.Path()))
		if n := notifyText(r.Notify); n != "" {
			fmt.Fprintf(w, " NOTIFY=%s", n)
		}
		if r.ORcpt != "" {
			fmt.Fprintf(w, " ORCPT=%s", printable(r.ORcpt))
		}
		fmt.Fprintln(w)
		if i >= len(it.States) {
			continue
		}
		last := it.States[i].Last
		if last.Status != nil {
			fmt.Fprintf(w, "    %s\n", printable(last.Status.Reply()))
			if c := cause(last.Status); c != "" {
				fmt.Fprintf(w, "    (%s)\n", printable(c))
			}
		}
		if rc := last.Receipt; rc.RemoteMTA != "" || rc.RemoteAddr != "" {
			fmt.Fprintf(w, "    by %s %s", orDash(rc.RemoteMTA), orDash(rc.RemoteAddr))
			if rc.TLS.Version != "" {
				fmt.Fprintf(w, " with %s", printable(rc.TLS.Version))
			}
			fmt.Fprintln(w)
		}
		if it.States[i].Warned {
			fmt.Fprintln(w, "    the sender was told of the delay")
		}
	}
}

func notifyText(n mailspine.Notify) string {
	var parts []string
	for _, p := range []struct {
		bit  mailspine.Notify
		name string
	}{{mailspine.NotifyNever, "NEVER"}, {mailspine.NotifySuccess, "SUCCESS"}, {mailspine.NotifyFailure, "FAILURE"}, {mailspine.NotifyDelay, "DELAY"}} {
		if n&p.bit != 0 {
			parts = append(parts, p.name)
		}
	}
	return strings.Join(parts, ",")
}

// showJSON prints an object with the envelope, the items and the header or the whole message. Octets
// that are no UTF-8 are U+FFFD in it; -raw has them.
func (t *queueTool) showJSON(w io.Writer, items []queue.Item, content io.Reader) error {
	var o struct {
		Message mailspine.MsgID   `json:"message"`
		Sender  string            `json:"sender"`
		Tenant  string            `json:"tenant,omitempty"`
		Stream  string            `json:"stream,omitempty"`
		Pool    string            `json:"pool,omitempty"`
		Origin  string            `json:"origin,omitempty"`
		Asked   string            `json:"asked,omitempty"`
		Meta    map[string]string `json:"meta,omitempty"`
		Items   []shownItem       `json:"items"`
		Header  string            `json:"header"`
		Content string            `json:"content,omitempty"`
	}
	o.Message = items[0].Message
	if env := items[0].Envelope; env != nil {
		o.Sender, o.Tenant, o.Stream, o.Pool, o.Meta = env.From.String(), env.Tenant, env.Stream, env.Pool, env.Meta
		o.Origin, o.Asked = originText(env.Origin), wishes(env)
	}
	for _, it := range items {
		o.Items = append(o.Items, showItem(it))
	}
	limit := int64(maxShownHeader)
	if t.body {
		limit = maxShownBody
	}
	b, err := io.ReadAll(io.LimitReader(content, limit+1))
	if err != nil {
		return err
	}
	if t.body {
		if int64(len(b)) > limit {
			return fmt.Errorf("the message has over %d octets: use -raw", limit)
		}
		o.Content = string(b)
	}
	head, _, _ := bytes.Cut(b, []byte("\r\n\r\n"))
	o.Header = string(head[:min(len(head), maxShownHeader)])
	return writeJSON(w, o)
}
