package dane

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"testing"

	"github.com/mailspine/mailspine"
)

// recordsOf reads records as a stranger may have published them: three octets, a length, and the data.
func recordsOf(b []byte) []mailspine.TLSA {
	var recs []mailspine.TLSA
	for len(b) >= 5 && len(recs) < 64 {
		n := min(int(binary.BigEndian.Uint16(b[3:])), len(b)-5)
		recs = append(recs, mailspine.TLSA{Usage: b[0], Selector: b[1], MatchingType: b[2], Data: b[5 : 5+n]})
		b = b[5+n:]
	}
	return recs
}

func encode(recs ...mailspine.TLSA) []byte {
	var b []byte
	for _, r := range recs {
		b = append(b, r.Usage, r.Selector, r.MatchingType)
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.Data)))
		b = append(b, r.Data...)
	}
	return b
}

// Records of any kind against a good chain: what is accepted must be one of the records, usable, and really about the chain.
func FuzzVerifyRecords(f *testing.F) {
	p := newPKI(f)
	chain := chainOf(p.leaf, p.middle)
	for u := uint8(0); u < 4; u++ {
		for m := uint8(0); m < 3; m++ {
			f.Add(encode(Record(p.leaf.Certificate, u, 1, m), Record(p.middle.Certificate, u, 0, m)))
			f.Add(encode(Record(p.root.Certificate, u, m&1, 0)))
		}
	}
	f.Add(encode(mailspine.TLSA{Usage: 3, Selector: 1, MatchingType: 1}, mailspine.TLSA{Usage: 2, Data: []byte{0x30, 0x80}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		recs := recordsOf(b)
		before := encode(recs...)
		rec, err := Verify(recs, chain, host, now)
		if !bytes.Equal(before, encode(recs...)) {
			t.Fatal("the records were changed")
		}
		for _, r := range recs {
			brief(r)
			Format("mx.example.org", 25, r)
		}
		if err != nil {
			if err.(*VerifyError).Error() == "" {
				t.Error("no text")
			}
			return
		}
		if Usable(rec) != nil {
			t.Fatalf("accepted by an unusable record: %s", brief(rec))
		}
		// The oracle: by hand, for the leaf and its two authorities.
		about := []*issued{p.middle, p.root}
		if rec.Usage == UsageEE {
			about = []*issued{p.leaf}
		}
		for _, c := range about {
			if bytes.Equal(rec.Data, Record(c.Certificate, rec.Usage, rec.Selector, rec.MatchingType).Data) {
				return
			}
		}
		t.Fatalf("accepted by %s, which is about nothing in the chain", brief(rec))
	})
}

// A chain of any kind, against records that are about another server: nothing a server can show is accepted, and nothing panics.
func FuzzVerifyChain(f *testing.F) {
	p, other := newPKI(f), newPKI(f)
	self := issue(f, nil, "mx.example.org", authority)
	var recs []mailspine.TLSA
	for m := uint8(0); m < 2; m++ {
		for s := uint8(0); s < 2; s++ {
			recs = append(recs, Record(p.leaf.Certificate, 3, s, m), Record(p.root.Certificate, 2, s, m), Record(p.middle.Certificate, 2, s, m))
		}
	}
	f.Add(other.leaf.Raw, other.middle.Raw, other.root.Raw)
	f.Add(self.Raw, p.middle.Raw, p.root.Raw)
	f.Add(p.leaf.Raw, p.middle.Raw, other.root.Raw)
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		var chain []*x509.Certificate
		for _, der := range [][]byte{a, b, c} {
			if cert, err := x509.ParseCertificate(der); err == nil {
				chain = append(chain, cert)
			}
		}
		_, err := Verify(recs, chain, host, now)
		if err == nil && !bytes.Equal(chain[0].RawSubjectPublicKeyInfo, p.leaf.RawSubjectPublicKeyInfo) {
			t.Fatal("accepted what nobody published")
		}
		found := Check(t.Context(), publishing(recs), []string{"mx.example.org"}, 25, probing(chain))
		if len(found) == 0 {
			t.Fatal("nothing found")
		}
	})
}
