package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

func holdFlags(t *queueTool, fs *flag.FlagSet) {
	fs.StringVar(&t.reason, "reason", "held by the operator", "`why`, for who looks at the queue")
}

func rerouteFlags(t *queueTool, fs *flag.FlagSet) {
	fs.StringVar(&t.to, "to", "", "the new `route`")
	fs.BoolVar(&t.anew, "anew", false, "the route that the queue would choose now; of one that is not running, the recipients' domain")
}

func rerouteCheck(t *queueTool) error {
	if (t.to == "") == !t.anew {
		return errors.New("where to? -to ROUTE or -anew")
	}
	return nil
}

func bounceFlags(t *queueTool, fs *flag.FlagSet) {
	fs.Var(&t.status, "status", "what the senders are told, for `example` \"5.7.1 Not wanted\"; required")
	fs.StringVar(&t.hostname, "hostname", "", "`name` of this system in the reports of a queue that is not running; default: the host's")
}

func bounceCheck(t *queueTool) error {
	if t.status.err == nil {
		return errors.New("-status is missing: what are the senders told?")
	}
	return nil
}

// A bounceStatus is a flag: "[code] enhanced text".
type bounceStatus struct{ err *mailspine.Error }

func (b *bounceStatus) String() string {
	if b.err == nil {
		return ""
	}
	return b.err.Reply()
}

func (b *bounceStatus) Set(s string) error {
	e := &mailspine.Error{Code: 550}
	first, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	if n, err := strconv.Atoi(first); err == nil {
		if n < 500 || n > 599 {
			return errors.New("only what begins with 5 is final")
		}
		e.Code = n
		first, rest, _ = strings.Cut(strings.TrimSpace(rest), " ")
	}
	code, err := mailspine.ParseEnhancedCode(first)
	if err != nil {
		return err
	}
	if code[0] != 5 {
		return errors.New("only what begins with 5 is final")
	}
	e.Enhanced, e.Message = code, strings.TrimSpace(rest)
	if e.Message == "" {
		return errors.New("the text is missing")
	}
	if len(e.Message) > 500 || strings.ContainsFunc(e.Message, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
		return errors.New("the text has one line of at most 500 octets")
	}
	b.err = e
	return nil
}

// change returns what runs a command.
func change(op queue.Op) func(context.Context, *queueTool) int {
	return func(ctx context.Context, t *queueTool) int {
		c := queue.Command{Op: op}
		switch op {
		case queue.OpHold:
			c.Reason = t.reason
		case queue.OpReroute:
			c.Route = queue.Route(t.to)
		}
		if err := c.Validate(); err != nil {
			return t.wrong("%v", err)
		}
		changes := func(it queue.Item) bool {
			switch op {
			case queue.OpRelease:
				return it.State == queue.ItemHeld
			case queue.OpFlush:
				return it.State == queue.ItemWaiting
			case queue.OpReroute:
				return it.State != queue.ItemLeased && it.Route != c.Route // anew: the queue has not been asked
			}
			return it.State != queue.ItemLeased
		}
		return t.change(ctx, op.String(), changes, func(v *view) (queue.Changed, error) { return v.Control(ctx, t.filter, c) })
	}
}

func bounce(ctx context.Context, t *queueTool) int {
	changes := func(it queue.Item) bool { return it.State != queue.ItemLeased }
	return t.change(ctx, "bounce", changes, func(v *view) (queue.Changed, error) { return v.Bounce(ctx, t.filter, t.status.err) })
}

// change carries something out, or says on which items it would be.
func (t *queueTool) change(ctx context.Context, op string, changes func(queue.Item) bool, do func(*view) (queue.Changed, error)) int {
	v, err := t.look(ctx)
	if err != nil {
		return t.failed(err)
	}
	defer v.close()
	var n queue.Changed
	if t.dry {
		n, err = t.rehearse(ctx, v, changes)
	} else {
		n, err = do(v)
	}
	t.report(op, n)
	switch {
	case err != nil:
		return t.failed(err)
	case n.Matched == 0 && (t.filter.ID != "" || t.filter.Item != 0):
		return t.failed(queue.ErrNotFound) // it was named, and is not there
	}
	return exitOK
}

func (t *queueTool) rehearse(ctx context.Context, v *view, changes func(queue.Item) bool) (n queue.Changed, err error) {
	out := newItemPrinter(t)
	defer func() { err = errors.Join(err, out.flush()) }()
	for it, err := range v.List(ctx, t.filter) {
		if err != nil {
			return n, err
		}
		n.Matched++
		switch {
		case it.State == queue.ItemLeased:
			n.Leased++
		case changes(it):
			n.Changed++
			if err := out.add(it); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// report says what was done, or would be.
func (t *queueTool) report(op string, n queue.Changed) {
	if t.json {
		o := struct {
			Op      string `json:"op"`
			DryRun  bool   `json:"dry_run,omitempty"`
			Matched int64  `json:"matched"`
			Changed int64  `json:"changed"`
			Leased  int64  `json:"leased"`
		}{op, t.dry, n.Matched, n.Changed, n.Leased}
		if err := writeJSON(t.stdout, o); err != nil {
			t.failed(err)
		}
		return
	}
	past := map[string]string{
		"hold": "held", "release": "released", "flush": "flushed", "delete": "deleted", "bounce": "bounced", "reroute": "rerouted",
	}[op]
	if t.dry {
		past = "would be " + past
	}
	s := fmt.Sprintf("%d of %s %s", n.Changed, count(n.Matched, "item"), past)
	if n.Leased > 0 {
		s += fmt.Sprintf("; %d being delivered and left alone", n.Leased)
	}
	fmt.Fprintln(t.stdout, s)
}
