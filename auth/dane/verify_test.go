package dane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

var host = []string{"mx.example.org"}

// verdict verifies, and returns the reason of a failure; 0: none.
func verdict(t *testing.T, recs []mailspine.TLSA, chain []*x509.Certificate, names []string, at time.Time) (mailspine.TLSA, Reason) {
	t.Helper()
	rec, err := Verify(recs, chain, names, at)
	if err == nil {
		return rec, 0
	}
	var ve *VerifyError
	if !errors.As(err, &ve) || ve.Reason == 0 {
		t.Fatalf("not a *VerifyError with a reason: %v", err)
	}
	if rec.Data != nil {
		t.Errorf("a record with an error: %v", rec)
	}
	return rec, ve.Reason
}

// Every usage, selector and matching type, against what it should match and against what it should not.
func TestVerifyMatrix(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	chain := chainOf(p.leaf, p.middle, p.root)
	for usage := uint8(0); usage <= 4; usage++ {
		for selector := uint8(0); selector <= 2; selector++ {
			for matching := uint8(0); matching <= 3; matching++ {
				known := (usage == 2 || usage == 3) && selector <= 1 && matching <= 2
				for _, c := range []struct {
					about string
					cert  *issued
					want  Reason // if known
				}{
					{"leaf", p.leaf, map[uint8]Reason{2: NoMatch}[usage]},
					{"middle", p.middle, map[uint8]Reason{3: NoMatch}[usage]},
					{"root", p.root, map[uint8]Reason{3: NoMatch}[usage]},
					{"another server", other.leaf, NoMatch},
					{"another authority", other.middle, NoMatch},
				} {
					rec := Record(c.cert.Certificate, usage, selector, matching)
					want := c.want
					if !known {
						want = Unusable
					}
					if usage == 2 && matching == MatchFull && want == NoMatch && c.cert != p.leaf && selector == SelectorCert {
						want = Untrusted // it is an authority all the same
					}
					got, reason := verdict(t, []mailspine.TLSA{rec}, chain, host, now)
					if reason != want {
						t.Errorf("%d %d %d of %s: %v, want %v", usage, selector, matching, c.about, reason, want)
					}
					if reason == 0 && brief(got) != brief(rec) {
						t.Errorf("%d %d %d of %s: record %s", usage, selector, matching, c.about, brief(got))
					}
				}
			}
		}
	}
}

func TestVerifyEE(t *testing.T) {
	p := newPKI(t)
	rec := []mailspine.TLSA{Record(p.leaf.Certificate, 3, 1, 1)}
	old := issueFor(t, p.middle, p.leaf.key, "elsewhere.example", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = now.Add(-48*time.Hour), now.Add(-24*time.Hour)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	for _, c := range []struct {
		about string
		chain []*x509.Certificate
		want  Reason
	}{
		{"alone", chainOf(p.leaf), 0},
		// RFC 7672 section 3.1.1: name, dates, uses and issuer are ignored.
		{"expired, for another name, for clients, with the same key", chainOf(old), 0},
		{"with a chain that is none", chainOf(p.leaf, old, newPKI(t).leaf), 0},
		{"not the first", chainOf(p.middle, p.leaf), NoMatch},
		{"nothing", nil, NoCertificate},
		{"nil", []*x509.Certificate{nil}, NoCertificate},
		{"never encoded", []*x509.Certificate{{}}, NoMatch},
		{"nil behind", []*x509.Certificate{p.leaf.Certificate, nil}, 0},
	} {
		if _, got := verdict(t, rec, c.chain, nil, now); got != c.want {
			t.Errorf("%s: %v, want %v", c.about, got, c.want)
		}
	}
	// A hash of nothing matches nothing.
	empty := mailspine.TLSA{Usage: 3, Selector: 0, MatchingType: 1, Data: Record(&x509.Certificate{Raw: []byte{}}, 3, 0, 1).Data}
	if empty.Data != nil {
		t.Error("a record of an empty certificate")
	}
}

func TestVerifyTA(t *testing.T) {
	p := newPKI(t)
	root := func(s, m uint8) mailspine.TLSA { return Record(p.root.Certificate, 2, s, m) }
	middle := Record(p.middle.Certificate, 2, 0, 1)
	named := func(name string, change func(*x509.Certificate)) []*x509.Certificate {
		return chainOf(issue(t, p.middle, name, change), p.middle, p.root)
	}
	dates := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(from), now.Add(to) }
	}
	onlyCN := func(cn string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames, c.Subject = nil, pkix.Name{CommonName: cn} }
	}
	notCA := issue(t, p.root, "Not an authority", nil)
	noSign := issue(t, p.root, "Signs nothing", func(c *x509.Certificate) {
		authority(c)
		c.KeyUsage = x509.KeyUsageCRLSign
	})
	oldMiddle := issue(t, p.root, "Old Middle", func(c *x509.Certificate) { authority(c); dates(-48*time.Hour, -24*time.Hour)(c) })
	narrow := issue(t, p.root, "Narrow Middle", func(c *x509.Certificate) {
		authority(c)
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example.net"}, true
	})
	selfSigned := issue(t, nil, "mx.example.org", nil)
	crossRoot := issueFor(t, issue(t, nil, "Other Root", authority), p.root.key, "Test Root", authority)
	pretender := issue(t, nil, "Test Middle", authority) // the same name, another key

	for _, c := range []struct {
		about string
		rec   mailspine.TLSA
		chain []*x509.Certificate
		names []string
		want  Reason
	}{
		{"root", root(0, 1), chainOf(p.leaf, p.middle, p.root), host, 0},
		{"root, chain in another order", root(0, 1), chainOf(p.leaf, p.root, p.middle), host, 0},
		{"root is not sent", root(0, 1), chainOf(p.leaf, p.middle), host, NoMatch},
		{"root is not sent, but in the record", root(0, 0), chainOf(p.leaf, p.middle), host, 0},
		{"root is not sent, but its key is in the record", root(1, 0), chainOf(p.leaf, p.middle), host, 0},
		{"key of the issuer in the record", Record(p.middle.Certificate, 2, 1, 0), chainOf(p.leaf), host, 0},
		{"key of somebody else in the record", Record(pretender.Certificate, 2, 1, 0), chainOf(p.leaf, p.middle), host, NoMatch},
		{"the one in between is missing", root(0, 0), chainOf(p.leaf), host, Untrusted},
		{"middle, without root", middle, chainOf(p.leaf, p.middle), host, 0},
		{"cross-signed root with the same key", root(1, 1), chainOf(p.leaf, p.middle, crossRoot), host, 0},
		{"cross-signed root, but the record is of the other", root(0, 1), chainOf(p.leaf, p.middle, crossRoot), host, NoMatch},
		{"an authority that is there but did not sign", Record(pretender.Certificate, 2, 0, 1), chainOf(p.leaf, p.middle, pretender), host, Untrusted},
		{"no authority signed it", Record(notCA.Certificate, 2, 0, 1), chainOf(issue(t, notCA, "mx.example.org", nil), notCA), host, Untrusted},
		{"authority may not sign", Record(noSign.Certificate, 2, 1, 1), chainOf(issue(t, noSign, "mx.example.org", nil), noSign), host, Untrusted},
		{"key of what is no authority", Record(notCA.Certificate, 2, 1, 0), chainOf(issue(t, notCA, "mx.example.org", nil), notCA), host, Untrusted},
		{"self-signed", Record(selfSigned.Certificate, 2, 0, 1), chainOf(selfSigned), host, NoMatch},
		{"self-signed, shown twice", Record(selfSigned.Certificate, 2, 0, 1), chainOf(selfSigned, selfSigned), host, NoMatch},
		{"self-signed, in the record", Record(selfSigned.Certificate, 2, 0, 0), chainOf(selfSigned), host, NoMatch},
		{"self-signed, its key in the record", Record(selfSigned.Certificate, 2, 1, 0), chainOf(selfSigned), host, NoMatch},

		{"expired", root(0, 1), named("mx.example.org", dates(-48*time.Hour, -time.Hour)), host, Expired},
		{"not yet valid", root(0, 1), named("mx.example.org", dates(time.Hour, 48*time.Hour)), host, Expired},
		{"authority expired", root(0, 1), chainOf(issue(t, oldMiddle, "mx.example.org", nil), oldMiddle, p.root), host, Expired},
		{"expired authority of the record", Record(oldMiddle.Certificate, 2, 1, 1), chainOf(issue(t, oldMiddle, "mx.example.org", nil), oldMiddle), host, 0},
		{"expired authority in the record", Record(oldMiddle.Certificate, 2, 0, 0), chainOf(issue(t, oldMiddle, "mx.example.org", nil)), host, 0},
		{"expired authority below the key of the record", root(1, 0), chainOf(issue(t, oldMiddle, "mx.example.org", nil), oldMiddle), host, Expired},
		{"for clients", root(0, 1), named("mx.example.org", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), host, Untrusted},
		{"for anything", root(0, 1), named("mx.example.org", func(c *x509.Certificate) { c.ExtKeyUsage = nil }), host, 0},
		{"authority for other names", root(0, 1), chainOf(issue(t, narrow, "mx.example.org", nil), narrow, p.root), host, Untrusted},

		{"second name", root(0, 1), named("example.org", nil), []string{"mx.example.org", "example.org"}, 0},
		{"another name", root(0, 1), named("mx.example.net", nil), host, WrongName},
		{"no names to compare with", root(0, 1), named("mx.example.org", nil), nil, WrongName},
		{"an empty name", root(0, 1), named("mx.example.org", nil), []string{""}, WrongName},
		{"capitals and a dot", root(0, 1), named("MX.Example.org", nil), []string{"mx.EXAMPLE.org."}, 0},
		{"U-labels", root(0, 1), named("mx.xn--bcher-kva.example", nil), []string{"mx.bücher.example"}, 0},
		{"wildcard", root(0, 1), named("*.example.org", nil), host, 0},
		{"wildcard is one label", root(0, 1), named("*.example.org", nil), []string{"a.mx.example.org", "example.org"}, WrongName},
		{"part of a label", root(0, 1), named("m*.example.org", nil), host, WrongName},
		{"common name", root(0, 1), named("x", onlyCN("mx.example.org")), host, 0},
		{"common name, wildcard", root(0, 1), named("x", onlyCN("*.example.org")), host, 0},
		{"common name of another", root(0, 1), named("x", onlyCN("mx.example.net")), host, WrongName},
		{"common name beside DNS names", root(0, 1), named("mx.example.net", func(c *x509.Certificate) { c.Subject.CommonName = "mx.example.org" }), host, WrongName},
		{"common name below an authority for other names", root(0, 1), chainOf(issue(t, narrow, "x", onlyCN("mx.example.org")), narrow, p.root), host, WrongName},
		{"certificates too far back", root(0, 1), append(chainOf(p.leaf, p.middle), append(slices.Repeat(chainOf(pretender), 14), p.root.Certificate)...), host, NoMatch},
	} {
		if got, reason := verdict(t, []mailspine.TLSA{c.rec}, c.chain, c.names, now); reason != c.want {
			t.Errorf("%s: %v, want %v", c.about, reason, c.want)
		} else if reason == 0 && brief(got) != brief(c.rec) {
			t.Errorf("%s: record %s", c.about, brief(got))
		}
	}
}

// RFC 7671 section 9.
func TestDigestAgility(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	mine := func(u, s, m uint8) mailspine.TLSA { return Record(p.leaf.Certificate, u, s, m) }
	not := func(u, s, m uint8) mailspine.TLSA { return Record(other.leaf.Certificate, u, s, m) }
	for _, c := range []struct {
		about string
		recs  []mailspine.TLSA
		want  Reason
	}{
		{"weaker one is ignored", []mailspine.TLSA{mine(3, 1, 1), not(3, 1, 2)}, NoMatch},
		{"stronger one counts", []mailspine.TLSA{not(3, 1, 1), mine(3, 1, 2)}, 0},
		{"two equal ones, one for the next key", []mailspine.TLSA{not(3, 1, 1), mine(3, 1, 1)}, 0},
		{"another selector", []mailspine.TLSA{mine(3, 1, 1), not(3, 0, 2)}, 0},
		{"another usage", []mailspine.TLSA{mine(3, 1, 1), not(2, 1, 2)}, 0},
		{"in full counts beside any digest", []mailspine.TLSA{mine(3, 1, 0), not(3, 1, 2)}, 0},
		{"in full hides no digest", []mailspine.TLSA{not(3, 1, 0), mine(3, 1, 1)}, 0},
		{"an unusable one hides nothing", []mailspine.TLSA{mine(3, 1, 1), {Usage: 3, Selector: 1, MatchingType: 2, Data: make([]byte, 63)}}, 0},
		{"PKIX usages hide nothing", []mailspine.TLSA{mine(3, 1, 1), not(1, 1, 2)}, 0},
	} {
		if _, got := verdict(t, c.recs, chainOf(p.leaf, p.middle), host, now); got != c.want {
			t.Errorf("%s: %v, want %v", c.about, got, c.want)
		}
	}
}

func TestUsable(t *testing.T) {
	cert := newPKI(t).leaf.Certificate
	for _, c := range []struct {
		about string
		rec   mailspine.TLSA
		want  error
	}{
		{"3 1 1", Record(cert, 3, 1, 1), nil},
		{"2 0 2", Record(cert, 2, 0, 2), nil},
		{"3 0 0", Record(cert, 3, 0, 0), nil},
		{"PKIX-TA", Record(cert, 0, 1, 1), ErrUsage},
		{"PKIX-EE", Record(cert, 1, 1, 1), ErrUsage},
		{"private usage", Record(cert, 255, 1, 1), ErrUsage},
		{"selector", mailspine.TLSA{Usage: 3, Selector: 2, MatchingType: 1, Data: make([]byte, 32)}, ErrSelector},
		{"matching type", mailspine.TLSA{Usage: 3, Selector: 1, MatchingType: 3, Data: make([]byte, 48)}, ErrMatching},
		{"SHA-256 too short", mailspine.TLSA{Usage: 3, Selector: 1, MatchingType: 1, Data: make([]byte, 31)}, ErrData},
		{"SHA-256 too long", mailspine.TLSA{Usage: 3, Selector: 1, MatchingType: 1, Data: make([]byte, 64)}, ErrData},
		{"SHA-512 too short", mailspine.TLSA{Usage: 3, Selector: 1, MatchingType: 2, Data: make([]byte, 32)}, ErrData},
		{"nothing", mailspine.TLSA{Usage: 3, Selector: 1, MatchingType: 1}, ErrData},
		{"nothing in full", mailspine.TLSA{Usage: 3, Selector: 1}, ErrData},
		{"no DER", mailspine.TLSA{Usage: 3, Selector: 1, Data: []byte("certificate")}, ErrData},
		{"DER that is no sequence", mailspine.TLSA{Usage: 3, Selector: 1, Data: []byte{4, 1, 0}}, ErrData},
		{"cut off", mailspine.TLSA{Usage: 3, Data: cert.Raw[:len(cert.Raw)-1]}, ErrData},
		{"something behind", mailspine.TLSA{Usage: 3, Data: append(slices.Clone(cert.Raw), 0)}, ErrData},
		{"huge", mailspine.TLSA{Usage: 3, Data: append([]byte{0x30, 0x82, 0xff, 0xff}, make([]byte, 0xffff)...)}, ErrData},
	} {
		if got := Usable(c.rec); !errors.Is(got, c.want) {
			t.Errorf("%s: %v, want %v", c.about, got, c.want)
		}
	}
}

// Hostile zones and servers: many records, many authorities, long chains, large keys. It must end soon, and without a match.
func TestVerifyBounds(t *testing.T) {
	p := newPKI(t)
	var recs []mailspine.TLSA
	for i := range 60000 {
		data := make([]byte, 32)
		copy(data, fmt.Sprint(i))
		recs = append(recs, mailspine.TLSA{Usage: uint8(2 + i%2), Selector: uint8(i / 2 % 2), MatchingType: 1, Data: data})
	}
	// The one that matches is beyond the bound.
	recs = append(recs, Record(p.leaf.Certificate, 3, 1, 1))
	if _, got := verdict(t, recs, chainOf(p.leaf), host, now); got != NoMatch {
		t.Errorf("many records: %v", got)
	}
	// A hundred authorities in full, each of which could be the issuer by its name.
	recs = nil
	for range 100 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, Record(issueFor(t, nil, key, "Test Middle", authority).Certificate, 2, uint8(len(recs)%2), 0))
	}
	start := time.Now()
	if _, got := verdict(t, recs, append(chainOf(p.leaf), slices.Repeat(chainOf(p.middle), 100)...), host, now); got != Untrusted {
		t.Errorf("many authorities: %v", got)
	}
	// A key so large that each signature check would cost seconds.
	huge, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 100_000), big.NewInt(1)), E: 1<<31 - 1})
	if err != nil {
		t.Fatal(err)
	}
	rec := mailspine.TLSA{Usage: 2, Selector: 1, Data: huge}
	if Usable(rec) != nil {
		t.Error("the record with a huge key is meant to be well-formed")
	}
	if _, got := verdict(t, []mailspine.TLSA{rec}, chainOf(p.leaf, p.middle), host, now); got != NoMatch {
		t.Errorf("a huge key: %v", got)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("many authorities took %v", d)
	}
}

// Any set of records, against the rule in one sentence: a digest does not count if there is a stronger one for its usage and selector.
func TestStrongest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		recs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) mailspine.TLSA {
			r := mailspine.TLSA{Usage: rapid.Uint8Range(0, 4).Draw(t, "usage"), Selector: rapid.Uint8Range(0, 2).Draw(t, "selector"),
				MatchingType: rapid.Uint8Range(0, 3).Draw(t, "matching")}
			r.Data = rapid.SampledFrom([][]byte{nil, {0x30, 0}, make([]byte, 32), make([]byte, 64)}).Draw(t, "data")
			return r
		}), 0, 12).Draw(t, "recs")
		var want []mailspine.TLSA
		for _, r := range recs {
			counts := Usable(r) == nil
			for _, o := range recs {
				if Usable(o) == nil && o.Usage == r.Usage && o.Selector == r.Selector && r.MatchingType == MatchSHA256 && o.MatchingType == MatchSHA512 {
					counts = false
				}
			}
			if counts {
				want = append(want, r)
			}
		}
		if got := strongest(usable(recs)); !cmp.Equal(got, want) {
			t.Fatalf("%v\nwant %v", got, want)
		}
	})
}

// A real handshake, and a resumed one: both have the certificates, and both are verified.
func TestVerifyHandshake(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	addr := shows(t, p.leaf, p.middle)
	dial := func(rec mailspine.TLSA, cache tls.ClientSessionCache) (resumed bool, err error) {
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "mx.example.org", InsecureSkipVerify: true, ClientSessionCache: cache, MaxVersion: tls.VersionTLS12,
			VerifyConnection: func(cs tls.ConnectionState) error {
				_, err := Verify([]mailspine.TLSA{rec}, cs.PeerCertificates, host, time.Time{})
				return err
			}})
		if err != nil {
			return false, err
		}
		defer c.Close()
		return c.ConnectionState().DidResume, nil
	}
	cache := tls.NewLRUClientSessionCache(1)
	for _, rec := range []mailspine.TLSA{Record(p.leaf.Certificate, 3, 1, 1), Record(p.middle.Certificate, 2, 0, 2)} {
		if _, err := dial(rec, cache); err != nil {
			t.Fatal(err)
		}
		if resumed, err := dial(rec, cache); err != nil || !resumed {
			t.Errorf("resumed %v, %v", resumed, err)
		}
	}
	// The records changed since the session began.
	var ve *VerifyError
	if _, err := dial(Record(other.leaf.Certificate, 3, 1, 1), cache); !errors.As(err, &ve) || ve.Reason != NoMatch {
		t.Errorf("a resumed session against other records: %v", err)
	}
}

func TestRecord(t *testing.T) {
	cert := newPKI(t).leaf.Certificate
	for _, r := range []mailspine.TLSA{Record(nil, 3, 1, 1), Record(cert, 3, 2, 1), Record(cert, 3, 1, 3), Record(&x509.Certificate{}, 3, 1, 0)} {
		if r.Data != nil || Usable(r) == nil {
			t.Errorf("%v", r)
		}
	}
	for _, c := range []struct {
		host string
		port uint16
		want string
	}{{"mx.example.org", 0, "_25._tcp.mx.example.org"}, {"mx.example.org.", 465, "_465._tcp.mx.example.org"}} {
		if got := Name(c.host, c.port); got != c.want {
			t.Errorf("Name(%q, %d) = %q", c.host, c.port, got)
		}
	}
}

func TestVerifyError(t *testing.T) {
	for r := Reason(1); int(r) < len(reasons); r++ {
		if r.String() == "" || r.ResultType() == "" {
			t.Errorf("Reason %d has no text", r)
		}
	}
	if s := Reason(0).String() + Reason(99).String() + Reason(99).ResultType(); s != "Reason(0)Reason(99)validation-failure" {
		t.Error(s)
	}
	cause := errors.New("cause")
	e := &VerifyError{Reason: WrongName, Names: []string{"a\nb"}, Err: cause}
	if !errors.Is(e, cause) || e.Error() != `dane: the certificate is for another host, not for any of ["a\nb"]: cause` {
		t.Error(e)
	}
}
