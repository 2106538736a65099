package tlsrpt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/mailspine/mailspine"
)

// A Received is a report that came in, with what is known of how.
type Received struct {
	Report *Report
	// Vouched is the domain whose DKIM signature vouches for a mail; "" for a POST, for which nobody does, and
	// where Intake.Trust decided.
	Vouched string
	// Message is the mail that the report was in, without it; nil for a POST.
	Message *Message
	// Remote is the client's address and port, as far as known: of a POST the peer's, which may be a proxy.
	Remote string
}

// A Sink takes reports that came in. It is called by many goroutines at once. An error means that the report is not taken
// and should come again: who sent it is told so, without the text. The same report may come more than once, and
// by several ways: Report.ID and Organization together tell.
type Sink func(ctx context.Context, r *Received) error

// An Intake is a Deliverer, and a RecipientChecker, for the address of a mailto destination: it takes reports out of their
// mails and hands them to Handle.
//
// What is no report, is too large, or is not signed by who sends it (section 3: it must be ignored) goes to Review, or is dropped
// with a line in the log: a refusal would bounce to senders who may be forged. So Deliver fails only with temporary errors, when Handle or Review do or
// the message cannot be read; and, for recipients that are not in Addresses, with 550 5.1.1.
//
// It is safe for concurrent use; its fields must not change once it is in use, and it must not be copied then. It holds a
// whole report in memory: see ParseReport and Concurrent.
type Intake struct {
	// Addresses are those that take reports; none: every recipient does.
	Addresses []mailspine.Address
	Handle    Sink // required
	// Trust decides whether a report is believed, by the verdict of the envelope, which may be nil; it returns the domain that vouches, or an error
	// that says why not. nil: TrustDKIM.
	Trust func(v *mailspine.Verdict, m *Message) (domain string, err error)
	// Review takes what is not believed or understood, as it came. nil: it is dropped.
	Review mailspine.Deliverer
	// Concurrent bounds the mails that are read and handled at a time: one of 20 KB can unpack to a report that takes over
	// 100 MB. Others wait, as long as their context lets them. 0: DefaultConcurrent.
	Concurrent int
	Logger     *slog.Logger // nil: slog.Default()

	once  sync.Once
	slots chan struct{}
}

var (
	_ mailspine.Deliverer        = (*Intake)(nil)
	_ mailspine.RecipientChecker = (*Intake)(nil)
)

// TrustDKIM believes a report with a passing DKIM signature of a domain that is the domain of From or of TLS-Report-Submitter, or above or
// below one of them, unless our DMARC checking disowns it. That the key is meant for reports (s=tlsrpt) is not checked.
func TrustDKIM(v *mailspine.Verdict, m *Message) (string, error) {
	switch {
	case v == nil || v.DKIM != "pass":
		return "", errors.New("no DKIM signature passes")
	case v.Disposition == "quarantine" || v.Disposition == "reject":
		return "", errors.New("the author's domain disowns it (DMARC)")
	}
	from := headerDomain(m.From.Domain)
	for _, d := range v.DKIMDomains {
		d, err := cleanDomain(d)
		if err == nil && (related(d, from) || related(d, m.Submitter)) {
			return d, nil
		}
	}
	return "", errors.New("no DKIM signature is of the domain that sends it")
}

// related reports whether two domains are one, or one is above the other.
func related(a, b string) bool {
	return b != "" && (a == b || strings.HasSuffix(a, "."+b) || strings.HasSuffix(b, "."+a))
}

func (in *Intake) logger() *slog.Logger {
	if in.Logger != nil {
		return in.Logger
	}
	return slog.Default()
}

func (in *Intake) mine(a mailspine.Address) bool {
	return len(in.Addresses) == 0 || slices.ContainsFunc(in.Addresses, func(b mailspine.Address) bool {
		// An address that we chose ourselves has a local part of which the case does not matter.
		return strings.EqualFold(a.Local, b.Local) && (mailspine.Address{Local: "x", Domain: a.Domain}).Equal(mailspine.Address{Local: "x", Domain: b.Domain})
	})
}

func noSuchUser() error { return mailspine.Errorf(550, "5.1.1", "No such user here") }

// CheckRecipient takes Addresses.
func (in *Intake) CheckRecipient(_ context.Context, _ *mailspine.Envelope, rcpt mailspine.Recipient) error {
	if !in.mine(rcpt.Address) {
		return noSuchUser()
	}
	return nil
}

// Deliver takes in a report, once for all of the recipients that are in Addresses.
func (in *Intake) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	if in.Handle == nil {
		return errors.New("tlsrpt: Intake.Handle is nil")
	}
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	var index []int
	for i, r := range env.Recipients {
		if in.mine(r.Address) {
			index = append(index, i)
		} else {
			errs[i] = noSuchUser()
		}
	}
	if len(index) == 0 {
		return errs.Err()
	}
	err := in.inTurn(ctx, env, index, msg)
	for k, i := range index {
		errs[i] = mailspine.ErrorAt(err, k)
	}
	return errs.Err()
}

// inTurn calls take when there is a slot.
func (in *Intake) inTurn(ctx context.Context, env *mailspine.Envelope, index []int, msg mailspine.Content) error {
	in.once.Do(func() { in.slots = make(chan struct{}, cmp.Or(max(in.Concurrent, 0), DefaultConcurrent)) })
	select {
	case in.slots <- struct{}{}:
	case <-ctx.Done():
		return retry("wait for others", ctx.Err())
	}
	defer func() { <-in.slots }()
	return in.take(ctx, env, index, msg)
}

// take returns temporary errors only, of the recipients at index.
func (in *Intake) take(ctx context.Context, env *mailspine.Envelope, index []int, msg mailspine.Content) error {
	body, err := msg.Open(ctx)
	if err != nil {
		return retry("read a report", err)
	}
	m, err := ParseMessage(body)
	body.Close()
	if errors.Is(err, ErrNotReport) || errors.Is(err, ErrTooLarge) {
		return in.review(ctx, env, index, msg, err)
	}
	if err != nil {
		return retry("read a report", err)
	}
	trust := in.Trust
	if trust == nil {
		trust = TrustDKIM
	}
	domain, err := trust(env.Verdict, m)
	if err != nil {
		return in.review(ctx, env, index, msg, err)
	}
	rec := &Received{Report: m.Report, Vouched: domain, Message: m}
	m.Report = nil
	if env.Origin.Addr.IsValid() {
		rec.Remote = env.Origin.Addr.String()
	}
	if err := in.Handle(ctx, rec); err != nil {
		return retry("handle a report", err)
	}
	return nil
}

func retry(what string, err error) error {
	return mailspine.Errorf(451, "4.3.0", "Local error in processing").WithCause(fmt.Errorf("tlsrpt: %s: %w", what, err))
}

func (in *Intake) review(ctx context.Context, env *mailspine.Envelope, index []int, msg mailspine.Content, why error) error {
	if in.Review != nil {
		sub := env.Subset(index)
		sub.ID = sub.PartID()
		err := in.Review.Deliver(mailspine.WithSubset(ctx, index), sub, msg)
		if err == nil {
			return nil
		}
		errs := mailspine.ErrorsFor(err, len(index))
		for i, err := range errs {
			if err != nil {
				errs[i] = retry("review", err)
			}
		}
		return errs.Err()
	}
	in.logger().WarnContext(ctx, "tlsrpt: mail to a report address is dropped", "id", env.ID, "from", env.From.String(), "reason", why)
	return nil
}
