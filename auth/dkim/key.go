package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
)

// A Record is a key record (RFC 6376 section 3.6.1), as it is published under
// selector._domainkey.domain.
type Record struct {
	Algorithm string           // k=: "rsa" or "ed25519"
	Key       crypto.PublicKey // *rsa.PublicKey or ed25519.PublicKey
	Hashes    []string         // h=; nil: all
	Services  []string         // s=, the service types that the key is for; nil: all
	Testing   bool             // t=y
	Strict    bool             // t=s: i= must not be a subdomain of d=
}

// ErrRevoked is the error of [ParseRecord] for a record with an empty p=.
var ErrRevoked = errors.New("dkim: the key is revoked (RFC 6376 section 3.6.1)")

// ParseRecord parses a key record. The lists of what it may be used for must
// allow e-mail and SHA-256.
func ParseRecord(txt string) (*Record, error) { return ParseRecordFor(txt, ServiceEmail) }

// ParseRecordFor is ParseRecord for other uses than e-mail: s= must allow one of the service types, if there is such a list. With none only a record without it is
// taken.
func ParseRecordFor(txt string, services ...string) (*Record, error) {
	bad := func(format string, args ...any) (*Record, error) {
		return nil, fmt.Errorf("dkim: key record: "+format+" (RFC 6376 section 3.6.1)", args...)
	}
	tags, rule := parseTags(txt)
	if rule != "" {
		return bad("%s", rule)
	}
	for i, t := range tags {
		if t.name == "v" && (i != 0 || t.value != "DKIM1") {
			return bad("v=DKIM1 must come first")
		}
	}
	p, ok := tagValue(tags, "p")
	if !ok {
		return bad("p= is missing")
	}
	r := &Record{Algorithm: "rsa"}
	if k, ok := tagValue(tags, "k"); ok {
		r.Algorithm = k
	}
	if h, ok := tagValue(tags, "h"); ok {
		r.Hashes = listed(h)
		if !slices.Contains(r.Hashes, "sha256") {
			return bad("h= does not allow sha256")
		}
	}
	if s, ok := tagValue(tags, "s"); ok {
		r.Services = listed(s)
		if !slices.ContainsFunc(services, r.Allows) {
			return bad("s= does not allow %s", strings.Join(services, " or "))
		}
	}
	if t, ok := tagValue(tags, "t"); ok {
		l := listed(t)
		r.Testing, r.Strict = slices.Contains(l, "y"), slices.Contains(l, "s")
	}
	if p == "" {
		return nil, ErrRevoked
	}
	der, err := decodeBase64(p)
	if err != nil {
		return bad("p= is not base64")
	}
	switch r.Algorithm {
	case "rsa":
		pub, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			// Erratum 3017: some publish the bare RSAPublicKey.
			if pub, err = x509.ParsePKCS1PublicKey(der); err != nil {
				return bad("p= is no RSA key")
			}
		}
		key, ok := pub.(*rsa.PublicKey)
		if !ok {
			return bad("p= is no RSA key")
		}
		r.Key = key
	case "ed25519":
		if len(der) != ed25519.PublicKeySize {
			return bad("p= is no Ed25519 key") // RFC 8463 section 4: the bare 32 octets
		}
		r.Key = ed25519.PublicKey(der)
	default:
		return bad("k=%q is not known", r.Algorithm)
	}
	return r, nil
}

// Allows reports whether the key is for a service type.
func (r *Record) Allows(service string) bool {
	return len(r.Services) == 0 || slices.Contains(r.Services, "*") || slices.Contains(r.Services, service)
}

// Bits returns the size of the key.
func (r *Record) Bits() int { return keyBits(r.Key) }

func keyBits(k crypto.PublicKey) int {
	switch k := k.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen()
	case ed25519.PublicKey:
		return 256
	}
	return 0
}

// String returns the record's text, to be published as one TXT record (in
// strings of at most 255 octets, which name servers cut it into). "" for a key
// of another kind than RSA and Ed25519.
func (r *Record) String() string {
	var b strings.Builder
	b.WriteString("v=DKIM1; k=")
	var der []byte
	switch k := r.Key.(type) {
	case *rsa.PublicKey:
		b.WriteString("rsa")
		var err error
		if der, err = x509.MarshalPKIXPublicKey(k); err != nil {
			return ""
		}
	case ed25519.PublicKey:
		b.WriteString("ed25519")
		der = k
	default:
		return ""
	}
	if len(r.Hashes) > 0 {
		b.WriteString("; h=" + strings.Join(r.Hashes, ":"))
	}
	if len(r.Services) > 0 {
		b.WriteString("; s=" + strings.Join(r.Services, ":"))
	}
	switch {
	case r.Testing && r.Strict:
		b.WriteString("; t=y:s")
	case r.Testing:
		b.WriteString("; t=y")
	case r.Strict:
		b.WriteString("; t=s")
	}
	b.WriteString("; p=" + base64.StdEncoding.EncodeToString(der))
	return b.String()
}

// keyName returns the name of a key record, with A-labels (RFC 8616 section 4).
func keyName(selector, domain string) (string, bool) {
	s, err := mailspine.ASCIIDomain(selector)
	if err != nil {
		return "", false
	}
	d, err := mailspine.ASCIIDomain(domain)
	if err != nil {
		return "", false
	}
	return s + "._domainkey." + d, validName(s) && validName(d) && len(s)+len(d)+12 <= 253
}

// validName reports whether a name is made of labels of letters, digits,
// hyphens and underscores.
func validName(name string) bool {
	n := 0
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '.' {
			if n == 0 {
				return false
			}
			n = 0
			continue
		}
		if !('a' <= c|0x20 && c|0x20 <= 'z') && !('0' <= c && c <= '9') && c != '-' && c != '_' {
			return false
		}
		if n++; n > 63 {
			return false
		}
	}
	return n > 0
}

// fetched is a key as it came from DNS.
type fetched struct {
	record    *Record
	service   string // the first of those asked for that the record allows
	authentic bool
	status    Status // "" when there is a record
	problem   string
}

// fetch looks up a key for one of the services, the first one for which there is a key. Records at the name that are not DKIM keys at all, as
// wildcards make them, or are for nothing that was asked for, are passed over; several keys for a service are an error, since it is
// undefined which one is meant (RFC 6376 section 3.6.2.2).
func fetch(ctx context.Context, r mailspine.Resolver, name string, services []string) fetched {
	a, err := r.Lookup(ctx, name, mailspine.TypeTXT)
	switch {
	case errors.Is(err, mailspine.ErrNXDomain), errors.Is(err, mailspine.ErrNoData):
		return fetched{status: PermError, problem: "no key at " + name}
	case errors.Is(err, mailspine.ErrDNSBogus):
		return fetched{status: TempError, problem: "bogus answer for the key at " + name}
	case err != nil || len(a.TXT) == 0: // no records and no error is against the contract
		return fetched{status: TempError, problem: "cannot fetch the key at " + name}
	}
	var found []*Record
	var bad error
	for _, txt := range a.TXT[:min(len(a.TXT), 20)] {
		rec, err := ParseRecordFor(txt, services...)
		switch {
		case err == nil:
			found = append(found, rec)
		case bad == nil || looksLikeKey(txt):
			bad = err
		}
	}
	for _, service := range services {
		var key *Record
		for _, rec := range found {
			if !rec.Allows(service) {
				continue
			}
			if key != nil {
				return fetched{status: PermError, problem: "several keys at " + name}
			}
			key = rec
		}
		if key != nil {
			return fetched{record: key, service: service, authentic: a.Authentic}
		}
	}
	if bad == nil { // not possible: what was found is for one of the services
		return fetched{status: PermError, problem: "no key at " + name}
	}
	return fetched{status: PermError, problem: strings.TrimPrefix(bad.Error(), "dkim: ")}
}

func looksLikeKey(txt string) bool { return strings.HasPrefix(txt, "v=DKIM1") }
