package convert

import (
	"context"
	"io"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda"
)

// A Mailbox names mailboxes in a [ByMailbox].
type Mailbox struct {
	Account string // as in mda.Destination; "": all accounts
	Name    string // the name of the mailbox, as mailbox.CleanName has it; "": all mailboxes
}

// A Rule is what mailboxes want.
type Rule struct {
	Options
	// Originals is the mailbox that gets the original; "": "Originals".
	Originals string
	// Report, if not nil, is told what was done to each message. It may be called by several
	// goroutines at the same time.
	Report func(ctx context.Context, r Result)
}

// Format returns the rule as an mda.Format, for policies of one's own. Rules with the same
// options have the same name.
func (r *Rule) Format() mda.Format {
	return mda.Format{
		Name:      r.Options.String(),
		Originals: r.Originals,
		Convert: func(ctx context.Context, w io.Writer, msg mailspine.Content) (bool, error) {
			res, err := r.Write(ctx, w, msg)
			if r.Report != nil && err == nil {
				r.Report(ctx, res)
			}
			return res.Changed, err
		},
	}
}

// ByMailbox is a policy in a map, which must not change while it is in use. The rule of a mailbox is the
// first of these: for its account and name, for its account, for its name in all accounts,
// for all mailboxes of all accounts. A rule without options keeps messages as they
// are, and so does no rule.
type ByMailbox map[Mailbox]*Rule

var _ mda.FormatPolicy = (ByMailbox)(nil)

// Format implements mda.FormatPolicy. It returns no error.
func (m ByMailbox) Format(_ context.Context, dest mda.Destination, _ *mailspine.Envelope, _ mailspine.Content) (mda.Format, error) {
	for _, key := range []Mailbox{{dest.Account, dest.Mailbox}, {dest.Account, ""}, {"", dest.Mailbox}, {}} {
		if r := m[key]; r != nil {
			if r.Options.String() == "" {
				return mda.Format{}, nil
			}
			return r.Format(), nil
		}
	}
	return mda.Format{}, nil
}
