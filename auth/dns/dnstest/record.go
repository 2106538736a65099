package dnstest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
)

// A Record is one thing known of a name: a resource record, made by [A],
// [AAAA], [MX], [TXT], [PTR], [CNAME], [SRV], [TLSA], [NS] or [SOA]; a [Fault] or a
// [FaultKind]; [TTL], [Signed] or [Unsigned].
type Record interface{ record() }

// A resource is a Record that is in the DNS.
type resource struct {
	rr  dns.RR // without owner and TTL
	txt string // of TXT: the value as it was given
	err error  // why the literal makes no record; told by Zone.Check
}

func (resource) record() {}

// typeOf returns the number of a record's type.
func typeOf(rr dns.RR) uint16 {
	switch rr.(type) {
	case *dns.A:
		return dns.TypeA
	case *dns.AAAA:
		return dns.TypeAAAA
	case *dns.CNAME:
		return dns.TypeCNAME
	case *dns.MX:
		return dns.TypeMX
	case *dns.NS:
		return dns.TypeNS
	case *dns.PTR:
		return dns.TypePTR
	case *dns.SOA:
		return dns.TypeSOA
	case *dns.SRV:
		return dns.TypeSRV
	case *dns.TLSA:
		return dns.TypeTLSA
	case *dns.TXT:
		return dns.TypeTXT
	}
	return 0
}

// A mark is a Record that is about the name.
type mark uint8

func (mark) record() {}

const (
	// Signed makes the answers for its name, and for all names below it,
	// authentic.
	Signed mark = iota + 1
	// Unsigned ends what a Signed above its name began.
	Unsigned
)

// A TTL is the time to live of all records of its name, in whole seconds.
// Without one it is [DefaultTTL].
type TTL time.Duration

func (TTL) record() {}

// DefaultTTL is the time to live of records, and of their absence, unless the
// zone says otherwise.
const DefaultTTL = 5 * time.Minute

// A returns an IPv4 address record.
func A(ip string) Record {
	addr, err := netip.ParseAddr(ip)
	if err == nil && !addr.Is4() {
		err = fmt.Errorf("%q is not an IPv4 address", ip)
	}
	if err != nil {
		return resource{err: err}
	}
	return resource{rr: &dns.A{A: addr.AsSlice()}}
}

// AAAA returns an IPv6 address record.
func AAAA(ip string) Record {
	addr, err := netip.ParseAddr(ip)
	if err == nil && (!addr.Is6() || addr.Zone() != "") {
		err = fmt.Errorf("%q is not an IPv6 address", ip)
	}
	if err != nil {
		return resource{err: err}
	}
	return resource{rr: &dns.AAAA{AAAA: addr.AsSlice()}}
}

// MX returns a mail exchanger record. A host of "" or "." is the null MX of RFC 7505.
func MX(preference uint16, host string) Record {
	h, err := fqdn(host)
	return resource{rr: &dns.MX{Preference: preference, Mx: h}, err: err}
}

// TXT returns a text record. Its value is the parts joined; each part begins a
// character string of its own, and is split where it is longer than 255 octets.
func TXT(parts ...string) Record {
	var strs []string
	total := 0
	for _, p := range parts {
		for len(p) > 255 {
			strs = append(strs, escape(p[:255]))
			total += 256
			p = p[255:]
		}
		strs = append(strs, escape(p))
		total += 1 + len(p)
	}
	var err error
	switch {
	case total > 65000:
		err = fmt.Errorf("TXT record of %d octets fits no message", total)
	case len(strs) == 0:
		err = errors.New("TXT record without a string (RFC 1035 section 3.3.14)")
	}
	return resource{rr: &dns.TXT{Txt: strs}, txt: strings.Join(parts, ""), err: err}
}

// escape writes a character string the way package dns keeps it: the
// presentation format of RFC 1035 section 5.1, without the quotes.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, "\\%03d", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// PTR returns a pointer record, for a name as mailspine.ReverseName gives it.
func PTR(host string) Record {
	h, err := fqdn(host)
	return resource{rr: &dns.PTR{Ptr: h}, err: err}
}

// CNAME returns an alias. The name has no other resource records then.
func CNAME(target string) Record {
	h, err := fqdn(target)
	return resource{rr: &dns.CNAME{Target: h}, err: err}
}

// SRV returns a service location. A target of "" or "." means that there is no
// such service.
func SRV(priority, weight, port uint16, target string) Record {
	h, err := fqdn(target)
	return resource{rr: &dns.SRV{Priority: priority, Weight: weight, Port: port, Target: h}, err: err}
}

// TLSA returns a certificate association.
func TLSA(usage, selector, matchingType uint8, data []byte) Record {
	return resource{rr: &dns.TLSA{Usage: usage, Selector: selector, MatchingType: matchingType,
		Certificate: hex.EncodeToString(data)}}
}

// NS returns a name server record. It delegates nothing: the map is one zone.
func NS(host string) Record {
	h, err := fqdn(host)
	return resource{rr: &dns.NS{Ns: h}, err: err}
}

// SOA returns a start of authority, whose minimum is how long the absence of
// names and records at and below its name may be kept (RFC 2308 section 5).
func SOA(minimum time.Duration) Record {
	if minimum < 0 {
		return resource{err: fmt.Errorf("SOA minimum of %v", minimum)}
	}
	return resource{rr: soa(minimum)}
}

func soa(minimum time.Duration) *dns.SOA {
	return &dns.SOA{Ns: "ns.invalid.", Mbox: "hostmaster.invalid.", Serial: 1, Refresh: 7200, Retry: 3600,
		Expire: 1209600, Minttl: seconds(minimum)}
}

func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), 1<<31-1))
}

func fqdn(host string) (string, error) {
	if _, ok := dns.IsDomainName(host); host != "" && !ok || strings.Contains(host, "..") {
		return ".", fmt.Errorf("%q is not a domain name", host)
	}
	return dns.Fqdn(host), nil
}

// A FaultKind is a way to fail. It is itself a Record: a fault for every
// question about its name. In memory, where there is no wire, all but
// [Truncate], [Delay] and [Spoof] are temporary failures, [Timeout] one that
// comes at once, and [Bogus] is a bogus answer.
type FaultKind uint8

func (FaultKind) record() {}

// The ways to fail.
const (
	// ServFail answers SERVFAIL.
	ServFail FaultKind = iota + 1
	// Refused answers REFUSED.
	Refused
	// NotImp answers NOTIMP.
	NotImp
	// FormErr answers FORMERR to questions with EDNS, as servers do that do not know
	// it (RFC 6891 section 7), and the truth to others.
	FormErr
	// BadVersion answers BADVERS.
	BadVersion
	// Timeout does not answer.
	Timeout
	// Truncate answers over UDP with the TC bit and nothing else, so that the
	// truth is had over TCP only.
	Truncate
	// TruncateAll sets the TC bit over TCP, too.
	TruncateAll
	// Garbage answers with octets that are no DNS message.
	Garbage
	// CutShort answers with the first three quarters of the truth, cut off
	// within a record.
	CutShort
	// WrongID answers with the ID of another question.
	WrongID
	// WrongQuestion answers a question for another name.
	WrongQuestion
	// NoQuestion answers without a question section.
	NoQuestion
	// NotResponse answers with a message whose QR bit is not set.
	NotResponse
	// Spoof answers as an attacker who guesses, first with wrong IDs and
	// questions and a wrong address, and then with the truth.
	Spoof
	// Lame answers with a referral to the root and no data, as a server that
	// does not know the name and does not resolve.
	Lame
	// Empty answers NOERROR with nothing in any section.
	Empty
	// Unrelated answers with records of another name.
	Unrelated
	// Loop answers with CNAMEs that go in a circle.
	Loop
	// Flood answers over TCP with 2,000 records, over UDP with the TC bit.
	Flood
	// Close closes a TCP connection without an answer. Over UDP it answers with the
	// TC bit.
	Close
	// Bogus answers SERVFAIL as a validating resolver does for an answer that failed
	// its checks, with an extended error (RFC 8914), unless checking is
	// disabled in the question: then it tells what the records say.
	Bogus
	// BogusPlain is Bogus by a resolver that does not know extended errors.
	BogusPlain
	// Delay is no fault by itself: use it in a Fault, with the delay.
	Delay
)

// A Fault fails in the way of its Kind, for some of the questions about a
// name.
type Fault struct {
	Kind FaultKind
	// Type is the type of the questions that it is for. 0: all.
	Type mailspine.Type
	// Times is how many questions it is for, from the first; a Server counts
	// them, a Zone by itself does not. 0: all.
	Times int
	// Delay comes before the answer, for all kinds.
	Delay time.Duration
}

func (Fault) record() {}
