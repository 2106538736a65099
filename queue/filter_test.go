package queue_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

func TestFilterMatch(t *testing.T) {
	to := func(s string) mailspine.Recipient {
		a, err := mailspine.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		return mailspine.Recipient{Address: a}
	}
	it := queue.Item{
		ID: 7, Message: "m1", Route: "example.net", State: queue.ItemWaiting, Age: time.Hour,
		Envelope: &mailspine.Envelope{
			ID: "m1", From: to("Ann@Example.org").Address, Tenant: "shop", Stream: "bulk",
			Recipients: []mailspine.Recipient{to("bob@example.net"), to("eve@bücher.example")},
		},
	}
	bounce := it
	bounce.Envelope = it.Envelope.Clone()
	bounce.Envelope.From = mailspine.Address{}
	for _, c := range []struct {
		f    queue.Filter
		it   queue.Item
		want bool
	}{
		{queue.Filter{}, it, true},
		{queue.Filter{ID: "m1"}, it, true},
		{queue.Filter{ID: "m2"}, it, false},
		{queue.Filter{Item: 7}, it, true},
		{queue.Filter{Item: 8}, it, false},
		{queue.Filter{Route: "example.net"}, it, true},
		{queue.Filter{Route: "example.com"}, it, false},
		{queue.Filter{Tenant: "shop", Stream: "bulk"}, it, true},
		{queue.Filter{Tenant: "shop", Stream: "mail"}, it, false},
		{queue.Filter{Tenant: "other"}, it, false},
		{queue.Filter{Sender: "ann@EXAMPLE.ORG"}, it, true},
		{queue.Filter{Sender: "@example.org"}, it, true},
		{queue.Filter{Sender: "@ample.org"}, it, false},
		{queue.Filter{Sender: "<>"}, it, false},
		{queue.Filter{Sender: "<>"}, bounce, true},
		{queue.Filter{Sender: "ann@example.org"}, bounce, false},
		{queue.Filter{Recipient: "eve@xn--bcher-kva.example"}, it, true},
		{queue.Filter{Recipient: "eve@example.net"}, it, false},
		{queue.Filter{Domain: "BÜCHER.example"}, it, true},
		{queue.Filter{Domain: "example.org"}, it, false},
		{queue.Filter{State: queue.ItemWaiting}, it, true},
		{queue.Filter{State: queue.ItemHeld}, it, false},
		{queue.Filter{MinAge: time.Hour, MaxAge: 2 * time.Hour}, it, true},
		{queue.Filter{MinAge: time.Hour + 1}, it, false},
		{queue.Filter{MaxAge: time.Hour}, it, false},
	} {
		if err := c.f.Validate(); err != nil {
			t.Errorf("%+v: %v", c.f, err)
		}
		if got := c.f.Match(c.it); got != c.want {
			t.Errorf("%+v: %v, want %v", c.f, got, c.want)
		}
		if bare := (queue.Item{ID: 7, Message: "m1", Route: "example.net", State: queue.ItemWaiting, Age: time.Hour}); !c.f.NeedsEnvelope() &&
			c.f.Tenant == "" && c.f.Match(bare) != c.want {
			t.Errorf("%+v: without an envelope not %v", c.f, c.want)
		}
	}
}

func TestFilterValidate(t *testing.T) {
	for field, f := range map[string]queue.Filter{
		"Sender":    {Sender: "ann"},
		"Recipient": {Recipient: "bob@exa mple.net"},
		"Domain":    {Domain: "example..net"},
		"State":     {State: 9},
		"MinAge":    {MinAge: -1},
		"MaxAge":    {MinAge: time.Hour, MaxAge: time.Minute},
	} {
		if err := f.Validate(); !errors.Is(err, queue.ErrBadFilter) || !strings.Contains(err.Error(), field) {
			t.Errorf("%+v: %v, want ErrBadFilter about %s", f, err, field)
		}
	}
}

func TestCommandValidate(t *testing.T) {
	for _, c := range []struct {
		c  queue.Command
		ok bool
	}{
		{queue.Command{}, false},
		{queue.Command{Op: queue.OpReroute + 1}, false},
		{queue.Command{Op: queue.OpHold}, false},
		{queue.Command{Op: queue.OpHold, Reason: "spam wave"}, true},
		{queue.Command{Op: queue.OpRelease, Reason: "why"}, false},
		{queue.Command{Op: queue.OpFlush, Route: "example.net"}, false},
		{queue.Command{Op: queue.OpReroute, Route: "example.net"}, true},
		{queue.Command{Op: queue.OpReroute}, true},
		{queue.Command{Op: queue.OpDelete}, true},
	} {
		if err := c.c.Validate(); (err == nil) != c.ok || err != nil && !errors.Is(err, queue.ErrBadCommand) {
			t.Errorf("%+v: %v", c.c, err)
		}
	}
}
