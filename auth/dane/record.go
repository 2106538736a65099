package dane

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
)

// Certificate usages (RFC 6698 section 2.1.1, RFC 7218). Two more, 0 and 1, are unusable for SMTP (RFC 7672 section 3.1.3).
const (
	UsageTA uint8 = 2 // DANE-TA: the record names an authority that vouches for the server
	UsageEE uint8 = 3 // DANE-EE: the record names the server's own certificate or key
)

// Selectors (RFC 6698 section 2.1.2, RFC 7218).
const (
	SelectorCert uint8 = 0 // the whole certificate
	SelectorSPKI uint8 = 1 // the public key, which a renewed certificate may keep
)

// Matching types (RFC 6698 section 2.1.3, RFC 7218).
const (
	MatchFull   uint8 = 0 // the data themselves
	MatchSHA256 uint8 = 1
	MatchSHA512 uint8 = 2
)

const (
	// maxRecords bounds the records of a host that are looked at; auth/dns takes no more of one answer.
	maxRecords = 1000
	// maxData bounds the data of a record. Certificates of mail servers have one to four KiB.
	maxData = 16 << 10
)

// Name returns the name at which the records of a server are published: "_25._tcp.mx.example.org" (RFC 6698 section 3).
// A port of 0 is 25. The host is taken as it is, without its trailing dot.
func Name(host string, port uint16) string {
	if port == 0 {
		port = 25
	}
	return "_" + strconv.Itoa(int(port)) + "._tcp." + strings.TrimSuffix(host, ".")
}

// Record returns the record that matches a certificate. "3 1 1", that is UsageEE, SelectorSPKI and MatchSHA256, is the
// advice for a mail server (RFC 7672 section 3.1.1); with UsageTA the certificate is that of an authority in the chain that the
// server sends. With a selector or a matching type that is not known, or without a certificate, the record has
// no data and is unusable.
func Record(cert *x509.Certificate, usage, selector, matching uint8) mailspine.TLSA {
	return mailspine.TLSA{Usage: usage, Selector: selector, MatchingType: matching,
		Data: association(cert, selector, matching)}
}

// Format returns a record as a line of a zone file (RFC 6698 section 2.2), its name absolute:
//
//	_25._tcp.mx.example.org. IN TLSA 3 1 1 0123...
func Format(host string, port uint16, rec mailspine.TLSA) string {
	return fmt.Sprintf("%s. IN TLSA %d %d %d %s", Name(host, port), rec.Usage, rec.Selector, rec.MatchingType, hex.EncodeToString(rec.Data))
}

// brief describes a record for an error or a finding, its data cut short.
func brief(rec mailspine.TLSA) string {
	s := fmt.Sprintf("%d %d %d %x", rec.Usage, rec.Selector, rec.MatchingType, rec.Data[:min(len(rec.Data), 8)])
	if len(rec.Data) > 8 {
		s += "..."
	}
	return s
}

// The reasons for which a record is unusable. Match them with errors.Is.
var (
	ErrUsage    = errors.New("certificate usage is not DANE-TA or DANE-EE (RFC 7672 section 3.1.3)")
	ErrSelector = errors.New("selector is not known (RFC 6698 section 2.1.2)")
	ErrMatching = errors.New("matching type is not known (RFC 6698 section 2.1.3)")
	ErrData     = errors.New("data do not fit the matching type (RFC 6698 section 2.1.4)")
)

// Usable returns nil if a record can authenticate a mail server, else the reason why it cannot. Records
// that are unusable say all the same that there is TLS (RFC 7672 section 2.2).
func Usable(rec mailspine.TLSA) error {
	if rec.Usage != UsageTA && rec.Usage != UsageEE {
		return ErrUsage
	}
	if rec.Selector > SelectorSPKI {
		return ErrSelector
	}
	switch rec.MatchingType {
	case MatchFull:
		// Certificates and keys are DER sequences, and nothing follows.
		var v asn1.RawValue
		if len(rec.Data) > maxData {
			return ErrData
		}
		rest, err := asn1.Unmarshal(rec.Data, &v)
		if err != nil || len(rest) > 0 || v.Class != asn1.ClassUniversal || v.Tag != asn1.TagSequence || !v.IsCompound {
			return ErrData
		}
	case MatchSHA256:
		if len(rec.Data) != sha256.Size {
			return ErrData
		}
	case MatchSHA512:
		if len(rec.Data) != sha512.Size {
			return ErrData
		}
	default:
		return ErrMatching
	}
	return nil
}

// usable returns the records that can authenticate a server, in their order.
func usable(recs []mailspine.TLSA) []mailspine.TLSA {
	var out []mailspine.TLSA
	for _, r := range recs[:min(len(recs), maxRecords)] {
		if Usable(r) == nil {
			out = append(out, r)
		}
	}
	return out
}

// strongest leaves out the records whose digest is weaker than that of another one with the same usage and selector (RFC
// 7671 section 9), so that nobody who breaks the weaker one can make use of it. All of recs are usable.
func strongest(recs []mailspine.TLSA) []mailspine.TLSA {
	var best [4][2]uint8 // by usage and selector; the numbers of the digests are in the order of their strength
	for _, r := range recs {
		b := &best[r.Usage][r.Selector]
		*b = max(*b, r.MatchingType)
	}
	var out []mailspine.TLSA
	for _, r := range recs {
		if r.MatchingType == MatchFull || r.MatchingType == best[r.Usage][r.Selector] {
			out = append(out, r)
		}
	}
	return out
}

// association returns the data of a record that matches a certificate; nil: there are none.
func association(cert *x509.Certificate, selector, matching uint8) []byte {
	if cert == nil {
		return nil
	}
	var b []byte
	switch selector {
	case SelectorCert:
		b = cert.Raw
	case SelectorSPKI:
		b = cert.RawSubjectPublicKeyInfo
	}
	if len(b) == 0 { // a certificate that was never encoded
		return nil
	}
	switch matching {
	case MatchFull:
		return b
	case MatchSHA256:
		s := sha256.Sum256(b)
		return s[:]
	case MatchSHA512:
		s := sha512.Sum512(b)
		return s[:]
	}
	return nil
}
