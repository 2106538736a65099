package mta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
	"github.com/mailspine/mailspine/queue"
)

// A Smarthost sends all messages to one configured host, whatever their
// domains: the way out for who may not send to the world himself, or a route of a
// [Mux] to a host that no MX record names.
//
//	mux := &mta.Mux{
//		Routes:  map[string]mailspine.Deliverer{"example.org": &mta.Smarthost{Address: "10.0.0.7:25"}},
//		Default: &mta.Smarthost{Relay: relay, Address: "mail.isp.example:25"},
//	}
//
// It sends as its Relay does, with the same results, but that no MX is looked up,
// and that all recipients go over one connection, in transactions of up to
// Relay.MaxRecipients. If the host has several addresses they are tried in turn, IPv4 and IPv6
// alternating, in the order in which DNS has them.
//
// The host is the operator's choice and no stranger's. So the addresses that a Relay refuses to
// connect to (see Relay.AllowPrivate) are allowed, its name counts as secure for REQUIRETLS, and a name that
// does not exist or has no address is a mistake that defers mail (451 4.4.3) and bounces
// none. If it is one of the Relay's own names, mail loops, and is refused (554
// 5.4.6).
//
// With Credentials it authenticates itself on each connection (RFC 4954), under TLS with a certificate that is valid for the host,
// whatever the policy says, unless Unverified is set. A failure of that defers mail (451 4.7.8), and is logged as a warning: it is a
// mistake of the configuration. Connections are not shared with another Smarthost that has Credentials.
//
// It is the queue.Router of its recipients: all of a message
// share one route. It is no RecipientChecker, so a Mux takes nothing for it from strangers.
//
// A Smarthost is safe for concurrent use; its fields must not change, and it must not be copied, after first use.
type Smarthost struct {
	// Relay has the names, TLS, time-outs, limits and hooks. Its TLSPolicy is asked
	// with the host's name as the domain (an address as its literal, "[192.0.2.1]"), and the certificate is verified for that
	// name where the rule says so. Its Egress is asked with that name too. Resolver is needed only if Address has a name; Port and
	// AllowPrivate are not used. nil: a zero Relay.
	Relay *Relay
	// Address is the host and its port: "mail.example.org:25", "192.0.2.1:25" or
	// "[2001:db8::1]:25". Required: without a valid one every delivery is a
	// temporary error. See Validate.
	Address string

	// Credentials are what it logs in with: on each new connection, with the strongest mechanism that host and Credentials have in
	// common. Zero: it does not.
	Credentials smtpclient.Credentials
	// Unverified sends the Credentials also under TLS with any certificate, as far as TLSPolicy allows it; without TLS only
	// what Credentials.AllowClear allows.
	Unverified bool
	// ImplicitTLS begins the connection with TLS, as on port 465 (RFC 8314). false: STARTTLS, where it is offered and as TLSPolicy
	// demands.
	ImplicitTLS bool
	// LMTP speaks LMTP (RFC 2033), to a host that delivers for good: each recipient has a result of its own after the
	// message. Not on port 25.
	LMTP bool

	zero Relay // in place of a nil Relay
}

var (
	_ mailspine.Deliverer = (*Smarthost)(nil)
	_ queue.Router        = (*Smarthost)(nil)
)

// An endpoint is the host of a Smarthost.
type endpoint struct {
	name string // as in host
	port uint16
	manner
}

// A manner is how a Smarthost is spoken to.
type manner struct {
	implicit, lmtp bool
	cred           *smtpclient.Credentials // nil: none
	unverified     bool
}

func (s *Smarthost) manner() manner {
	m := manner{implicit: s.ImplicitTLS, lmtp: s.LMTP}
	if !s.Credentials.IsZero() {
		m.cred, m.unverified = &s.Credentials, s.Unverified
	}
	return m
}

func (s *Smarthost) endpoint() (*endpoint, error) {
	bad := func(err error) (*endpoint, error) {
		return nil, fmt.Errorf("mta: Smarthost.Address %q: %w", s.Address, err)
	}
	name, p, err := net.SplitHostPort(s.Address)
	if err != nil {
		return bad(errors.New("not host:port"))
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 {
		return bad(errors.New("the port is not a number from 1 to 65535"))
	}
	if s.LMTP && port == 25 {
		return bad(errors.New("LMTP on port 25 (RFC 2033 section 5)"))
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		if ip = ip.Unmap(); ip.Zone() != "" {
			return bad(errors.New("an address with a zone"))
		}
		if name = "[" + ip.String() + "]"; ip.Is6() {
			name = "[IPv6:" + ip.String() + "]"
		}
		return &endpoint{name, uint16(port), s.manner()}, nil
	}
	ascii, err := mailspine.ASCIIDomain(strings.TrimSuffix(name, "."))
	if err == nil {
		err = (mailspine.Address{Local: "x", Domain: ascii}).Validate()
	}
	if err == nil && !isHostname(ascii) {
		err = errors.New("not a host name")
	}
	if err != nil {
		return bad(err)
	}
	return &endpoint{ascii, uint16(port), s.manner()}, nil
}

// hosts is what transfer.hosts is for a domain.
func (e *endpoint) hosts(t *transfer) ([]host, error) {
	if t.isSelf(e.name) {
		return nil, mailspine.Errorf(554, "5.4.6", "Mail for %s loops back to this host", e.name)
	}
	if !t.rule.allows(e.name) {
		return nil, mailspine.Errorf(451, "4.7.5", "The host %s is not allowed by its TLS policy", e.name)
	}
	if e.implicit {
		t.rule.Level = max(t.rule.Level, TLSEncrypt)
	}
	if e.cred != nil && !e.unverified {
		t.rule.Level = max(t.rule.Level, TLSVerify)
	}
	return []host{{name: e.name}}, nil
}

// Validate says what is wrong with the fields, so that it is known before there is mail.
func (s *Smarthost) Validate() error {
	e, err := s.endpoint()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(e.name, "[") && s.relay().Resolver == nil {
		return fmt.Errorf("mta: Smarthost.Address %q has a name, and there is no Relay.Resolver", s.Address)
	}
	return nil
}

func (s *Smarthost) relay() *Relay {
	if s.Relay != nil {
		return s.Relay
	}
	return &s.zero
}

// CloseIdle is that of the Relay: it ends the connections that are kept for further deliveries, also to
// other hosts if they share the Relay.
func (s *Smarthost) CloseIdle() { s.relay().CloseIdle() }

// Deliver sends a message to the host. Its errors are as those of [Relay].
func (s *Smarthost) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	r := s.relay()
	e, err := s.endpoint()
	if err != nil {
		return err
	}
	facts, err := r.prepare(ctx, env, msg)
	if err != nil {
		return err
	}
	defer r.release(facts)
	errs := make(mailspine.RecipientErrors, len(env.Recipients))
	var pending []int
	for i, rcpt := range env.Recipients {
		if _, errs[i] = recipientDomain(rcpt); errs[i] == nil {
			pending = append(pending, i)
		}
	}
	if len(pending) > 0 {
		t := r.transfer(ctx, env, msg, facts, e.name, errs)
		t.fixed = e
		t.run(ctx, pending)
	}
	return errs.Err()
}

// Route returns the same route for each recipient: Address.
func (s *Smarthost) Route(context.Context, *mailspine.Envelope, mailspine.Recipient) (queue.Route, error) {
	if _, err := s.endpoint(); err != nil {
		return "", err
	}
	return queue.Route(strings.ToLower(s.Address)), nil
}
