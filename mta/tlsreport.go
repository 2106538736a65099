package mta

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/mtasts"
	"github.com/mailspine/mailspine/auth/tlsrpt"
)

// outcome is told how the TLS of a connection came out, once for each connection that got as far as the answer to
// EHLO, for reports. err: why there is no TLS, or none that is good enough; nil: the handshake was done, or TLS was not offered
// and need not be (s.tls is zero then).
func (t *transfer) outcome(ctx context.Context, s *session, err error) {
	if !t.reports() || ctx.Err() != nil { // we gave up ourselves
		return
	}
	// A server that hangs up in the handshake counts, and so does one that is not heard of any more: whoever
	// wants the message in clear does it so.
	result, reason := tlsResult(s.tls, err)
	rep := tlsrpt.Session{
		Policy: tlsrpt.Policy{Type: tlsrpt.PolicyNone},
		Result: result, Reason: reason,
		ReceivingMX: s.host, ReceivingMXHelo: s.serverName(),
		SendingIP: addrOf(s.c.LocalAddr()),
	}
	if a, err := netip.ParseAddrPort(s.addr); err == nil {
		rep.ReceivingIP = a.Addr()
	}
	d := &t.tls
	if d.byDANE() {
		rep.Policy = tlsrpt.TLSAPolicy(d.recs.Base, d.recs.All)
		t.record(ctx, rep)
		return
	}
	if len(d.recs.All) > 0 {
		// RFC 8460 section 4.3.2.1: the message goes all the same, if there is TLS.
		bad := rep
		bad.Policy = tlsrpt.TLSAPolicy(d.recs.Base, d.recs.All)
		if result == tlsrpt.Success {
			bad.Result, bad.Reason = tlsrpt.TLSAInvalid, "no usable TLSA record"
		}
		t.record(ctx, bad)
		if d.sts.Mode == "" {
			return
		}
	}
	if d.sts.Mode != "" {
		rep.Policy = stsReport(d.sts)
		switch {
		case d.unlisted:
			rep.Result, rep.Reason = tlsrpt.ValidationFailure, reasonUnlisted
		case result == tlsrpt.Success && d.tested != nil && *d.tested != nil:
			rep.Result, rep.Reason = tlsrpt.ResultOf(*d.tested), tlsrpt.ReasonOf(*d.tested)
		}
		if d.sts.Mode == mtasts.ModeTesting && rep.Result != tlsrpt.Success {
			t.log(ctx, slog.LevelDebug, "mta: a tested MTA-STS policy does not hold", s.peer, errors.New(string(rep.Result)+": "+rep.Reason))
		}
	}
	t.record(ctx, rep)
}

// reasonUnlisted is what a report says of a host that its MTA-STS policy does not list. RFC 8460 has no type for it.
const reasonUnlisted = "the MX host is not in the MTA-STS policy"

// tlsResult classifies what outcome was told.
func tlsResult(info mailspine.TLSInfo, err error) (tlsrpt.ResultType, string) {
	var de *dane.VerifyError
	if errors.As(err, &de) {
		return tlsrpt.ResultType(de.Reason.ResultType()), tlsrpt.ReasonOf(de)
	}
	if failed := handshakeError(err); failed != nil {
		return tlsrpt.ResultOf(failed), tlsrpt.ReasonOf(failed)
	}
	if err != nil || info.Version == "" {
		return tlsrpt.StartTLSNotSupported, ""
	}
	return tlsrpt.Success, ""
}

// handshakeError returns what failed in STARTTLS after the server agreed to it; nil: nothing.
func handshakeError(err error) error {
	var te *tlsError
	if errors.As(err, &te) {
		return te.Err
	}
	return nil
}

// reportHost tells of a host that must not be used, so that there is no connection.
func (t *transfer) reportHost(ctx context.Context, h host, err error) {
	if !t.reports() {
		return
	}
	var le *daneLookupError
	rep := tlsrpt.Session{ReceivingMX: h.name}
	switch {
	case errors.As(err, &le):
		rep.Policy = tlsrpt.Policy{Type: tlsrpt.PolicyTLSA, Domain: h.name}
		rep.Result, rep.Reason = tlsrpt.DNSSECInvalid, "the TLSA records could not be looked up"
		if errors.Is(err, mailspine.ErrDNSBogus) {
			rep.Reason = "the DNSSEC validation of the TLSA records failed"
		}
	case errors.Is(err, errUnlisted):
		rep.Policy = stsReport(t.sts.policy)
		rep.Result, rep.Reason = tlsrpt.ValidationFailure, reasonUnlisted
	default:
		return
	}
	t.record(ctx, rep)
}

// reportFetch tells once of a problem with the MTA-STS policy.
func (t *transfer) reportFetch(ctx context.Context) {
	if t.sts == nil || t.sts.problem == nil || t.sts.told || !t.reports() {
		return
	}
	t.sts.told = true
	var me *mtasts.Error
	if !errors.As(t.sts.problem, &me) || me.Kind == mtasts.KindDNS {
		return // nobody knows whether there is a policy
	}
	t.record(ctx, tlsrpt.Session{
		Policy: stsReport(t.sts.policy),
		Result: tlsrpt.ResultType(me.Kind.ResultType()), Reason: tlsrpt.ReasonOf(me),
	})
}

// stsReport is an MTA-STS policy as reports have it.
func stsReport(p mtasts.Policy) tlsrpt.Policy {
	rep := tlsrpt.Policy{Type: tlsrpt.PolicySTS}
	if p.Mode != "" {
		rep.Strings, rep.MXHosts = p.Lines(), p.MX
	}
	return rep
}

// reports reports whether somebody is told of the transfer's sessions. Where what the domain publishes does not count, the outcome
// says nothing about it.
func (t *transfer) reports() bool {
	return t.r.TLSReports != nil && t.fixed == nil && t.publishes()
}

// record gives a session to the Recorder, for each domain of the transfer: a policy without a Domain is that of each. What the
// Recorder says is for the log only.
func (t *transfer) record(ctx context.Context, s tlsrpt.Session) {
	own := s.Policy.Domain == ""
	for _, p := range t.parts {
		s.Domain = p.domain
		if own {
			s.Policy.Domain = p.domain
		}
		if err := t.r.TLSReports.Record(context.WithoutCancel(ctx), s); err != nil {
			t.log(ctx, slog.LevelWarn, "mta: a TLS session could not be recorded", s.ReceivingMX, err)
		}
	}
}

// serverName is the name that the server gave itself in its reply to EHLO; "": not known.
func (s *session) serverName() string {
	r := s.t.said
	if len(r.Lines) == 0 || !r.OK() {
		return ""
	}
	name, _, _ := strings.Cut(r.Lines[0], " ")
	return name
}

// addrOf returns the address of one side of a connection; zero: there is none, as in a pipe.
func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
