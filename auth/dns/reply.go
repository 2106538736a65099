package dns

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
)

const (
	// maxChain bounds the CNAMEs of one lookup. Resolvers give up after 8 to 16.
	maxChain = 16
	// maxRecords bounds the records of an answer. A message of 64 KiB could have
	// four times as many, and no mail needs them.
	maxRecords = 1000
)

// A reply is a message from a server, taken apart.
type reply struct {
	mailspine.Answer
	// kind is nil for an answer with records, else one of the four. For
	// ErrDNSTemporary, another server may do better.
	kind   error
	detail error
	// next is the name to ask for if the CNAME chain ended without saying what is
	// there: canonical. "": none.
	next string

	truncated bool // ask over TCP; nothing else is set
	plain     bool // the server does not know EDNS; nothing else is set
	servFail  bool // the failure is SERVFAIL without a reason, which may hide a bogus answer
}

func failure(format string, args ...any) reply {
	return reply{kind: mailspine.ErrDNSTemporary, detail: fmt.Errorf(format, args...)}
}

// parseReply takes apart a message that q.answers has accepted. It never
// believes the AD bit: it copies it, and the caller decides.
func parseReply(msg []byte, q *query) reply {
	var m dns.Msg
	rcode := int(msg[3] & 0x0f)
	if err := m.Unpack(msg); err != nil {
		// Whoever cannot read EDNS may also be unable to say so properly.
		if rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented {
			return reply{plain: true}
		}
		if m.Truncated {
			return reply{truncated: true}
		}
		return failure("malformed reply: %w", err)
	}
	// Unpack stops early without an error where the counts lie: a header alone, or
	// less than it promises.
	for i, n := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if n != int(binary.BigEndian.Uint16(msg[4+2*i:])) && !m.Truncated {
			return failure("malformed reply: fewer records than its header says")
		}
	}
	rcode = m.Rcode // with the upper bits of EDNS
	switch rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers:
		return reply{plain: true}
	case dns.RcodeServerFailure:
		if why := bogus(&m); why != nil {
			return reply{kind: mailspine.ErrDNSBogus, detail: why}
		}
		r := failure("SERVFAIL")
		r.servFail = true
		return r
	default:
		name := dns.RcodeToString[rcode]
		if name == "" {
			name = fmt.Sprintf("RCODE %d", rcode)
		}
		return failure("%s", name)
	}
	if m.Truncated {
		return reply{truncated: true}
	}
	return interpret(&m, q.question)
}

// bogus returns the reason if a SERVFAIL says that validation failed (RFC 8914
// sections 4.7 to 4.13), else nil.
func bogus(m *dns.Msg) error {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok &&
			e.InfoCode >= dns.ExtendedErrorCodeDNSBogus && e.InfoCode <= dns.ExtendedErrorCodeNSECMissing {
			return errors.New(dns.ExtendedErrorCodeToString[e.InfoCode])
		}
	}
	return nil
}

// interpret finds the answer to q in a message without error: the CNAME chain
// from q's name, the records at its end, or the proof of their absence.
func interpret(m *dns.Msg, q question) reply {
	name := q.name + "."
	// Names that were asked for have no escapes by themselves, but some of
	// their characters are written with one.
	if m.Question != nil {
		name = strings.ToLower(m.Question[0].Name)
	}
	ttl := ^uint32(0)
	lower := func(rr dns.RR) {
		t := rr.Header().Ttl
		if t > 1<<31-1 {
			t = 0 // RFC 2181 section 8
		}
		ttl = min(ttl, t)
	}

	// One pass to sort the records, so that the chain costs no more than its length.
	cnames := map[string]*dns.CNAME{}
	records := map[string][]dns.RR{}
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET {
			continue
		}
		owner := strings.ToLower(h.Name)
		if h.Rrtype == uint16(q.typ) {
			records[owner] = append(records[owner], rr)
		} else if c, ok := rr.(*dns.CNAME); ok {
			if old := cnames[owner]; old != nil && !strings.EqualFold(old.Target, c.Target) {
				return failure("two CNAMEs for one name")
			}
			cnames[owner] = c
		}
	}
	links := 0
	for len(records[name]) == 0 && cnames[name] != nil {
		if links++; links > maxChain {
			return failure("more than %d CNAMEs", maxChain)
		}
		c := cnames[name]
		if c.Target == "" {
			return failure("malformed CNAME")
		}
		lower(c)
		name = strings.ToLower(c.Target)
	}

	r := reply{Answer: mailspine.Answer{CanonicalName: strings.TrimSuffix(name, "."), Authentic: m.AuthenticatedData}}
	if rrs := records[name]; len(rrs) > 0 {
		switch {
		case m.Rcode == dns.RcodeNameError:
			return failure("NXDOMAIN with records")
		case len(rrs) > maxRecords:
			return failure("more than %d records", maxRecords)
		}
		for _, rr := range rrs {
			if !r.add(rr) {
				return failure("malformed %s record", q.typ)
			}
			lower(rr)
		}
		r.TTL = time.Duration(ttl) * time.Second
		return r
	}

	// Nothing there. What that means depends on the authority section (RFC
	// 2308 section 2).
	var soa *dns.SOA
	referral := false
	for _, rr := range m.Ns {
		switch rr := rr.(type) {
		case *dns.SOA:
			// RDLENGTH: an SOA that is cut off at its end unpacks all the same.
			if under(name, strings.ToLower(rr.Hdr.Name)) && rr.Hdr.Class == dns.ClassINET && rr.Hdr.Rdlength >= 22 {
				soa = rr
			}
		case *dns.NS:
			referral = true
		}
	}
	if soa != nil {
		lower(soa)
		ttl = min(ttl, soa.Minttl) // RFC 2308 section 5
		r.TTL = time.Duration(ttl) * time.Second
	}
	knows := m.RecursionAvailable || m.Authoritative
	switch {
	case !knows:
		return failure("the server does not resolve")
	case m.Rcode == dns.RcodeNameError:
		r.kind = mailspine.ErrNXDomain
	case soa != nil:
		r.kind = mailspine.ErrNoData
	case links > 0:
		next, err := canonicalName(name)
		if err != nil {
			return failure("CNAME: %w", err)
		}
		r.next = next
		r.TTL = time.Duration(ttl) * time.Second
	case referral:
		return failure("the server does not resolve, and refers to others")
	case len(records)+len(cnames) > 0:
		return failure("the answer is about other names")
	default:
		// "NODATA type 3" of RFC 2308 section 2.2: not to be kept.
		r.kind = mailspine.ErrNoData
	}
	return r
}

// add puts a record into the answer, and reports whether it was sound. The
// checks are for what package miekg/dns lets through: records without data, or
// that end before their last field at the end of a message. A MX without a host
// must not become the null MX.
func (r *reply) add(rr dns.RR) bool {
	length := rr.Header().Rdlength
	switch rr := rr.(type) {
	case *dns.A:
		ip, ok := netip.AddrFromSlice(rr.A.To4())
		r.Addrs = append(r.Addrs, ip)
		return ok && length == 4
	case *dns.AAAA:
		ip, ok := netip.AddrFromSlice(rr.AAAA)
		r.Addrs = append(r.Addrs, ip)
		return ok && length == 16
	case *dns.MX:
		r.MX = append(r.MX, mailspine.MX{Preference: rr.Preference, Host: hostName(rr.Mx)})
		return rr.Mx != ""
	case *dns.TXT:
		var b strings.Builder
		for _, s := range rr.Txt {
			b.WriteString(unescape(s))
		}
		r.TXT = append(r.TXT, b.String())
		return length > 0
	case *dns.PTR:
		r.Names = append(r.Names, hostName(rr.Ptr))
		return rr.Ptr != ""
	case *dns.CNAME:
		r.Names = append(r.Names, hostName(rr.Target))
		return rr.Target != ""
	case *dns.SRV:
		r.SRV = append(r.SRV, mailspine.SRV{Priority: rr.Priority, Weight: rr.Weight, Port: rr.Port, Target: hostName(rr.Target)})
		return rr.Target != ""
	case *dns.TLSA:
		data, err := hex.DecodeString(rr.Certificate)
		r.TLSA = append(r.TLSA, mailspine.TLSA{Usage: rr.Usage, Selector: rr.Selector, MatchingType: rr.MatchingType, Data: data})
		return err == nil && length > 3
	}
	return false
}

// hostName takes off the trailing dot. Odd octets stay escaped, "\010": such a
// name is safe in a log, and refused when it is looked up.
func hostName(fqdn string) string { return strings.TrimSuffix(fqdn, ".") }
