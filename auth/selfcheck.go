package auth

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
)

// A SelfCheck is what a Signer does to refuse what receivers would: it reads the signed message once more and verifies the
// signatures with the keys that are published, and evaluates DMARC for the author domain. SPF is not counted, since it depends on the address that the
// message will leave from, and does not survive forwarding.
//
// A message is refused with
//
//   - 451 4.7.20 if one of our signatures does not pass for the sake of its key: it cannot be fetched, is not published, is another
//     one, is too small. That is the set-up's fault and not the message's, so nothing bounces for it;
//   - 550 5.7.20 if one does not pass although its key is the right one: something in the message breaks it;
//   - 550 5.7.22 if the author domain's DMARC policy is published and no signature of ours is aligned with the author domain
//     (RFC 7372 section 3.1 has both codes);
//   - 451 4.7.1 if that could not be found out.
//
// Only Resolver is required: give it a dns.Cache, as each message asks for its keys and for the policy.
// A message that is not signed (Signer.Required is false) is not checked. It is safe for concurrent use as long as its fields do not change.
type SelfCheck struct {
	Resolver mailspine.Resolver
	// DKIM and DMARC have the limits of receivers; the zero values are the defaults. An empty Resolver in them is taken from above.
	DKIM  dkim.Verifier
	DMARC dmarc.Verifier
}

// Outgoing is a message that is about to go on.
type Outgoing struct {
	// Author is the author domain, in lower case with A-labels; "": there is not exactly one.
	Author string
	// Header is that of the message without our signatures.
	Header *mailspine.Header
	// Content is the message with our signatures, which are its first fields.
	Content mailspine.Content
	// Signatures are our own signatures as SelfCheck found them, in the order of the keys; nil: there is no SelfCheck, or no signature.
	Signatures []dkim.Verification
	// DMARC is the result for the signatures alone; Status "": there is no SelfCheck, or no signature.
	DMARC dmarc.Result

	keys []dkim.SigningKey // those that we signed with
}

func (c *SelfCheck) check(ctx context.Context, m *Outgoing) error {
	d, p := c.DKIM, c.DMARC
	if d.Resolver == nil {
		d.Resolver = c.Resolver
	}
	if p.Resolver == nil {
		p.Resolver = c.Resolver
	}
	d.MaxSignatures = len(m.keys) // ours are on top; what others signed before is theirs
	all, err := d.Verify(ctx, m.Content)
	if err != nil {
		return fmt.Errorf("auth: read the signed message: %w", err)
	}
	m.Signatures = all[:min(len(all), len(m.keys))]
	var ids []dmarc.Identifier
	for i, v := range m.Signatures {
		cause := fmt.Errorf("auth: own signature %s of %s is %s: %s", v.Selector, v.Domain, v.Status, v.Problem)
		switch {
		case v.Status == dkim.Pass:
		case v.Status == dkim.Fail && m.keys[i].Published(ctx, d.Resolver) == nil:
			return mailspine.Errorf(550, "5.7.20", "Message would not pass authentication: it breaks its signature of %s", v.Domain).WithCause(cause)
		default:
			return mailspine.Errorf(451, "4.7.20", "The signing key of %s is not in order, try again later", v.Domain).WithCause(cause)
		}
		ids = append(ids, dmarc.Identifier{Domain: v.Domain, Status: string(v.Status)})
	}
	m.DMARC = p.Verify(ctx, m.Author, dmarc.Identifier{}, ids)
	switch m.DMARC.Status {
	case dmarc.Fail, dmarc.PermError:
		return mailspine.Errorf(550, "5.7.22", "Message would not pass DMARC: no signature is aligned with %s", m.Author).
			WithCause(fmt.Errorf("auth: dmarc=%s: %s", m.DMARC.Status, m.DMARC.Problem))
	case dmarc.TempError:
		if len(m.DMARC.AlignedDKIM) == 0 {
			return mailspine.Errorf(451, "4.7.1", "DMARC of %s cannot be evaluated now, try again later", m.Author).
				WithCause(fmt.Errorf("auth: dmarc=temperror: %s", m.DMARC.Problem))
		}
	}
	return nil
}
