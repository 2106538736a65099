package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// What goes over the socket. A reader of answers skips members that it does not know, so that an older client
// understands a newer server; a reader of requests refuses them.

// maxRequest bounds the body of a request, in octets.
const maxRequest = 64 << 10

// A span is a duration as text.
type span time.Duration

func (s span) MarshalText() ([]byte, error) { return []byte(time.Duration(s).String()), nil }

func (s *span) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	*s = span(d)
	return err
}

// A filter is a queue.Filter. Its zero members are left out, and must not be there when it is read.
type filter struct {
	ID        mailspine.MsgID `json:"id,omitzero"`
	Item      queue.ItemID    `json:"item,omitzero"`
	Route     queue.Route     `json:"route,omitzero"`
	Tenant    string          `json:"tenant,omitzero"`
	Stream    string          `json:"stream,omitzero"`
	Sender    string          `json:"sender,omitzero"`
	Recipient string          `json:"recipient,omitzero"`
	Domain    string          `json:"domain,omitzero"`
	State     string          `json:"state,omitzero"`
	MinAge    span            `json:"min_age,omitzero"`
	MaxAge    span            `json:"max_age,omitzero"`
}

// UnmarshalJSON refuses members without a value: {"tenant":""} would select all tenants, which nobody means
// who writes it.
func (f *filter) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return errors.New("filter: is null")
	}
	type plain filter
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode((*plain)(f)); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	var got, kept map[string]json.RawMessage
	if err := json.Unmarshal(b, &got); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	again, err := json.Marshal((*plain)(f))
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	if err := json.Unmarshal(again, &kept); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	for k := range got {
		if _, ok := kept[k]; !ok {
			return fmt.Errorf("filter: %q is empty, or misspelt: leave it out to select all", k)
		}
	}
	return nil
}

func filterOf(f queue.Filter) *filter {
	w := &filter{
		ID: f.ID, Item: f.Item, Route: f.Route, Tenant: f.Tenant, Stream: f.Stream, Sender: f.Sender, Recipient: f.Recipient,
		Domain: f.Domain, MinAge: span(f.MinAge), MaxAge: span(f.MaxAge),
	}
	if f.State != queue.AnyState {
		w.State = f.State.String()
	}
	return w
}

func (w *filter) queue() (queue.Filter, error) {
	f := queue.Filter{
		ID: w.ID, Item: w.Item, Route: w.Route, Tenant: w.Tenant, Stream: w.Stream, Sender: w.Sender, Recipient: w.Recipient,
		Domain: w.Domain, MinAge: time.Duration(w.MinAge), MaxAge: time.Duration(w.MaxAge),
	}
	if w.State != "" {
		var ok bool
		if f.State, ok = itemState(w.State); !ok {
			return queue.Filter{}, fmt.Errorf("%w: State: %q is none", queue.ErrBadFilter, w.State)
		}
	}
	return f, f.Validate()
}

// itemState is the reverse of ItemState.String, but for "any".
func itemState(name string) (queue.ItemState, bool) {
	for s := queue.ItemDue; s <= queue.ItemHeld; s++ {
		if s.String() == name {
			return s, true
		}
	}
	return 0, false
}

type command struct {
	Op     string      `json:"op"`
	Reason string      `json:"reason,omitempty"`
	Route  queue.Route `json:"route,omitempty"`
}

func commandOf(c queue.Command) *command {
	return &command{Op: c.Op.String(), Reason: c.Reason, Route: c.Route}
}

func (w *command) queue() (queue.Command, error) {
	for op := queue.OpHold; op <= queue.OpReroute; op++ {
		if op.String() == w.Op {
			c := queue.Command{Op: op, Reason: w.Reason, Route: w.Route}
			return c, c.Validate()
		}
	}
	return queue.Command{}, fmt.Errorf("%w: Op %q is none", queue.ErrBadCommand, w.Op)
}

// A status is a *mailspine.Error. Of the cause only its text is known.
type status struct {
	Code     int                    `json:"code"`
	Enhanced mailspine.EnhancedCode `json:"enhanced,omitzero"`
	Message  string                 `json:"message,omitempty"`
	Cause    string                 `json:"cause,omitempty"`
}

func statusOf(e *mailspine.Error) *status {
	if e == nil {
		return nil
	}
	s := &status{Code: e.Code, Enhanced: e.Enhanced, Message: e.Message}
	if e.Err != nil {
		s.Cause = e.Err.Error()
	}
	return s
}

func (s *status) error() *mailspine.Error {
	if s == nil {
		return nil
	}
	e := &mailspine.Error{Code: s.Code, Enhanced: s.Enhanced, Message: s.Message}
	if s.Cause != "" {
		e.Err = errors.New(s.Cause)
	}
	return e
}

// A request is the body of every POST. All have a filter, control a command, and bounce a status if the queue's own does
// not do.
type request struct {
	Filter  *filter  `json:"filter,omitempty"`
	Command *command `json:"command,omitempty"`
	Status  *status  `json:"status,omitempty"`
}

// An order is a request that is valid.
type order struct {
	filter  queue.Filter
	command queue.Command
	status  *mailspine.Error
}

// decode reads the request of a call: "list", "control" or "bounce".
func decode(r io.Reader, call string) (o order, err error) {
	var req request
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		return order{}, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return order{}, fmt.Errorf("%w: something follows the object", ErrBadRequest)
	}
	switch {
	case req.Filter == nil:
		return order{}, fmt.Errorf("%w: no filter", ErrBadRequest)
	case (call == "control") != (req.Command != nil):
		return order{}, fmt.Errorf("%w: a command is missing, or is not wanted here", ErrBadRequest)
	case call != "bounce" && req.Status != nil:
		return order{}, fmt.Errorf("%w: a status is not wanted here", ErrBadRequest)
	}
	if o.filter, err = req.Filter.queue(); err != nil {
		return order{}, err
	}
	if req.Command != nil {
		if o.command, err = req.Command.queue(); err != nil {
			return order{}, err
		}
	}
	if o.status = req.Status.error(); o.status != nil && o.status.Temporary() {
		return order{}, fmt.Errorf("%w: a bounce needs a permanent status, not %s", queue.ErrBadCommand, o.status.Reply())
	}
	return o, nil
}

// A line of a stream has one member.
type line struct {
	Item  *item    `json:"item,omitempty"`
	Group *group   `json:"group,omitempty"`
	Error *failure `json:"error,omitempty"`
	End   bool     `json:"end,omitempty"`
}

// An item is a queue.Item.
type item struct {
	ID       queue.ItemID        `json:"id"`
	Message  mailspine.MsgID     `json:"message"`
	Route    queue.Route         `json:"route"`
	State    string              `json:"state"`
	Attempts int                 `json:"attempts"`
	Age      span                `json:"age"`
	Due      span                `json:"due"`
	Reason   string              `json:"reason,omitempty"`
	Size     int64               `json:"size"`
	Envelope *mailspine.Envelope `json:"envelope"`
	States   []recipient         `json:"recipients"` // of each of Envelope.Recipients
}

// A recipient is a queue.RecipientState.
type recipient struct {
	Index   int               `json:"index"`
	State   string            `json:"state"`
	Status  *status           `json:"status,omitempty"`
	Receipt mailspine.Receipt `json:"receipt,omitzero"`
	Warned  bool              `json:"warned,omitempty"`
	// LastWarned is Result.Warned, which says of the attempt what Warned says of the recipient.
	LastWarned bool `json:"last_warned,omitempty"`
}

func itemOf(it queue.Item) *item {
	w := &item{
		ID: it.ID, Message: it.Message, Route: it.Route, State: it.State.String(), Attempts: it.Attempts, Age: span(it.Age),
		Due: span(it.Due), Reason: it.Reason, Size: it.Size,
	}
	if it.Envelope != nil {
		// Only the times need a copy: JSON cannot express every zone.
		env := *it.Envelope
		env.HoldUntil, env.DeliverBy.Time, env.Origin.Time = env.HoldUntil.UTC(), env.DeliverBy.Time.UTC(), env.Origin.Time.UTC()
		w.Envelope = &env
	}
	for _, s := range it.States {
		w.States = append(w.States, recipient{
			Index: s.Index, State: s.Last.State.String(), Status: statusOf(s.Last.Status), Receipt: s.Last.Receipt,
			Warned: s.Warned, LastWarned: s.Last.Warned,
		})
	}
	return w
}

func (w *item) queue() (queue.Item, error) {
	state, ok := itemState(w.State)
	if !ok {
		return queue.Item{}, fmt.Errorf("control: item %d: the state %q is not known here", w.ID, w.State)
	}
	if w.Envelope != nil && len(w.States) != len(w.Envelope.Recipients) {
		return queue.Item{}, fmt.Errorf("control: item %d: %d states of %d recipients", w.ID, len(w.States), len(w.Envelope.Recipients))
	}
	it := queue.Item{
		ID: w.ID, Message: w.Message, Route: w.Route, State: state, Attempts: w.Attempts, Age: time.Duration(w.Age),
		Due: time.Duration(w.Due), Reason: w.Reason, Size: w.Size, Envelope: w.Envelope,
	}
	for _, r := range w.States {
		s := queue.RecipientState{Index: r.Index, Warned: r.Warned}
		s.Last = queue.Result{Status: r.Status.error(), Receipt: r.Receipt, Warned: r.LastWarned}
		for st := queue.Open; st <= queue.Failed; st++ {
			if st.String() == r.State {
				s.Last.State = st
			}
		}
		it.States = append(it.States, s)
	}
	return it, nil
}

// A group is a queue.Group.
type group struct {
	Route   queue.Route `json:"route"`
	Tenant  string      `json:"tenant"`
	Items   int64       `json:"items"`
	Due     int64       `json:"due"`
	Waiting int64       `json:"waiting"`
	Leased  int64       `json:"leased"`
	Held    int64       `json:"held"`
}

// stats is queue.Stats.
type stats struct {
	Messages int64 `json:"messages"`
	Items    int64 `json:"items"`
	Due      int64 `json:"due"`
	Waiting  int64 `json:"waiting"`
	Leased   int64 `json:"leased"`
	Held     int64 `json:"held"`
	Bytes    int64 `json:"bytes"`
}

func statsOf(s queue.Stats) stats {
	return stats{Messages: s.Messages, Items: s.Items, Due: s.Due, Waiting: s.Waiting, Leased: s.Leased, Held: s.Held, Bytes: s.Bytes}
}

func (w stats) queue() queue.Stats {
	return queue.Stats{Messages: w.Messages, Items: w.Items, Due: w.Due, Waiting: w.Waiting, Leased: w.Leased, Held: w.Held, Bytes: w.Bytes}
}

// changed is queue.Changed.
type changed struct {
	Matched int64    `json:"matched"`
	Changed int64    `json:"changed"`
	Leased  int64    `json:"leased"`
	Error   *failure `json:"error,omitempty"` // after it some items may be changed
}

func changedOf(c queue.Changed) changed { return changed{c.Matched, c.Changed, c.Leased, nil} }

func (w changed) queue() queue.Changed {
	return queue.Changed{Matched: w.Matched, Changed: w.Changed, Leased: w.Leased}
}
