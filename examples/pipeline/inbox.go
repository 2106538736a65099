package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/fbl"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// An inbox follows a user's INBOX.
type inbox struct {
	box     mailbox.Mailbox
	watch   mailbox.Watcher
	since   mailbox.ModSeq
	last    mailbox.UID
	arrived [][]byte // in the order of their UIDs
}

func (o *org) inbox(ctx context.Context, user string) (*inbox, error) {
	account, err := o.mail.Account(ctx, user)
	if err != nil {
		return nil, err
	}
	// Watch first and look then, so that nothing slips through.
	w, err := account.Watch(ctx)
	if err != nil {
		return nil, err
	}
	box, err := account.Open(ctx, "INBOX")
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &inbox{box: box, watch: w}, nil
}

func (in *inbox) close() error { return in.watch.Close() }

// look reads what is new.
func (in *inbox) look(ctx context.Context) error {
	ch, err := in.box.Changes(ctx, in.since)
	if err != nil {
		return err
	}
	in.since = ch.Info.ModSeq
	for _, m := range ch.Changed {
		if m.UID <= in.last {
			continue
		}
		in.last = m.UID
		body, err := in.box.Body(ctx, m.UID)
		if err != nil {
			return err
		}
		msg, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
		if err := errors.Join(err, body.Close()); err != nil {
			return err
		}
		in.arrived = append(in.arrived, msg)
	}
	return nil
}

// await returns the first message that f likes, and waits for it.
func (in *inbox) await(ctx context.Context, f func(msg []byte) bool) ([]byte, error) {
	seen := 0
	for {
		if err := in.look(ctx); err != nil {
			return nil, err
		}
		for ; seen < len(in.arrived); seen++ {
			if f(in.arrived[seen]) {
				return in.arrived[seen], nil
			}
		}
		if _, err := in.watch.Next(ctx); err != nil {
			return nil, fmt.Errorf("waiting for a message in the mailbox: %w", err)
		}
	}
}

// count returns how many messages with a Message-ID arrived so far.
func (in *inbox) count(ctx context.Context, id string) (int, error) {
	if err := in.look(ctx); err != nil {
		return 0, err
	}
	n := 0
	for _, m := range in.arrived {
		if messageID(m) == id {
			n++
		}
	}
	return n, nil
}

func messageID(msg []byte) string {
	h, err := mailspine.ParseHeader(bytes.NewReader(msg), 0)
	if err != nil {
		return ""
	}
	return h.Get("Message-ID")
}

func hasID(id string) func([]byte) bool {
	return func(msg []byte) bool { return messageID(msg) == id }
}

// The fields that a message gains on its way.
var traceFields = []string{"Return-Path", "Delivered-To", "Received", "Received-SPF", "Authentication-Results", "DKIM-Signature", "BIMI-Location", fbl.Header}

// same checks that what arrived is what was sent, octet by octet, below the
// fields that were added on the way, and returns those.
func same(arrived []byte, sent string) (added *mailspine.Header, err error) {
	head, ok := bytes.CutSuffix(arrived, []byte(sent))
	if !ok {
		// Tell where they part, from the end.
		i := 0
		for i < min(len(arrived), len(sent)) && arrived[len(arrived)-1-i] == sent[len(sent)-1-i] {
			i++
		}
		return nil, fmt.Errorf("header or body differ from what was sent, %d octets before the end", i)
	}
	added, err = mailspine.ParseHeader(bytes.NewReader(head), 0)
	if err != nil {
		return nil, err
	}
	if added.Body != int64(len(head)) {
		return nil, errors.New("something that is no header field was put before the message")
	}
	for _, f := range added.Fields {
		if !slices.ContainsFunc(traceFields, f.Is) {
			return nil, fmt.Errorf("the field %s was added", f.Name)
		}
	}
	return added, nil
}

// passes checks that the receiver found the message authentic.
func passes(added *mailspine.Header) error {
	res := strings.Join(added.Values("Authentication-Results"), " ")
	for _, want := range []string{"spf=pass", "dkim=pass", "dmarc=pass", "bimi=pass"} {
		if !strings.Contains(res, want) {
			return fmt.Errorf("Authentication-Results lacks %s: %s", want, res)
		}
	}
	return nil
}
