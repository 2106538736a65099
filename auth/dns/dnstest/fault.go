package dnstest

import (
	"net"

	"github.com/miekg/dns"
)

// fault answers a question in a wrong way. m is the true reply. It reports
// false if the truth is to be sent after all.
func fault(kind FaultKind, network string, w dns.ResponseWriter, q, m *dns.Msg) bool {
	name := q.Question[0].Name
	bare := func(rcode int) *dns.Msg {
		r := new(dns.Msg)
		r.SetRcode(q, rcode)
		r.RecursionAvailable = true
		if opt := q.IsEdns0(); opt != nil {
			r.SetEdns0(1232, false)
		}
		return r
	}
	reply := func(r *dns.Msg) bool {
		send(network, w, q, r)
		return true
	}
	raw := func(b []byte) bool {
		_, _ = w.Write(b)
		return true
	}
	switch kind {
	case ServFail:
		return reply(bare(dns.RcodeServerFailure))
	case Refused:
		return reply(bare(dns.RcodeRefused))
	case NotImp:
		return reply(bare(dns.RcodeNotImplemented))
	case FormErr, BadVersion:
		if q.IsEdns0() == nil {
			return false
		}
		if kind == BadVersion {
			return reply(bare(dns.RcodeBadVers))
		}
		r := new(dns.Msg)
		r.SetRcode(q, dns.RcodeFormatError)
		return reply(r)
	case Timeout:
		return true
	case Truncate, TruncateAll, Flood, Close:
		if network == "udp" || kind == TruncateAll {
			r := bare(dns.RcodeSuccess)
			r.Truncated = true
			return reply(r)
		}
		switch kind {
		case Close:
			_ = w.Close()
			return true
		case Flood:
			return reply(flood(bare(dns.RcodeSuccess), q))
		}
		return false
	case Garbage:
		return raw([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	case CutShort:
		b, err := m.Pack()
		if err != nil {
			return false
		}
		return raw(b[:len(b)-len(b)/4])
	case WrongID:
		m.Id ^= 0x5555
		return reply(m)
	case WrongQuestion:
		m.Question = []dns.Question{{Name: "wrong." + name, Qtype: q.Question[0].Qtype, Qclass: dns.ClassINET}}
		return reply(m)
	case NoQuestion:
		m.Question = nil
		return reply(m)
	case NotResponse:
		m.Response = false
		return reply(m)
	case Spoof:
		if network != "udp" {
			return false // an attacker would have to be on the path
		}
		forged := m.Copy()
		forged.Rcode, forged.Ns = dns.RcodeSuccess, nil
		forged.Answer = []dns.RR{&dns.A{Hdr: header(name, dns.TypeA, 3600), A: net.IPv4(192, 0, 2, 66)}}
		for i := range uint16(5) {
			forged.Id = q.Id + 1 + i
			send(network, w, q, forged)
		}
		forged.Id = q.Id
		forged.Question = []dns.Question{{Name: "victim.invalid.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
		send(network, w, q, forged)
		return false
	case Lame:
		r := bare(dns.RcodeSuccess)
		r.RecursionAvailable = false
		r.Ns = []dns.RR{&dns.NS{Hdr: header("", dns.TypeNS, 3600), Ns: "a.root-servers.net."}}
		return reply(r)
	case Empty:
		return reply(bare(dns.RcodeSuccess))
	case Unrelated:
		r := bare(dns.RcodeSuccess)
		r.Answer = []dns.RR{
			&dns.A{Hdr: header("unrelated.invalid", dns.TypeA, 3600), A: net.IPv4(192, 0, 2, 66)},
			&dns.TXT{Hdr: header("unrelated.invalid", dns.TypeTXT, 3600), Txt: []string{"unrelated"}},
			&dns.MX{Hdr: header("unrelated.invalid", dns.TypeMX, 3600), Mx: "unrelated.invalid."},
		}
		return reply(r)
	case Loop:
		r := bare(dns.RcodeSuccess)
		r.Answer = []dns.RR{
			&dns.CNAME{Hdr: header(name, dns.TypeCNAME, 60), Target: "loop.invalid."},
			&dns.CNAME{Hdr: header("loop.invalid", dns.TypeCNAME, 60), Target: name},
		}
		return reply(r)
	case Bogus, BogusPlain:
		if q.CheckingDisabled {
			return false
		}
		r := bare(dns.RcodeServerFailure)
		if opt := r.IsEdns0(); opt != nil && kind == Bogus {
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus, ExtraText: "no valid signature"})
		}
		return reply(r)
	}
	return false // Delay, and kinds that do not exist
}

// flood fills most of a message of 64 KiB with records of the type asked for.
func flood(m, q *dns.Msg) *dns.Msg {
	qq := q.Question[0]
	for i := range 2000 {
		var rr dns.RR = &dns.A{A: net.IPv4(10, 0, byte(i>>8), byte(i))}
		switch qq.Qtype {
		case dns.TypeMX:
			rr = &dns.MX{Preference: uint16(i), Mx: qq.Name}
		case dns.TypeTXT:
			rr = &dns.TXT{Txt: []string{"x"}}
		case dns.TypePTR:
			rr = &dns.PTR{Ptr: qq.Name}
		case dns.TypeAAAA:
			rr = &dns.AAAA{AAAA: net.IP{0xfd, 14: byte(i >> 8), 15: byte(i)}}
		}
		*rr.Header() = header(qq.Name, typeOf(rr), 60)
		m.Answer = append(m.Answer, rr)
	}
	return m
}
