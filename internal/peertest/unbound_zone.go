package peertest

import (
	"crypto"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A Zone is a zone of the authoritative server behind [StartUnbound], signed with a key of its own (ECDSA P-256, NSEC).
// It has a SOA and an NS record by itself. A zone whose parent is served as well is delegated there, with a DS record if it is signed.
type Zone struct {
	Name     string   // "example"
	Unsigned bool     // no DNSSEC; the parent proves it
	Records  []string // lines of a zone file, with absolute names

	// Before may change a signature before it is made, for example its dates, and After when it is
	// made; a signature set to nil by After is left out. They are called while questions are answered, one at a time. nil: nothing is changed.
	Before func(set []dns.RR, sig *dns.RRSIG)
	After  func(set []dns.RR, sig *dns.RRSIG) *dns.RRSIG

	name  string // canonical
	key   *dns.DNSKEY
	priv  crypto.Signer
	sets  map[string]map[uint16][]dns.RR // by name and type
	names []string                       // those with records, in canonical order (RFC 4034 section 6.1)
	cuts  map[string]bool                // delegated names
	mu    sync.Mutex                     // for Before and After
}

// top reports whether no other zone is above.
func (z *Zone) top(all []*Zone) bool {
	return !slices.ContainsFunc(all, func(p *Zone) bool { return p != z && dns.IsSubDomain(p.name, z.name) })
}

// anchor is the key as a resolver's configuration wants it.
func (z *Zone) anchor() string { return strings.ReplaceAll(z.key.String(), "\t", " ") }

// prepare parses the records and makes the key.
func (z *Zone) prepare(t testing.TB) {
	t.Helper()
	z.name = dns.CanonicalName(z.Name)
	z.sets, z.cuts = map[string]map[uint16][]dns.RR{}, map[string]bool{}
	if !z.Unsigned {
		z.key = &dns.DNSKEY{Hdr: dns.RR_Header{Name: z.name, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 3600},
			Flags: dns.ZONE | dns.SEP, Protocol: 3, Algorithm: dns.ECDSAP256SHA256}
		priv, err := z.key.Generate(256)
		if err != nil {
			t.Fatal(err)
		}
		z.priv = priv.(crypto.Signer)
		z.put(z.key)
	}
	lines := append([]string{
		z.name + " 3600 IN SOA ns." + z.name + " hostmaster." + z.name + " 1 7200 3600 1209600 300",
		z.name + " 3600 IN NS ns." + z.name,
		"ns." + z.name + " 3600 IN A 127.0.0.1",
	}, z.Records...)
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil || rr == nil {
			t.Fatalf("zone %s: %q: %v", z.Name, line, err)
		}
		z.put(rr)
	}
}

func (z *Zone) put(rr dns.RR) {
	h := rr.Header()
	h.Name = dns.CanonicalName(h.Name)
	if z.sets[h.Name] == nil {
		z.sets[h.Name] = map[uint16][]dns.RR{}
	}
	z.sets[h.Name][h.Rrtype] = append(z.sets[h.Name][h.Rrtype], rr)
}

// delegate puts a child zone into its parent.
func (z *Zone) delegate(child *Zone) {
	z.cuts[child.name] = true
	z.put(&dns.NS{Hdr: dns.RR_Header{Name: child.name, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 3600}, Ns: "ns." + child.name})
	if !child.Unsigned {
		z.put(child.key.ToDS(dns.SHA256))
	}
}

// compareNames is the order of RFC 4034 section 6.1.
func compareNames(a, b string) int {
	x, y := dns.SplitDomainName(a), dns.SplitDomainName(b)
	slices.Reverse(x)
	slices.Reverse(y)
	return slices.Compare(x, y)
}

// serveZones answers for the zones on a loopback port, over UDP and TCP, until the test ends.
func serveZones(t testing.TB, zones []*Zone) string {
	t.Helper()
	for _, z := range zones {
		z.prepare(t)
	}
	for _, z := range zones {
		if p := enclosing(zones, z.name, false); p != nil {
			p.delegate(z)
		}
	}
	for _, z := range zones {
		for n := range z.sets {
			z.names = append(z.names, n)
		}
		slices.SortFunc(z.names, compareNames)
	}
	var udp net.PacketConn
	var tcp net.Listener
	var err error
	for range 20 { // the port must be free for both
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			continue
		}
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			break
		}
		tcp.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(answerZones(zones, q)) })
	var started, ended sync.WaitGroup
	servers := []*dns.Server{{PacketConn: udp, Handler: h}, {Listener: tcp, Handler: h}}
	for _, s := range servers {
		started.Add(1)
		s.NotifyStartedFunc = started.Done
		ended.Go(func() { _ = s.ActivateAndServe() })
	}
	started.Wait()
	t.Cleanup(func() {
		for _, s := range servers {
			_ = s.Shutdown()
		}
		ended.Wait()
	})
	return tcp.Addr().String()
}

// enclosing returns the nearest zone above a name, or at it if at is set; nil: none.
func enclosing(zones []*Zone, name string, at bool) *Zone {
	var best *Zone
	for _, z := range zones {
		if dns.IsSubDomain(z.name, name) && (at || z.name != name) && (best == nil || len(z.name) > len(best.name)) {
			best = z
		}
	}
	return best
}

func answerZones(zones []*Zone, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(1232, opt.Do())
	}
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	name, qtype := dns.CanonicalName(q.Question[0].Name), q.Question[0].Qtype
	z := enclosing(zones, name, qtype != dns.TypeDS) // RFC 4035 section 3.1.4.1: the parent has the DS
	if z == nil {
		m.Rcode = dns.RcodeRefused
		return m
	}
	m.Authoritative = true
	z.answer(m, name, qtype)
	return m
}

func (z *Zone) answer(m *dns.Msg, name string, qtype uint16) {
	sets := z.sets[name]
	switch {
	case len(sets[qtype]) > 0:
		m.Answer = z.signed(sets[qtype])
	case len(sets[dns.TypeCNAME]) > 0:
		m.Answer = z.signed(sets[dns.TypeCNAME])
	default:
		exists := slices.ContainsFunc(z.names, func(n string) bool { return dns.IsSubDomain(name, n) }) // empty non-terminals too
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		m.Ns = z.signed(z.sets[z.name][dns.TypeSOA])
		if z.Unsigned {
			return
		}
		proofs := []string{name}
		if !exists {
			// RFC 4035 section 3.1.3.2: no wildcard either.
			closest := name
			for !slices.ContainsFunc(z.names, func(n string) bool { return dns.IsSubDomain(closest, n) }) {
				_, closest, _ = strings.Cut(closest, ".")
			}
			proofs = append(proofs, "*."+closest)
		}
		owners := map[string]bool{}
		for _, p := range proofs {
			nsec := z.nsec(p)
			if !owners[nsec.Hdr.Name] {
				m.Ns = append(m.Ns, z.signed([]dns.RR{nsec})...)
			}
			owners[nsec.Hdr.Name] = true
		}
	}
}

// nsec returns the record at a name, or the one that covers it.
func (z *Zone) nsec(name string) *dns.NSEC {
	i, at := slices.BinarySearchFunc(z.names, name, compareNames)
	if !at {
		i-- // the apex is before all
	}
	owner, next := z.names[i], z.names[(i+1)%len(z.names)]
	n := &dns.NSEC{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeNSEC, Class: dns.ClassINET, Ttl: 300}, NextDomain: next,
		TypeBitMap: []uint16{dns.TypeRRSIG, dns.TypeNSEC}}
	for t := range z.sets[owner] {
		n.TypeBitMap = append(n.TypeBitMap, t)
	}
	slices.Sort(n.TypeBitMap)
	return n
}

// signed returns a set with its signature.
func (z *Zone) signed(set []dns.RR) []dns.RR {
	out := slices.Clone(set)
	h := set[0].Header()
	if z.Unsigned || z.cuts[h.Name] && h.Rrtype == dns.TypeNS {
		return out
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	now := time.Now()
	sig := &dns.RRSIG{
		Hdr:       dns.RR_Header{Name: h.Name, Rrtype: dns.TypeRRSIG, Class: dns.ClassINET, Ttl: h.Ttl},
		Inception: uint32(now.Add(-time.Hour).Unix()), Expiration: uint32(now.Add(time.Hour).Unix()),
		KeyTag: z.key.KeyTag(), SignerName: z.name, Algorithm: z.key.Algorithm,
	}
	if z.Before != nil {
		z.Before(out, sig)
	}
	if err := sig.Sign(z.priv, out); err != nil {
		return out // unsigned, which the resolver will not take
	}
	if z.After != nil {
		sig = z.After(out, sig)
	}
	if sig != nil {
		out = append(out, sig)
	}
	return out
}
