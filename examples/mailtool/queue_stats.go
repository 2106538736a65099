package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
)

func statsFlags(t *queueTool, fs *flag.FlagSet) {
	fs.IntVar(&t.top, "top", 20, "how many routes and tenants are shown, those with the most items first; 0: all")
}

func statsCheck(t *queueTool) error {
	if t.top < 0 {
		return errors.New("-top is negative")
	}
	return nil
}

// A tally counts the items of a route or a tenant.
type tally struct {
	Name    string `json:"name"`
	Items   int64  `json:"items"`
	Due     int64  `json:"due"`
	Waiting int64  `json:"waiting"`
	Leased  int64  `json:"leased"`
	Held    int64  `json:"held"`
}

// A board has a tally for each name that has items.
type board map[string]*tally

func (b board) add(name string, g queue.Group) {
	t := b[name]
	if t == nil {
		t = &tally{Name: name}
		b[name] = t
	}
	t.Items += g.Items
	t.Due += g.Due
	t.Waiting += g.Waiting
	t.Leased += g.Leased
	t.Held += g.Held
}

// largest returns the n with the most items (0: all), and what the others sum up to.
func (b board) largest(n int) (first []*tally, others int, items int64) {
	first = []*tally{}
	for _, t := range b {
		first = append(first, t)
	}
	slices.SortFunc(first, func(x, y *tally) int {
		return cmp.Or(cmp.Compare(y.Items, x.Items), cmp.Compare(x.Name, y.Name))
	})
	if n == 0 || len(first) <= n {
		return first, 0, 0
	}
	for _, t := range first[n:] {
		items += t.Items
	}
	return first[:n], len(first) - n, items
}

// shownStats is what stats -json prints.
type shownStats struct {
	Running  bool          `json:"running"`
	Health   string        `json:"health"` // "ok", or what is wrong
	Messages int64         `json:"messages"`
	Items    int64         `json:"items"`
	Due      int64         `json:"due"`
	Waiting  int64         `json:"waiting"`
	Leased   int64         `json:"leased"`
	Held     int64         `json:"held"`
	Octets   int64         `json:"octets"`
	Routes   []*tally      `json:"routes"`  // the largest first
	Tenants  []*tally      `json:"tenants"` // the largest first
	Server   *control.Info `json:"server,omitempty"`
}

// showStats shows totals, and the largest routes and tenants.
func showStats(ctx context.Context, t *queueTool) int {
	v, err := t.look(ctx)
	if err != nil {
		return t.failed(err)
	}
	defer v.close()
	st, err := v.StoreStats(ctx)
	if err != nil {
		return t.failed(err)
	}
	routes, tenants := board{}, board{}
	for g, err := range v.Breakdown(ctx) {
		if err != nil {
			return t.failed(err)
		}
		routes.add(string(g.Route), g)
		tenants.add(g.Tenant, g)
	}
	code, health := exitOK, "ok"
	if err := v.health(ctx); err != nil {
		code, health = exitProblem, err.Error()
	}
	if t.json {
		o := shownStats{
			Running: v.live != nil, Health: health, Messages: st.Messages, Items: st.Items, Due: st.Due, Waiting: st.Waiting, Leased: st.Leased,
			Held: st.Held, Octets: st.Bytes,
		}
		o.Routes, _, _ = routes.largest(t.top)
		o.Tenants, _, _ = tenants.largest(t.top)
		if v.live != nil {
			o.Server = &v.info
		}
		if err := writeJSON(t.stdout, o); err != nil {
			return t.failed(err)
		}
		return code
	}
	w := bufio.NewWriter(t.stdout)
	field(w, "Messages", "%d with %s", st.Messages, count(st.Bytes, "octet"))
	field(w, "Items", "%d: %d due, %d waiting, %d being delivered, %d held", st.Items, st.Due, st.Waiting, st.Leased, st.Held)
	showServer(w, v)
	field(w, "Health", "%s", health)
	showBoard(w, "ROUTE", routes, t.top)
	showBoard(w, "TENANT", tenants, t.top)
	if err := w.Flush(); err != nil {
		return t.failed(err)
	}
	return code
}

func showServer(w io.Writer, v *view) {
	if v.live == nil {
		field(w, "Server", "not running")
		return
	}
	field(w, "Server", "process %d, for %s", v.info.PID, short(time.Since(v.info.Started)))
	if c := v.info.Counts; c != nil {
		field(w, "Since then", "%d messages accepted, %d refused; %d recipients delivered, %d failed, %d deferrals; %d reports",
			c.Queued, c.Refused, c.Delivered, c.Failed, c.Deferred, c.Reports)
	}
}

func showBoard(w io.Writer, head string, b board, top int) {
	if len(b) == 0 {
		return
	}
	const format = "%-30s %9v %9v %9v %9v %9v\n"
	fmt.Fprintln(w)
	fmt.Fprintf(w, format, head, "ITEMS", "DUE", "WAITING", "LEASED", "HELD")
	first, others, items := b.largest(top)
	for _, t := range first {
		fmt.Fprintf(w, format, orDash(t.Name), t.Items, t.Due, t.Waiting, t.Leased, t.Held)
	}
	if others > 0 {
		fmt.Fprintf(w, format, fmt.Sprintf("(%d more)", others), items, "", "", "", "")
	}
}
