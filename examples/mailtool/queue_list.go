package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// maxSorted is how many items are sorted before they are printed. A longer list is printed as it comes, so that
// memory is bounded.
const maxSorted = 5000

func list(ctx context.Context, t *queueTool) int {
	v, err := t.look(ctx)
	if err != nil {
		return t.failed(err)
	}
	defer v.close()
	out := newItemPrinter(t)
	for it, err := range v.List(ctx, t.filter) {
		if err == nil {
			err = out.add(it)
		}
		if err != nil {
			out.flush()
			return t.failed(err)
		}
	}
	if err := out.end(); err != nil {
		return t.failed(err)
	}
	if t.id != "" && out.n == 0 {
		return t.failed(fmt.Errorf("message %s: %w", t.id, queue.ErrNotFound))
	}
	return exitOK
}

// An itemPrinter prints items, as a table or as JSON.
type itemPrinter struct {
	w       *bufio.Writer
	json    bool
	n       int
	sorted  []queue.Item
	passing bool // there are too many to sort
	head    bool // was printed
}

func newItemPrinter(t *queueTool) *itemPrinter {
	return &itemPrinter{w: bufio.NewWriter(t.stdout), json: t.json}
}

func (p *itemPrinter) add(it queue.Item) error {
	p.n++
	if p.passing {
		return p.print(it)
	}
	p.sorted = append(p.sorted, it)
	if len(p.sorted) < maxSorted {
		return nil
	}
	p.passing = true
	return p.printSorted()
}

func (p *itemPrinter) printSorted() error {
	for _, it := range p.sorted {
		if err := p.print(it); err != nil {
			return err
		}
	}
	p.sorted = nil
	return nil
}

// end prints what is left, and how many there were.
func (p *itemPrinter) end() error {
	if err := p.flush(); err != nil || p.json {
		return err
	}
	if p.n > 0 {
		fmt.Fprintln(p.w)
	}
	fmt.Fprintln(p.w, count(int64(p.n), "item"))
	return p.w.Flush()
}

func (p *itemPrinter) flush() error {
	slices.SortFunc(p.sorted, func(a, b queue.Item) int {
		return cmp.Or(cmp.Compare(b.Age, a.Age), cmp.Compare(a.ID, b.ID))
	})
	if err := p.printSorted(); err != nil {
		return err
	}
	return p.w.Flush()
}

func (p *itemPrinter) print(it queue.Item) error {
	if p.json {
		return writeJSON(p.w, showItem(it))
	}
	const format = "%-36s %6v %-7s %7s %7s %5v %9v %-20s %-10s %s\n"
	if !p.head {
		p.head = true
		fmt.Fprintf(p.w, format, "MESSAGE", "ITEM", "STATE", "AGE", "NEXT", "TRIES", "SIZE", "ROUTE", "TENANT", "FROM -> TO")
	}
	_, err := fmt.Fprintf(p.w, format, it.Message, it.ID, it.State, short(it.Age), next(it), it.Attempts, it.Size,
		orDash(string(it.Route)), orDash(tenant(it)), printable(parties(it.Envelope)))
	for _, why := range reasons(it) {
		_, err = fmt.Fprintf(p.w, "    %s\n", printable(cut(why, 200)))
	}
	return err
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

func tenant(it queue.Item) string {
	if it.Envelope == nil {
		return ""
	}
	return it.Envelope.Tenant
}

// next says when an item is tried again.
func next(it queue.Item) string {
	switch {
	case it.State == queue.ItemDue, it.State == queue.ItemWaiting && it.Due <= 0:
		return "now"
	case it.State == queue.ItemWaiting:
		return short(it.Due)
	}
	return "-"
}

// parties says from whom to whom.
func parties(env *mailspine.Envelope) string {
	if env == nil || len(env.Recipients) == 0 {
		return "?"
	}
	s := env.From.Path() + " -> " + env.Recipients[0].Address.Path()
	if n := len(env.Recipients) - 1; n > 0 {
		s += fmt.Sprintf(" +%d", n)
	}
	return s
}

// reasons says why an item waits: the reason of the hold or of the last time that it was given back, and
// the first refusal.
func reasons(it queue.Item) []string {
	var all []string
	if it.Reason != "" {
		all = append(all, it.Reason)
	}
	for _, s := range it.States {
		if st := s.Last.Status; st != nil {
			said := st.Reply()
			if mta := s.Last.Receipt.RemoteMTA; mta != "" {
				said = mta + ": " + said
			}
			return append(all, said)
		}
	}
	return all
}

// cause is what the log says of a refusal beyond the reply; it often begins with that.
func cause(st *mailspine.Error) string {
	if st.Err == nil {
		return ""
	}
	return strings.TrimPrefix(strings.TrimPrefix(st.Err.Error(), st.Reply()), ": ")
}

// cut shortens a text to n runes.
func cut(s string, n int) string {
	for i := range s {
		if n--; n < 0 {
			return s[:i] + "..."
		}
	}
	return s
}

// A shownItem is an item in JSON.
type shownItem struct {
	Message    mailspine.MsgID  `json:"message"`
	Item       queue.ItemID     `json:"item"`
	State      string           `json:"state"`
	Route      queue.Route      `json:"route"`
	Tenant     string           `json:"tenant,omitempty"`
	Stream     string           `json:"stream,omitempty"`
	Sender     string           `json:"sender"` // "": the null reverse-path
	Attempts   int              `json:"attempts"`
	Age        int64            `json:"age_seconds"`
	Next       *int64           `json:"next_seconds,omitempty"`  // until the next attempt; not when it is held or leased
	Lease      *int64           `json:"lease_seconds,omitempty"` // until the lease ends
	Reason     string           `json:"reason,omitempty"`
	Size       int64            `json:"size"`
	Recipients []shownRecipient `json:"recipients"`
}

type shownRecipient struct {
	Address string `json:"address"`
	Status  string `json:"status,omitempty"` // the last refusal
	Cause   string `json:"cause,omitempty"`  // what the log says of it
	MTA     string `json:"mta,omitempty"`    // who said that
	Warned  bool   `json:"warned,omitempty"` // the sender was told of the delay
}

func showItem(it queue.Item) shownItem {
	s := shownItem{
		Message: it.Message, Item: it.ID, State: it.State.String(), Route: it.Route, Attempts: it.Attempts,
		Age: int64(it.Age / time.Second), Reason: it.Reason, Size: it.Size, Recipients: []shownRecipient{},
	}
	due := max(0, int64(it.Due/time.Second))
	switch it.State {
	case queue.ItemDue, queue.ItemWaiting:
		s.Next = &due
	case queue.ItemLeased:
		s.Lease = &due
	}
	if it.Envelope == nil {
		return s
	}
	s.Tenant, s.Stream, s.Sender = it.Envelope.Tenant, it.Envelope.Stream, it.Envelope.From.String()
	for i, r := range it.Envelope.Recipients {
		sr := shownRecipient{Address: r.Address.String()}
		if i < len(it.States) {
			last := it.States[i].Last
			sr.MTA, sr.Warned = last.Receipt.RemoteMTA, it.States[i].Warned
			if last.Status != nil {
				sr.Status, sr.Cause = last.Status.Reply(), cause(last.Status)
			}
		}
		s.Recipients = append(s.Recipients, sr)
	}
	return s
}

// writeJSON writes a value as one line. What would drive a terminal is escaped; JSON has it in strings only.
func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	var out strings.Builder
	for _, c := range b.String() {
		if c != '\n' && drives(c) {
			fmt.Fprintf(&out, `\u%04x`, c) // all of them are below 0x10000
		} else {
			out.WriteRune(c)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// drives reports whether a terminal would obey a character, or show what comes after it in another order.
func drives(c rune) bool {
	return c < 0x20 || c >= 0x7f && c < 0xa0 || c == 0x2028 || c == 0x2029 || unicode.Is(unicode.Bidi_Control, c)
}

// copyPrintable copies text so that it cannot drive the terminal; a line end stays one. It ends after the header, if only that is wanted,
// or after max octets, if max is not 0; it reports whether there was more.
func copyPrintable(w *bufio.Writer, r io.Reader, headerOnly bool, max int64) (more bool, err error) {
	br := bufio.NewReaderSize(r, 32<<10)
	begin := true // of a line
	for n := int64(0); ; {
		c, size, err := br.ReadRune()
		if err == io.EOF {
			if !begin {
				w.WriteByte('\n')
			}
			return false, w.Flush()
		}
		if err != nil {
			w.Flush()
			return false, err
		}
		if n += int64(size); max > 0 && n > max {
			return true, w.Flush()
		}
		if c == '\r' {
			if b, err := br.Peek(1); err == nil && b[0] == '\n' {
				continue
			}
		}
		switch {
		case c == '\n' && begin && headerOnly:
			return false, w.Flush()
		case c == '\n':
			err = w.WriteByte('\n')
		case c == '\t':
			err = w.WriteByte(' ')
		case c == utf8.RuneError || drives(c):
			err = w.WriteByte('?')
		default:
			_, err = w.WriteRune(c)
		}
		if err != nil {
			return false, err
		}
		begin = c == '\n'
	}
}
