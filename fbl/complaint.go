package fbl

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/report"
)

// The feedback types (RFC 5965 section 7.3, RFC 6430, RFC 6591, and opt-out from the
// drafts of RFC 5965, which some providers send).
const (
	TypeAbuse       = "abuse"
	TypeFraud       = "fraud"
	TypeVirus       = "virus"
	TypeOther       = "other"
	TypeNotSpam     = "not-spam"
	TypeAuthFailure = "auth-failure"
	TypeOptOut      = "opt-out"
)

// ErrNotFeedback is matched by the error of Parse for a message that is no feedback report.
var ErrNotFeedback = errors.New("fbl: not a feedback report")

// A Complaint is a feedback report (RFC 5965): a provider forwards that a reader reported a
// message. Zero fields are not said.
type Complaint struct {
	// The message that carries it. From and To are not read by Parse.
	From      string // of the reporter: a mailbox, with a display name or without, in ASCII
	To        mailspine.Address
	Date      time.Time
	MessageID string // without angle brackets
	Text      string // for people, with LF between lines; "": a sentence that says what it is

	Type             string // in lower case; see TypeAbuse. Required.
	UserAgent        string // the program that made it
	OriginalMailFrom string // the return path of the message, without angle brackets; "<>": null
	// Recipients are those that the report names as the message's, at most 100.
	Recipients   []mailspine.Address
	Arrival      time.Time
	ReportingMTA string // a domain name
	SourceIP     netip.Addr
	Incidents    int // how often; 0: once

	// Returned is the message, or its header block; nil: it is not part of the report. Parse returns at most 256 KiB of it.
	Returned []byte
	Full     bool // Returned is a whole message
}

// Bytes returns the report as a message with CRLF line ends, and what its envelope has to
// say of the body. What cannot be part of a message is left out: controls become spaces, a Returned
// that is not lines of text (RFC 2046 section 5.2.1 lets nobody encode it) is not sent, and a recipient whose local part is
// not ASCII is not named.
func (c *Complaint) Bytes() ([]byte, mailspine.Body) {
	m := &report.Message{
		From: c.From, To: c.To, Date: c.Date, MessageID: c.MessageID, Subject: "Abuse report", Text: c.Text,
		Feedback: &report.Feedback{
			Type: c.Type, UserAgent: c.UserAgent, OriginalMailFrom: c.OriginalMailFrom,
			Arrival: c.Arrival, SourceIP: c.SourceIP, Incidents: c.Incidents,
		},
	}
	if m.Text == "" {
		m.Text = "A reader of your mail reported the message below.\n"
	}
	if c.ReportingMTA != "" {
		m.Feedback.ReportingMTA = report.Typed{Type: "dns", Value: c.ReportingMTA}
	}
	for _, r := range c.Recipients {
		// The report is ASCII (RFC 5965 section 3). A domain has an ASCII form; a local part has none, and
		// another address must not stand for it.
		if domain, err := r.ASCIIDomain(); err == nil {
			r.Domain = domain
		}
		if r.IsASCII() && !r.IsZero() {
			m.Feedback.OriginalRcptTo = append(m.Feedback.OriginalRcptTo, r.String())
		}
	}
	if c.Returned != nil && report.CanReturn(c.Returned) {
		m.Returned, m.Full = c.Returned, c.Full
	}
	return m.Bytes()
}

// Parse reads a report, of whatever system. It reads at most 4 MiB, and takes what it finds there. The
// error is ErrNotFeedback, or that of the content.
func Parse(ctx context.Context, msg mailspine.Content) (*Complaint, error) {
	rep, err := parse(ctx, msg)
	if errors.Is(err, report.ErrNotReport) || err == nil && rep.Feedback == nil {
		return nil, ErrNotFeedback
	}
	if err != nil {
		return nil, err
	}
	f := rep.Feedback
	return &Complaint{
		Text: rep.Text, Type: f.Type, UserAgent: f.UserAgent, OriginalMailFrom: f.OriginalMailFrom, Recipients: f.Recipients(),
		Arrival: f.Arrival, ReportingMTA: f.ReportingMTA.Value, SourceIP: f.SourceIP, Incidents: f.Incidents,
		Returned: rep.Returned, Full: rep.Full,
	}, nil
}

func parse(ctx context.Context, msg mailspine.Content) (*report.Report, error) {
	r, err := msg.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return report.Parse(r)
}

// header returns the header of the returned message, as far as it goes. Some systems put an empty line or
// the "From " line of a mailbox file in front of it.
func (c *Complaint) header() *mailspine.Header {
	b := bytes.TrimLeft(c.Returned, "\r\n")
	if bytes.HasPrefix(b, []byte("From ")) || bytes.HasPrefix(b, []byte(">From ")) {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	h, err := mailspine.ParseHeader(bytes.NewReader(b), 0)
	if err != nil {
		return &mailspine.Header{}
	}
	return h
}
