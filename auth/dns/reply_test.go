package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
)

func mustQuery(t testing.TB, name string, typ mailspine.Type, how manner) *query {
	t.Helper()
	n, err := canonicalName(name)
	if err != nil {
		t.Fatal(err)
	}
	q, err := newQuery(question{n, typ}, how)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// message packs a reply to q with records in presentation format; those after "--" are
// in the authority section.
func message(t testing.TB, q *query, change func(*dns.Msg), records ...string) []byte {
	t.Helper()
	var ask, m dns.Msg
	if err := ask.Unpack(q.wire); err != nil {
		t.Fatal(err)
	}
	m.SetReply(&ask)
	m.RecursionAvailable = true
	section := &m.Answer
	for _, s := range records {
		if s == "--" {
			section = &m.Ns
			continue
		}
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		*section = append(*section, rr)
	}
	if change != nil {
		change(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const exampleSOA = "example. 900 IN SOA ns.example. host.example. 1 7200 900 86400 60"

func TestReply(t *testing.T) {
	var chain17 []string
	for i := range 17 {
		chain17 = append(chain17, fmt.Sprintf("c%d.example. 60 IN CNAME c%d.example.", i, i+1))
	}
	rcode := func(n int) func(*dns.Msg) { return func(m *dns.Msg) { m.Rcode = n } }
	ede := func(code uint16) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.Rcode = dns.RcodeServerFailure
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: code}}
		}
	}
	for _, c := range []struct {
		about   string
		name    string
		typ     mailspine.Type
		change  func(*dns.Msg)
		records []string
		want    mailspine.Answer
		kind    error
		detail  string
		next    string
	}{
		{about: "an address", name: "a.example", typ: mailspine.TypeA,
			records: []string{"a.example. 60 IN A 192.0.2.1", "A.EXAMPLE. 30 IN A 192.0.2.2"},
			want:    mailspine.Answer{CanonicalName: "a.example", Addrs: addrs("192.0.2.1", "192.0.2.2"), TTL: 30 * time.Second}},
		{about: "the AD bit is copied", name: "a.example", typ: mailspine.TypeAAAA,
			change:  func(m *dns.Msg) { m.AuthenticatedData = true },
			records: []string{"a.example. 60 IN AAAA 2001:db8::1"},
			want:    mailspine.Answer{CanonicalName: "a.example", Addrs: addrs("2001:db8::1"), TTL: time.Minute, Authentic: true}},
		{about: "text is joined and unescaped", name: "a.example", typ: mailspine.TypeTXT,
			records: []string{`a.example. 60 IN TXT "v=spf1 " "a:\"q\"\\ \200\010 -all"`},
			want:    mailspine.Answer{CanonicalName: "a.example", TXT: []string{"v=spf1 a:\"q\"\\ \xc8\n -all"}, TTL: time.Minute}},
		{about: "the null MX", name: "a.example", typ: mailspine.TypeMX,
			records: []string{"a.example. 60 IN MX 0 ."},
			want:    mailspine.Answer{CanonicalName: "a.example", MX: []mailspine.MX{{}}, TTL: time.Minute}},
		{about: "services", name: "_x._tcp.example", typ: mailspine.TypeSRV,
			records: []string{"_x._tcp.example. 60 IN SRV 1 2 3 h.example."},
			want:    mailspine.Answer{CanonicalName: "_x._tcp.example", SRV: []mailspine.SRV{{Priority: 1, Weight: 2, Port: 3, Target: "h.example"}}, TTL: time.Minute}},
		{about: "certificates", name: "_25._tcp.example", typ: mailspine.TypeTLSA,
			records: []string{"_25._tcp.example. 60 IN TLSA 3 1 1 00ff"},
			want:    mailspine.Answer{CanonicalName: "_25._tcp.example", TLSA: []mailspine.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: []byte{0, 255}}}, TTL: time.Minute}},
		{about: "hostile names stay escaped", name: "1.2.0.192.in-addr.arpa", typ: mailspine.TypePTR,
			records: []string{`1.2.0.192.in-addr.arpa. 60 IN PTR a\010b\.c.example.`},
			want:    mailspine.Answer{CanonicalName: "1.2.0.192.in-addr.arpa", Names: []string{`a\010b\.c.example`}, TTL: time.Minute}},
		{about: "a chain in any order, its shortest TTL", name: "c0.example", typ: mailspine.TypeA,
			records: []string{"c2.example. 60 IN A 192.0.2.1", "c1.example. 7 IN CNAME c2.example.", "c0.example. 60 IN CNAME C1.example."},
			want:    mailspine.Answer{CanonicalName: "c2.example", Addrs: addrs("192.0.2.1"), TTL: 7 * time.Second}},
		{about: "the alias itself", name: "c0.example", typ: mailspine.TypeCNAME,
			records: []string{"c0.example. 60 IN CNAME c1.example."},
			want:    mailspine.Answer{CanonicalName: "c0.example", Names: []string{"c1.example"}, TTL: time.Minute}},
		{about: "records of other names are left out", name: "a.example", typ: mailspine.TypeA,
			records: []string{"victim.example. 60 IN A 192.0.2.66", "a.example. 60 IN A 192.0.2.1"},
			want:    mailspine.Answer{CanonicalName: "a.example", Addrs: addrs("192.0.2.1"), TTL: time.Minute}},
		{about: "records of other classes are left out", name: "a.example", typ: mailspine.TypeTXT,
			records: []string{`a.example. 60 CH TXT "chaos"`, `a.example. 60 IN TXT "net"`},
			want:    mailspine.Answer{CanonicalName: "a.example", TXT: []string{"net"}, TTL: time.Minute}},
		{about: "only other names", name: "a.example", typ: mailspine.TypeA,
			records: []string{"victim.example. 60 IN A 192.0.2.66"},
			kind:    mailspine.ErrDNSTemporary, detail: "about other names"},
		{about: "a TTL with the highest bit is zero (RFC 2181 section 8)", name: "a.example", typ: mailspine.TypeA,
			records: []string{"a.example. 2147483648 IN A 192.0.2.1"},
			want:    mailspine.Answer{CanonicalName: "a.example", Addrs: addrs("192.0.2.1")}},
		{about: "no such name", name: "no.example", typ: mailspine.TypeA, change: rcode(dns.RcodeNameError),
			records: []string{"--", exampleSOA},
			want:    mailspine.Answer{CanonicalName: "no.example", TTL: time.Minute}, kind: mailspine.ErrNXDomain},
		{about: "no such name at the end of a chain", name: "c0.example", typ: mailspine.TypeA, change: rcode(dns.RcodeNameError),
			records: []string{"c0.example. 30 IN CNAME no.example.", "--", exampleSOA},
			want:    mailspine.Answer{CanonicalName: "no.example", TTL: 30 * time.Second}, kind: mailspine.ErrNXDomain},
		{about: "no data", name: "a.example", typ: mailspine.TypeA,
			records: []string{"--", exampleSOA},
			want:    mailspine.Answer{CanonicalName: "a.example", TTL: time.Minute}, kind: mailspine.ErrNoData},
		{about: "no data, proven", name: "a.example", typ: mailspine.TypeTLSA, change: func(m *dns.Msg) { m.AuthenticatedData = true },
			records: []string{"--", exampleSOA},
			want:    mailspine.Answer{CanonicalName: "a.example", TTL: time.Minute, Authentic: true}, kind: mailspine.ErrNoData},
		{about: "the SOA's own TTL is shorter", name: "a.example", typ: mailspine.TypeA,
			records: []string{"--", "example. 5 IN SOA ns.example. host.example. 1 7200 900 86400 60"},
			want:    mailspine.Answer{CanonicalName: "a.example", TTL: 5 * time.Second}, kind: mailspine.ErrNoData},
		{about: "the SOA of another zone gives no TTL", name: "a.example", typ: mailspine.TypeA, change: rcode(dns.RcodeNameError),
			records: []string{"--", "other. 900 IN SOA ns.other. host.other. 1 7200 900 86400 60"},
			want:    mailspine.Answer{CanonicalName: "a.example"}, kind: mailspine.ErrNXDomain},
		{about: "an SOA of another class gives no TTL", name: "a.example", typ: mailspine.TypeA,
			records: []string{"--", "example. 900 CH SOA ns.example. host.example. 1 7200 900 86400 60"},
			want:    mailspine.Answer{CanonicalName: "a.example"}, kind: mailspine.ErrNoData},
		{about: "no data without SOA (RFC 2308 section 2.2, type 3)", name: "a.example", typ: mailspine.TypeA,
			want: mailspine.Answer{CanonicalName: "a.example"}, kind: mailspine.ErrNoData},
		{about: "a referral", name: "a.example", typ: mailspine.TypeA,
			records: []string{"--", "example. 60 IN NS ns.example."},
			kind:    mailspine.ErrDNSTemporary, detail: "refers to others"},
		{about: "neither resolving nor authoritative", name: "a.example", typ: mailspine.TypeA,
			change: func(m *dns.Msg) { m.RecursionAvailable = false; m.Rcode = dns.RcodeNameError },
			kind:   mailspine.ErrDNSTemporary, detail: "does not resolve"},
		{about: "an authoritative server", name: "a.example", typ: mailspine.TypeA,
			change:  func(m *dns.Msg) { m.RecursionAvailable, m.Authoritative = false, true },
			records: []string{"--", exampleSOA},
			want:    mailspine.Answer{CanonicalName: "a.example", TTL: time.Minute}, kind: mailspine.ErrNoData},
		{about: "a chain left open", name: "c0.example", typ: mailspine.TypeA,
			records: []string{"c0.example. 30 IN CNAME elsewhere.test."},
			want:    mailspine.Answer{CanonicalName: "elsewhere.test", TTL: 30 * time.Second}, next: "elsewhere.test"},
		{about: "a chain left open at a name that nobody asks for", name: "c0.example", typ: mailspine.TypeA,
			records: []string{`c0.example. 30 IN CNAME else\000where.test.`},
			kind:    mailspine.ErrDNSTemporary, detail: "malformed name"},
		{about: "a circle", name: "c0.example", typ: mailspine.TypeA,
			records: []string{"c0.example. 60 IN CNAME c1.example.", "c1.example. 60 IN CNAME c0.example."},
			kind:    mailspine.ErrDNSTemporary, detail: "more than 16 CNAMEs"},
		{about: "a chain that is too long", name: "c0.example", typ: mailspine.TypeA,
			records: append([]string{"c17.example. 60 IN A 192.0.2.1"}, chain17...),
			kind:    mailspine.ErrDNSTemporary, detail: "more than 16 CNAMEs"},
		{about: "the longest chain", name: "c1.example", typ: mailspine.TypeA,
			records: append([]string{"c17.example. 60 IN A 192.0.2.1"}, chain17...),
			want:    mailspine.Answer{CanonicalName: "c17.example", Addrs: addrs("192.0.2.1"), TTL: time.Minute}},
		{about: "two aliases", name: "c0.example", typ: mailspine.TypeA,
			records: []string{"c0.example. 60 IN CNAME a.example.", "c0.example. 60 IN CNAME b.example."},
			kind:    mailspine.ErrDNSTemporary, detail: "two CNAMEs"},
		{about: "NXDOMAIN with records", name: "a.example", typ: mailspine.TypeA, change: rcode(dns.RcodeNameError),
			records: []string{"a.example. 60 IN A 192.0.2.1"},
			kind:    mailspine.ErrDNSTemporary, detail: "NXDOMAIN with records"},
		{about: "SERVFAIL", name: "a.example", typ: mailspine.TypeA, change: rcode(dns.RcodeServerFailure),
			kind: mailspine.ErrDNSTemporary, detail: "SERVFAIL"},
		{about: "SERVFAIL for want of a signature", name: "a.example", typ: mailspine.TypeA, change: ede(dns.ExtendedErrorCodeRRSIGsMissing),
			kind: mailspine.ErrDNSBogus, detail: "RRSIGs Missing"},
		{about: "SERVFAIL for another reason", name: "a.example", typ: mailspine.TypeA, change: ede(dns.ExtendedErrorCodeNoReachableAuthority),
			kind: mailspine.ErrDNSTemporary, detail: "SERVFAIL"},
		{about: "REFUSED", name: "a.example", typ: mailspine.TypeA, change: rcode(dns.RcodeRefused),
			kind: mailspine.ErrDNSTemporary, detail: "REFUSED"},
		{about: "an RCODE without a name", name: "a.example", typ: mailspine.TypeA, change: rcode(13),
			kind: mailspine.ErrDNSTemporary, detail: "RCODE 13"},
		{about: "an unescaped special character in the name asked for", name: "a'b@c.example", typ: mailspine.TypeA,
			records: []string{`a\'b\@c.example. 60 IN A 192.0.2.1`},
			want:    mailspine.Answer{CanonicalName: `a\'b\@c.example`, Addrs: addrs("192.0.2.1"), TTL: time.Minute}},
		{about: "the root", name: ".", typ: mailspine.TypeMX,
			records: []string{"--", ". 60 IN SOA a. b. 1 1 1 1 60"},
			want:    mailspine.Answer{TTL: time.Minute}, kind: mailspine.ErrNoData},
	} {
		t.Run(strings.ReplaceAll(c.about, " ", "_"), func(t *testing.T) {
			q := mustQuery(t, c.name, c.typ, manner{udpSize: 1232})
			msg := message(t, q, c.change, c.records...)
			if !q.answers(msg) {
				t.Fatal("the reply is not taken for one")
			}
			r := parseReply(msg, q)
			if r.kind != c.kind || r.next != c.next || !strings.Contains(fmt.Sprint(r.detail), c.detail) || r.truncated || r.plain {
				t.Errorf("got %+v", r)
			}
			if d := cmp.Diff(c.want, r.Answer, cmpopts.EquateComparable(addrs("::")[0])); d != "" {
				t.Errorf("answer (-want +got):\n%s", d)
			}
		})
	}
}

// What package miekg/dns unpacks without an error although it is damaged.
func TestReplyDamaged(t *testing.T) {
	q := mustQuery(t, "a.example", mailspine.TypeMX, manner{})
	whole := message(t, q, nil, "a.example. 60 IN MX 0 mx.example.")
	raw := func(typ uint16, rdata ...byte) []byte {
		b := message(t, q, func(m *dns.Msg) { m.Question[0].Qtype = typ })
		binary.BigEndian.PutUint16(b[6:], 1) // one answer
		b = append(b, 0xc0, headerLen)       // the name of the question
		b = binary.BigEndian.AppendUint16(b, typ)
		b = append(b, 0, 1, 0, 0, 0, 60, 0, byte(len(rdata)))
		return append(b, rdata...)
	}
	for _, c := range []struct {
		about string
		typ   mailspine.Type
		msg   []byte
	}{
		{"MX without a host must not be the null MX", mailspine.TypeMX, raw(dns.TypeMX, 0, 10)},
		{"MX without anything", mailspine.TypeMX, raw(dns.TypeMX)},
		{"A without an address", mailspine.TypeA, raw(dns.TypeA)},
		{"AAAA without an address", mailspine.TypeAAAA, raw(dns.TypeAAAA)},
		{"AAAA that is too short", mailspine.TypeAAAA, raw(dns.TypeAAAA, 1, 2, 3, 4)},
		{"TXT without a string", mailspine.TypeTXT, raw(dns.TypeTXT)},
		{"TXT that is longer than its record", mailspine.TypeTXT, raw(dns.TypeTXT, 9, 'x')},
		{"PTR without a name", mailspine.TypePTR, raw(dns.TypePTR)},
		{"CNAME without a name", mailspine.TypeCNAME, raw(dns.TypeCNAME)},
		{"CNAME without a name in a chain", mailspine.TypeA, func() []byte {
			b := raw(dns.TypeCNAME)
			binary.BigEndian.PutUint16(b[headerLen+len(q.section)-4:], dns.TypeA)
			return b
		}()},
		{"SRV without a target", mailspine.TypeSRV, raw(dns.TypeSRV, 0, 1, 0, 1, 0, 1)},
		{"TLSA without data", mailspine.TypeTLSA, raw(dns.TypeTLSA, 3, 1, 1)},
		{"a pointer to itself", mailspine.TypePTR, raw(dns.TypePTR, 0xc0, byte(headerLen+len(q.section)+12))},
		{"fewer records than promised", mailspine.TypeMX, func() []byte {
			b := append([]byte(nil), whole...)
			binary.BigEndian.PutUint16(b[6:], 2)
			return b
		}()},
		{"cut off", mailspine.TypeMX, whole[:len(whole)-3]},
		{"only the question, and a promise of more", mailspine.TypeMX, func() []byte {
			return append([]byte(nil), whole[:headerLen+len(q.section)]...)
		}()},
	} {
		t.Run(strings.ReplaceAll(c.about, " ", "_"), func(t *testing.T) {
			q := &query{question: question{"a.example", c.typ}, wire: c.msg[:2], section: c.msg[headerLen : headerLen+len(q.section)]}
			if !q.answers(c.msg) {
				t.Fatal("the reply is not taken for one")
			}
			if r := parseReply(c.msg, q); r.kind != mailspine.ErrDNSTemporary || r.CanonicalName != "" {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// An SOA that ends with the message before its MINIMUM unpacks as one with
// zeros.
func TestReplyShortSOA(t *testing.T) {
	q := mustQuery(t, "a.example", mailspine.TypeA, manner{})
	b := message(t, q, nil)
	binary.BigEndian.PutUint16(b[8:], 1)
	b = append(b, 0, 0, 6, 0, 1, 0, 0, 3, 0, 0, 2, 0, 0) // root, SOA, IN, TTL, RDLENGTH 2, two empty names
	if r := parseReply(b, q); r.kind != mailspine.ErrNoData || r.TTL != 0 {
		t.Errorf("got %+v", r)
	}
	b = message(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeSuccess }, "a.example. 60 IN CNAME b.example.")
	binary.BigEndian.PutUint16(b[8:], 1)
	b = append(b, 0, 0, 6, 0, 1, 0, 0, 3, 0, 0, 2, 0, 0)
	if r := parseReply(b, q); r.next != "b.example" || r.kind != nil {
		t.Errorf("half an SOA ends a chain: %+v", r)
	}
}

func TestReplyTooManyRecords(t *testing.T) {
	q := mustQuery(t, "a.example", mailspine.TypeA, manner{})
	fill := func(n int) []byte {
		return message(t, q, func(m *dns.Msg) {
			m.Compress = true
			for i := range n {
				m.Answer = append(m.Answer, &dns.A{
					Hdr: dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
					A:   net.IPv4(192, 0, byte(i>>8), byte(i))})
			}
		})
	}
	if r := parseReply(fill(maxRecords), q); r.kind != nil || len(r.Addrs) != maxRecords {
		t.Errorf("with %d records: %v, %v", maxRecords, r.kind, r.detail)
	}
	if r := parseReply(fill(maxRecords+1), q); r.kind != mailspine.ErrDNSTemporary {
		t.Errorf("with %d records: %v", maxRecords+1, r.kind)
	}
}

func TestReplyTruncatedAndPlain(t *testing.T) {
	q := mustQuery(t, "a.example", mailspine.TypeA, manner{udpSize: 1232})
	cut := message(t, q, func(m *dns.Msg) { m.Truncated = true }, "a.example. 60 IN A 192.0.2.1")
	for _, b := range [][]byte{cut, cut[:len(cut)-2], cut[:headerLen+len(q.section)]} {
		if r := parseReply(b, q); !r.truncated || r.kind != nil {
			t.Errorf("truncated: %+v", r)
		}
	}
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers} {
		b := message(t, q, func(m *dns.Msg) { m.SetEdns0(512, false); m.Rcode = rcode })
		if r := parseReply(b, q); !r.plain {
			t.Errorf("%s: %+v", dns.RcodeToString[rcode], r)
		}
	}
	// RFC 6891 section 7: nothing but a header may come back.
	b := message(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeFormatError; m.Question = nil })
	if !q.answers(b) || !parseReply(b, q).plain {
		t.Error("a bare FORMERR was not understood")
	}
}

func TestAnswers(t *testing.T) {
	q := mustQuery(t, "www.Example", mailspine.TypeA, manner{udpSize: 1232})
	good := message(t, q, nil, "www.example. 60 IN A 192.0.2.1")
	with := func(change func(*dns.Msg)) []byte { return message(t, q, change) }
	for _, c := range []struct {
		about string
		msg   []byte
		want  bool
	}{
		{"the reply", good, true},
		{"in other case", with(func(m *dns.Msg) { m.Question[0].Name = "WWW.example." }), true},
		{"another ID", with(func(m *dns.Msg) { m.Id++ }), false},
		{"a question", with(func(m *dns.Msg) { m.Response = false }), false},
		{"another operation", with(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), false},
		{"another name", with(func(m *dns.Msg) { m.Question[0].Name = "ww2.example." }), false},
		{"a longer name", with(func(m *dns.Msg) { m.Question[0].Name = "www.example.test." }), false},
		{"another type", with(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }), false},
		{"a type that differs like letters do", with(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA | 0x20 }), false},
		{"another class", with(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), false},
		{"two questions", with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), false},
		{"no question", with(func(m *dns.Msg) { m.Question = nil }), false},
		{"no question and NXDOMAIN", with(func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeNameError }), false},
		{"no question and REFUSED", with(func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeRefused }), true},
		{"nothing", nil, false},
		{"half a header", good[:7], false},
		{"half a question", good[:headerLen+5], false},
	} {
		if got := q.answers(c.msg); got != c.want {
			t.Errorf("%s: %v", c.about, got)
		}
	}
	exact := mustQuery(t, "www.example", mailspine.TypeA, manner{randomCase: true})
	b := message(t, exact, nil)
	if !exact.answers(b) {
		t.Error("the same letters are not taken")
	}
	b[headerLen+1] ^= 0x20
	if exact.answers(b) {
		t.Error("other letters are taken with RandomCase")
	}
}

func TestNewQuery(t *testing.T) {
	q := mustQuery(t, "Example.", mailspine.TypeMX, manner{udpSize: 1400, checkingDisabled: true})
	var m dns.Msg
	if err := m.Unpack(q.wire); err != nil {
		t.Fatal(err)
	}
	opt := m.IsEdns0()
	if m.Question[0] != (dns.Question{Name: "example.", Qtype: dns.TypeMX, Qclass: dns.ClassINET}) ||
		!m.RecursionDesired || !m.AuthenticatedData || !m.CheckingDisabled || opt == nil || opt.UDPSize() != 1400 || opt.Do() {
		t.Errorf("asked %v", &m)
	}
	if q := mustQuery(t, "example", mailspine.TypeMX, manner{}); len(q.wire) != headerLen+len(q.section) {
		t.Error("EDNS although it was not wanted")
	}
	ids := map[string]bool{}
	for range 64 {
		ids[string(mustQuery(t, "example", mailspine.TypeMX, manner{}).wire[:2])] = true
	}
	if len(ids) < 60 {
		t.Errorf("64 questions had %d different IDs", len(ids))
	}
	cases := map[string]bool{}
	for range 64 {
		cases[string(mustQuery(t, "abcdefghijklmnop.example", mailspine.TypeMX, manner{randomCase: true}).section)] = true
	}
	if len(cases) < 60 {
		t.Errorf("64 questions were written in %d ways", len(cases))
	}
}

func TestCanonicalName(t *testing.T) {
	l63 := strings.Repeat("a", 63)
	long := l63 + "." + l63 + "." + l63 + "." + strings.Repeat("a", 61) // 253
	for _, c := range []struct{ in, want string }{
		{"Example.ORG", "example.org"}, {"example.org.", "example.org"}, {".", ""},
		{"_dmarc.example", "_dmarc.example"}, {"-x-.example", "-x-.example"}, {`o'neil+a@b"c/=.example`, `o'neil+a@b"c/=.example`},
		{l63 + ".example", l63 + ".example"}, {long, long}, {long + ".", long}, {"1.2.0.192.in-addr.arpa", "1.2.0.192.in-addr.arpa"},
	} {
		if got, err := canonicalName(c.in); err != nil || got != c.want {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
	}
	for _, in := range []string{"", "..", ".example", "a..example", "example..", "a b", "a\x00b", "a\tb", "a\\.b", "é.example", "\x7f",
		l63 + "a.example", long + "a", "a." + long} {
		if got, err := canonicalName(in); !errors.Is(err, ErrBadName) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestUnder(t *testing.T) {
	for _, c := range []struct {
		name, zone string
		want       bool
	}{
		{"a.example.", "example.", true}, {"example.", "example.", true}, {"example.", ".", true}, {".", ".", true},
		{"badexample.", "example.", false}, {"example.", "a.example.", false}, {".", "example.", false},
		{`bad\.example.`, "example.", false}, {`bad\\.example.`, "example.", true},
	} {
		if got := under(c.name, c.zone); got != c.want {
			t.Errorf("%s under %s: %v", c.name, c.zone, got)
		}
	}
}
