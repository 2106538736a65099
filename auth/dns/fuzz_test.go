package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
)

func addrs(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

var mailTypes = []mailspine.Type{mailspine.TypeA, mailspine.TypeCNAME, mailspine.TypePTR, mailspine.TypeMX,
	mailspine.TypeTXT, mailspine.TypeAAAA, mailspine.TypeSRV, mailspine.TypeTLSA}

// FuzzReply gives foreign octets the way that a reply takes, with the ID and
// the question put right so that they get past the door.
func FuzzReply(f *testing.F) {
	const name = "a.example"
	for i, typ := range mailTypes {
		q := mustQuery(f, name, typ, manner{udpSize: 1232})
		rdata := map[mailspine.Type]string{
			mailspine.TypeA: "192.0.2.1", mailspine.TypeCNAME: "b.example.", mailspine.TypePTR: `x\010.example.`, mailspine.TypeMX: "10 mx.example.",
			mailspine.TypeTXT: `"v=spf1" "\000\"-all"`, mailspine.TypeAAAA: "2001:db8::1", mailspine.TypeSRV: "1 2 3 h.example.", mailspine.TypeTLSA: "3 1 1 00ff"}[typ]
		record := "a.example. 60 IN " + typ.String() + " " + rdata
		for _, change := range []func(*dns.Msg){
			nil,
			func(m *dns.Msg) { m.Compress = true; m.SetEdns0(1232, true) },
			func(m *dns.Msg) { m.Truncated = true },
			func(m *dns.Msg) { m.Rcode = dns.RcodeNameError; m.Answer = nil },
			func(m *dns.Msg) {
				m.Rcode = dns.RcodeServerFailure
				m.SetEdns0(1232, false)
				m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus}}
			},
		} {
			b := message(f, q, change, record, "--", exampleSOA)
			f.Add(uint8(i), b)
			f.Add(uint8(i), b[:len(b)*3/4])
		}
		f.Add(uint8(i), message(f, q, nil, "a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME a.example."))
	}
	f.Add(uint8(0), []byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, which uint8, msg []byte) {
		typ := mailTypes[int(which)%len(mailTypes)]
		q := mustQuery(t, name, typ, manner{udpSize: 1232})
		_ = q.answers(msg)
		if len(msg) > 64<<10 {
			return
		}
		forged := append([]byte(nil), msg...)
		if len(forged) > headerLen+len(q.section) {
			copy(forged, q.wire[:2])
			forged[2] = forged[2]&^0x78 | 0x80
			binary.BigEndian.PutUint16(forged[4:], 1)
			copy(forged[headerLen:], q.section)
		}
		if !q.answers(forged) {
			return
		}
		before := string(forged)
		r := parseReply(forged, q)
		if string(forged) != before {
			t.Fatal("the message was changed")
		}
		records := len(r.Addrs) + len(r.MX) + len(r.TXT) + len(r.Names) + len(r.SRV) + len(r.TLSA)
		switch {
		case r.truncated || r.plain:
			if records > 0 || r.kind != nil {
				t.Fatalf("half a reply was used: %+v", r)
			}
		case r.kind == nil && r.next == "":
			if records == 0 || records > maxRecords {
				t.Fatalf("%d records and no error", records)
			}
		case r.kind == nil, r.kind == mailspine.ErrNXDomain, r.kind == mailspine.ErrNoData:
			if records > 0 {
				t.Fatalf("absence with records: %+v", r)
			}
		case r.kind == mailspine.ErrDNSTemporary, r.kind == mailspine.ErrDNSBogus:
			if records > 0 || r.Authentic || r.detail == nil {
				t.Fatalf("failure with an answer: %+v", r)
			}
		default:
			t.Fatalf("kind %v", r.kind)
		}
		if r.TTL < 0 || r.TTL.Seconds() > 1<<31 {
			t.Fatalf("TTL %v", r.TTL)
		}
		if r.next != "" {
			if _, err := canonicalName(r.next); err != nil {
				t.Fatalf("next is %q: %v", r.next, err)
			}
		}
		for _, ip := range r.Addrs {
			if ip.Is4() != (typ == mailspine.TypeA) || !ip.IsValid() {
				t.Fatalf("address %v in the answer for %s", ip, typ)
			}
		}
		hosts := append([]string{r.CanonicalName}, r.Names...)
		for _, m := range r.MX {
			hosts = append(hosts, m.Host)
		}
		for _, s := range r.SRV {
			hosts = append(hosts, s.Target)
		}
		for _, h := range hosts {
			if strings.ContainsFunc(h, func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Fatalf("name %q would upset a log", h)
			}
		}
	})
}

// FuzzName checks that a name that is let through is asked for as it is: the
// octets on the wire are those of its labels.
func FuzzName(f *testing.F) {
	for _, s := range []string{"example.org", "EXAMPLE.org.", ".", "", "a..b", `a\.b`, `a\\b`, "é.example", "a b", "o'neil+x@y(z);.example", strings.Repeat("a", 64),
		strings.Repeat("a.", 127), strings.Repeat("a.", 126) + "a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := canonicalName(s)
		if err != nil {
			if !errors.Is(err, ErrBadName) || name != "" {
				t.Fatalf("%q, %v", name, err)
			}
			return
		}
		if again, err := canonicalName(name + "."); err != nil || again != name {
			t.Fatalf("%q is not stable: %q, %v", name, again, err)
		}
		q, err := newQuery(question{name, mailspine.TypeTXT}, manner{udpSize: 1232})
		if err != nil {
			t.Fatalf("%q was let through and cannot be packed: %v", name, err)
		}
		var want []byte
		if name != "" {
			for l := range strings.SplitSeq(name, ".") {
				want = append(append(want, byte(len(l))), l...)
			}
		}
		want = append(want, 0, 0, 16, 0, 1)
		if string(q.section) != string(want) {
			t.Fatalf("asked %q for %q", q.section, want)
		}
		if r := message(t, q, nil); !q.answers(r) || parseReply(r, q).kind != mailspine.ErrNoData {
			t.Fatal("the reply is not recognised")
		}
	})
}

// FuzzUnescape compares with packing by package miekg/dns.
func FuzzUnescape(f *testing.F) {
	f.Add("plain")
	f.Add("a\"b\\c\x00\xff 123\\064")
	f.Fuzz(func(t *testing.T, value string) {
		if len(value) > 255 {
			value = value[:255]
		}
		rr := &dns.TXT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeTXT, Class: dns.ClassINET}}
		rdata := append([]byte{byte(len(value))}, value...)
		hdr := append([]byte{0, 0, 16, 0, 1, 0, 0, 0, 0}, byte(len(rdata)>>8), byte(len(rdata)))
		got, _, err := dns.UnpackRR(append(hdr, rdata...), 0)
		if err != nil {
			t.Fatal(err)
		}
		rr = got.(*dns.TXT)
		if s := unescape(rr.Txt[0]); s != value {
			t.Fatalf("%q became %q", value, s)
		}
		_ = unescape(value) // any text, without a panic
	})
}
