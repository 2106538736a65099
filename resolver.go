package mailspine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// A Type is a DNS record type, with its number from the IANA registry.
type Type uint16

// The types that mail needs.
const (
	TypeA     Type = 1
	TypeCNAME Type = 5
	TypePTR   Type = 12
	TypeMX    Type = 15
	TypeTXT   Type = 16
	TypeAAAA  Type = 28
	TypeSRV   Type = 33
	TypeTLSA  Type = 52
)

var typeNames = map[Type]string{
	TypeA: "A", TypeCNAME: "CNAME", TypePTR: "PTR", TypeMX: "MX",
	TypeTXT: "TXT", TypeAAAA: "AAAA", TypeSRV: "SRV", TypeTLSA: "TLSA",
}

// String returns the mnemonic, or "TYPE99" (RFC 3597 section 5).
func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// A Resolver looks up DNS records.
//
// name is a domain name in ASCII (A-labels), with or without a trailing dot, always
// taken as absolute: no search list. The lookup follows CNAMEs. The error is
// nil exactly if there is at least one record of type t. Otherwise it is a
// *DNSError that matches one of [ErrNXDomain], [ErrNoData], [ErrDNSTemporary]
// and [ErrDNSBogus]; for the first two Answer.Authentic, CanonicalName and TTL
// are set, since a proof of absence counts in DANE (RFC 7672 section 2.1).
//
// A Resolver is safe for concurrent use. It bounds its own time and retries;
// an end of ctx is a temporary failure that also matches the context's error. Slices of an Answer
// may be shared (caches do): callers do not modify them.
type Resolver interface {
	Lookup(ctx context.Context, name string, t Type) (Answer, error)
}

// The ResolverFunc type makes a Resolver of a function.
type ResolverFunc func(ctx context.Context, name string, t Type) (Answer, error)

// Lookup calls f.
func (f ResolverFunc) Lookup(ctx context.Context, name string, t Type) (Answer, error) {
	return f(ctx, name, t)
}

// An Answer has the records of one type, in the field for that type and in
// the order in which they came.
type Answer struct {
	// CanonicalName is the name at the end of the CNAME chain, in lower case
	// without trailing dot.
	CanonicalName string

	Addrs []netip.Addr // A and AAAA
	MX    []MX
	TXT   []string // each record's strings joined, as SPF and DKIM want (RFC 7208 section 3.3)
	Names []string // PTR and CNAME, without trailing dot
	SRV   []SRV
	TLSA  []TLSA

	// Authentic is set if the whole answer, every CNAME included, was validated
	// with DNSSEC by a resolver that the application listed as trusted, over a
	// path that it trusts.
	Authentic bool
	// TTL is how long the answer may be kept; for absence, by RFC 2308.
	TTL time.Duration
}

// An MX is a mail exchanger. Host "" is the root, the null MX of RFC 7505.
type MX struct {
	Preference uint16
	Host       string // without trailing dot
}

// An SRV is a service location (RFC 2782).
type SRV struct {
	Priority, Weight, Port uint16
	Target                 string // without trailing dot; "": no such service
}

// A TLSA is a certificate association (RFC 6698).
type TLSA struct {
	Usage, Selector, MatchingType uint8
	Data                          []byte
}

// The four ways in which a lookup yields nothing. Match them with errors.Is.
var (
	ErrNXDomain     = errors.New("no such domain")                // the name does not exist
	ErrNoData       = errors.New("no record of this type")        // the name exists
	ErrDNSTemporary = errors.New("temporary failure")             // no answer, SERVFAIL, REFUSED: ask later
	ErrDNSBogus     = errors.New("answer failed DNSSEC checking") // proven forged or broken; ask later, trust nothing
)

// A DNSError is a lookup that yielded nothing.
type DNSError struct {
	Name   string
	Type   Type
	Kind   error  // one of the four
	Server string // who said so; "": nobody, or a cache
	Err    error  // more detail; nil: none
}

// Error names the question, the kind and the detail.
func (e *DNSError) Error() string {
	s := fmt.Sprintf("lookup %q %s: %v", e.Name, e.Type, e.Kind)
	if e.Server != "" {
		s += " from " + e.Server
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the kind and the detail.
func (e *DNSError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Temporary reports whether asking again may help: for temporary and bogus
// answers.
func (e *DNSError) Temporary() bool { return e.Kind != ErrNXDomain && e.Kind != ErrNoData }

// Timeout reports whether the lookup ran out of time.
func (e *DNSError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// IsNotFound reports whether a lookup error proves absence: the name or the
// record does not exist. Temporary and bogus answers prove nothing.
func IsNotFound(err error) bool {
	return errors.Is(err, ErrNXDomain) || errors.Is(err, ErrNoData)
}

// LookupTXT returns the TXT records of a name.
func LookupTXT(ctx context.Context, r Resolver, name string) ([]string, error) {
	a, err := r.Lookup(ctx, name, TypeTXT)
	return a.TXT, err
}

// LookupA returns the IPv4 addresses of a name.
func LookupA(ctx context.Context, r Resolver, name string) ([]netip.Addr, error) {
	a, err := r.Lookup(ctx, name, TypeA)
	return a.Addrs, err
}

// LookupAAAA returns the IPv6 addresses of a name.
func LookupAAAA(ctx context.Context, r Resolver, name string) ([]netip.Addr, error) {
	a, err := r.Lookup(ctx, name, TypeAAAA)
	return a.Addrs, err
}

// LookupMX returns the mail exchangers of a name, as they came.
func LookupMX(ctx context.Context, r Resolver, name string) ([]MX, error) {
	a, err := r.Lookup(ctx, name, TypeMX)
	return a.MX, err
}

// LookupTLSA returns the TLSA records of a name, and whether they are
// authentic: otherwise they mean nothing (RFC 7672 section 2.2).
func LookupTLSA(ctx context.Context, r Resolver, name string) (recs []TLSA, authentic bool, err error) {
	a, err := r.Lookup(ctx, name, TypeTLSA)
	return a.TLSA, a.Authentic, err
}

// LookupPTR returns the names of an address.
func LookupPTR(ctx context.Context, r Resolver, ip netip.Addr) ([]string, error) {
	a, err := r.Lookup(ctx, ReverseName(ip), TypePTR)
	return a.Names, err
}

// ReverseName returns the name under in-addr.arpa or ip6.arpa for an address
// (RFC 1035 section 3.5, RFC 3596 section 2.5). An IPv4-mapped address counts as IPv4.
func ReverseName(ip netip.Addr) string {
	ip = ip.Unmap()
	if ip.Is4() {
		b := ip.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])
	}
	const hex = "0123456789abcdef"
	b := ip.As16()
	s := make([]byte, 0, 72)
	for i := len(b) - 1; i >= 0; i-- {
		s = append(s, hex[b[i]&15], '.', hex[b[i]>>4], '.')
	}
	return string(s) + "ip6.arpa"
}
