package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
)

// The defaults of a Verifier.
const (
	DefaultMaxSignatures = 8
	DefaultTimeout       = 10 * time.Second
	DefaultMinRSABits    = 1024 // RFC 8301 section 3.2
	DefaultMaxRSABits    = 8192
	maxNames             = 1000 // names in h=
)

// A Verifier verifies the signatures of messages. It is safe for concurrent
// use as long as its fields do not change. The zero value has no Resolver, and
// every signature is temperror.
type Verifier struct {
	Resolver mailspine.Resolver
	// MaxSignatures is how many signatures of a message are looked at, the
	// topmost ones; 0: DefaultMaxSignatures. The others get one Verification together.
	MaxSignatures int
	// MaxHeader bounds the header block in octets; 0: mailspine.MaxHeader. No signature of a message
	// with a larger one passes, nor of one with more than mailspine.MaxHeaderFields fields.
	MaxHeader int
	// MinRSABits and MaxRSABits bound the size of RSA keys; 0: DefaultMinRSABits and
	// DefaultMaxRSABits. A minimum below 1024 is taken as 1024.
	MinRSABits, MaxRSABits int
	// AllowLength accepts signatures with l=, which leave the rest of the body
	// to anybody.
	AllowLength bool
	// Services are the service types for which keys are taken (s=, RFC 6376 section 3.6.1); empty: ServiceEmail. A key for
	// all services, or without a list, is for each of them, and a key for several is taken for e-mail first. Which one it was is in
	// Verification.Service.
	//
	// Whoever has a key for ServiceTLSRPT (RFC 8460 section 3) is trusted with reports, not with the domain's mail. So a signature with a key that is taken
	// for that service only passes for a message with exactly one Content-Type field, which is multipart/report with report-type=tlsrpt and is
	// signed, and never with l=. Other mail is permerror, as if the service were not here. Readers may be shown such a message as
	// any other, so this belongs where reports arrive: see auth.Checker.
	Services []string
	// Timeout bounds the lookup of each key; 0: DefaultTimeout. They run at the same time.
	Timeout time.Duration
	// Now is the clock for x=; nil: time.Now.
	Now func() time.Time
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (v *Verifier) now() time.Time {
	if v.Now != nil {
		return v.Now()
	}
	return time.Now()
}

// Verify verifies a whole message. The error is that of reading it; what is
// wrong with signatures is in the results.
func (v *Verifier) Verify(ctx context.Context, msg mailspine.Content) ([]Verification, error) {
	r, err := msg.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	p := v.Start(ctx)
	defer p.Cancel()
	if _, err := io.Copy(p, r); err != nil {
		return nil, err
	}
	return p.Finish(), nil
}

// Start begins the verification of a message that will be written to the
// result. Finish or Cancel must be called in the end.
func (v *Verifier) Start(ctx context.Context) *Stream {
	ctx, cancel := context.WithCancel(ctx)
	return &Stream{v: v, ctx: ctx, cancel: cancel, split: splitter{max: or(v.MaxHeader, mailspine.MaxHeader)}}
}

// A Stream verifies one message as it arrives. It is used by one goroutine. It
// keeps the header block and nothing of the body.
type Stream struct {
	v      *Verifier
	ctx    context.Context // of this one message, as its Start was given it
	cancel context.CancelFunc
	wait   sync.WaitGroup
	split  splitter

	headed bool
	report bool // the header is that of a report about TLS
	sigs   []*signature
	extra  int // signatures beyond the limit
	bodies []*bodyHash
	done   bool
}

// Write takes the next part of the message. It never fails.
func (p *Stream) Write(b []byte) (int, error) {
	if p.done {
		return len(b), nil
	}
	rest := b
	if !p.split.done {
		rest = p.split.write(b)
		if p.split.done {
			p.header()
		}
	}
	if len(rest) > 0 {
		for _, h := range p.bodies {
			h.Write(rest)
		}
	}
	return len(b), nil
}

// HeaderBlock returns the header block of the message, without the empty line,
// as far as it was written; nil if it is too large. It must not be modified.
func (p *Stream) HeaderBlock() (block []byte, tooLarge bool) { return p.split.buf, p.split.over }

// HeaderDone reports whether the header block is complete.
func (p *Stream) HeaderDone() bool { return p.split.done }

// Cancel gives up: lookups are ended and waited for. After Finish it does nothing.
func (p *Stream) Cancel() {
	p.done = true
	p.cancel()
	p.wait.Wait()
}

// A signature is one DKIM-Signature field on its way.
type signature struct {
	Verification
	field    *field
	tags     []tag
	sig, sum []byte // b= and bh=
	header   []byte // the hash that b= signs
	body     *bodyHash
	key      *keySlot
}

// A keySlot is a key being fetched; signatures with the same key share it.
type keySlot struct {
	name string
	fetched
}

// header runs once, when the header block is complete: it reads the signatures
// and starts to fetch their keys, at most MaxSignatures of them at a time.
func (p *Stream) header() {
	p.headed = true
	if p.split.over {
		return
	}
	bl := splitBlock(p.split.buf)
	services := p.v.services()
	p.report = slices.Contains(services, ServiceTLSRPT) && bl.isTLSReport()
	limit := or(p.v.MaxSignatures, DefaultMaxSignatures)
	var slots []*keySlot
	for _, i := range bl.byName["dkim-signature"] {
		if len(p.sigs) >= limit {
			p.extra++
			continue
		}
		s := p.v.parse(&bl.fields[i])
		p.sigs = append(p.sigs, s)
		if s.Status != "" {
			continue
		}
		name, _ := keyName(s.Selector, s.Domain)
		for _, k := range slots {
			if k.name == name {
				s.key = k
			}
		}
		if s.key == nil {
			s.key = &keySlot{name: name}
			slots = append(slots, s.key)
		}
		relaxed := s.BodyCanonicalization == "relaxed"
		for _, h := range p.bodies {
			if h.relaxed == relaxed && h.limit == s.Length {
				s.body = h
			}
		}
		if s.body == nil {
			s.body = newBodyHash(relaxed, s.Length)
			p.bodies = append(p.bodies, s.body)
		}
		s.hashHeader(bl)
	}
	// While the keys are waited for, nothing but the hashes is kept of the fields.
	for _, s := range p.sigs {
		s.field, s.tags = nil, nil
	}
	for _, k := range slots {
		if p.v.Resolver == nil {
			k.fetched = fetched{status: TempError, problem: "no resolver"}
			continue
		}
		p.wait.Go(func() {
			ctx, cancel := context.WithTimeout(p.ctx, or(p.v.Timeout, DefaultTimeout))
			defer cancel()
			k.fetched = fetch(ctx, p.v.Resolver, k.name, services)
		})
	}
}

// parse reads a signature. If it is unusable Status and Problem say so, otherwise
// Status is empty.
func (v *Verifier) parse(f *field) *signature {
	s := &signature{field: f, Verification: Verification{Length: -1}}
	bad := func(st Status, format string, args ...any) *signature {
		s.Status, s.Problem = st, fmt.Sprintf(format, args...)
		return s
	}
	tags, rule := parseTags(f.value())
	if rule != "" {
		return bad(PermError, "%s (RFC 6376 section 3.2)", rule)
	}
	s.tags = tags
	get := func(name string) string {
		val, _ := tagValue(tags, name)
		return noFWS(val)
	}
	s.Domain = strings.ToLower(get("d"))
	s.Selector = get("s")
	s.Algorithm = get("a")
	b := get("b")
	s.Signature = b[:min(len(b), 12)]
	if version := get("v"); version != "1" {
		return bad(PermError, "version is not 1 (RFC 6376 section 3.5)")
	}
	for _, name := range []string{"a", "b", "bh", "d", "h", "s"} {
		if get(name) == "" {
			return bad(PermError, "tag %s= is missing (RFC 6376 section 3.5)", name)
		}
	}
	if _, ok := keyName(s.Selector, s.Domain); !ok {
		return bad(PermError, "d= and s= make no domain name (RFC 6376 section 3.5)")
	}
	s.Identity = "@" + s.Domain
	if id := get("i"); id != "" {
		s.Identity = id
		if d, ok := identityDomain(id); !ok || d != s.Domain && !strings.HasSuffix(d, "."+s.Domain) {
			return bad(PermError, "i= is not in the domain of d= (RFC 6376 section 3.5)")
		}
	}
	switch s.Algorithm {
	case "rsa-sha256", "ed25519-sha256":
	case "rsa-sha1":
		return bad(Policy, "rsa-sha1 is not acceptable (RFC 8301 section 3.1)")
	default:
		return bad(PermError, "a= is not a known algorithm")
	}
	s.HeaderCanonicalization, s.BodyCanonicalization = "simple", "simple"
	if c := get("c"); c != "" {
		hc, bc, _ := strings.Cut(c, "/")
		s.HeaderCanonicalization, s.BodyCanonicalization = hc, or(bc, "simple")
	}
	for _, c := range []string{s.HeaderCanonicalization, s.BodyCanonicalization} {
		if c != "simple" && c != "relaxed" {
			return bad(PermError, "c= is not a known canonicalization")
		}
	}
	h, _ := tagValue(tags, "h")
	s.Headers = listed(h)
	if len(s.Headers) > maxNames {
		s.Headers = nil
		return bad(Policy, "more than %d names in h=", maxNames)
	}
	if !slices.ContainsFunc(s.Headers, func(n string) bool { return strings.EqualFold(n, "from") }) {
		return bad(PermError, "From is not signed (RFC 6376 section 5.4)")
	}
	if q := get("q"); q != "" && !slices.Contains(listed(q), "dns/txt") {
		return bad(PermError, "q= has no known method")
	}
	if l := get("l"); l != "" {
		n, err := strconv.ParseInt(l, 10, 64)
		if err != nil || !digits(l) {
			return bad(PermError, "l= is not a number (RFC 6376 section 3.5)")
		}
		s.Length = n
	}
	var ok bool
	if s.Signed, ok = stamp(get("t")); !ok {
		return bad(PermError, "t= is not a time (RFC 6376 section 3.5)")
	}
	if s.Expires, ok = stamp(get("x")); !ok {
		return bad(PermError, "x= is not a time (RFC 6376 section 3.5)")
	}
	if !s.Expires.IsZero() {
		if !s.Signed.IsZero() && s.Expires.Before(s.Signed) {
			return bad(PermError, "x= is before t= (RFC 6376 section 3.5)")
		}
		if v.now().After(s.Expires) {
			return bad(Policy, "expired on %s", s.Expires.UTC().Format(time.RFC3339))
		}
	}
	if s.Length >= 0 && !v.AllowLength {
		return bad(Policy, "l= leaves the end of the body unsigned (RFC 6376 section 8.2)")
	}
	var err error
	if s.sig, err = decodeBase64(get("b")); err != nil {
		return bad(PermError, "b= is not base64")
	}
	if s.sum, err = decodeBase64(get("bh")); err != nil || len(s.sum) != sha256.Size {
		return bad(PermError, "bh= is not a SHA-256 in base64")
	}
	return s
}

func identityDomain(id string) (string, bool) {
	i := strings.LastIndexByte(id, '@')
	if i < 0 {
		return "", false
	}
	return strings.ToLower(id[i+1:]), true
}

func digits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// stamp reads a time of t= or x=; "" is the zero time. Twelve digits reach far
// enough (RFC 6376 section 3.5).
func stamp(s string) (time.Time, bool) {
	if s == "" {
		return time.Time{}, true
	}
	if len(s) > 12 || !digits(s) {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return time.Unix(n, 0), err == nil
}

// hashHeader computes what the signature signs (RFC 6376 section 3.7), but for
// the body hash, which is in bh=.
func (s *signature) hashHeader(bl *block) {
	relaxed := s.HeaderCanonicalization == "relaxed"
	h := sha256.New()
	bl.pick(h, s.Headers, relaxed)
	h.Write(withoutSignature(s.field, s.tags, relaxed))
	s.header = h.Sum(nil)
}

// withoutSignature is the canonical DKIM-Signature field with an empty b= and
// without its last line end.
func withoutSignature(f *field, tags []tag, relaxed bool) []byte {
	raw := f.raw
	off := strings.IndexByte(string(raw), ':') + 1
	for _, t := range tags {
		if t.name == "b" {
			raw = append(slices.Clone(raw[:off+t.from]), raw[off+t.to:]...)
			break
		}
	}
	c := canonicalField(raw, relaxed)
	return c[:len(strings.TrimRight(string(c), "\r\n"))]
}

// Finish ends the message and returns what came out for its signatures, in
// the order of the header; none: there is no signature. It waits for the keys, which takes no
// longer than Timeout after the end of the header. It can be called once.
func (p *Stream) Finish() []Verification {
	if !p.split.done {
		// A message without an empty line: all of it is header.
		p.split.done = true
	}
	if !p.headed {
		p.header()
	}
	p.wait.Wait()
	p.done = true
	p.cancel()
	if p.split.over {
		return []Verification{{Status: PermError, Length: -1, Problem: "the header block is too large"}}
	}
	sums := make(map[*bodyHash][]byte, len(p.bodies))
	for _, h := range p.bodies {
		sums[h] = h.sum()
	}
	var out []Verification
	for _, s := range p.sigs {
		if s.Status == "" {
			s.finish(p.v, sums[s.body], p.report)
		}
		out = append(out, s.Verification)
	}
	if p.extra > 0 {
		out = append(out, Verification{Status: Policy, Length: -1, Problem: fmt.Sprintf("%d more signatures were not looked at", p.extra)})
	}
	return out
}

func (s *signature) finish(v *Verifier, body []byte, report bool) {
	bad := func(st Status, format string, args ...any) {
		s.Status, s.Problem = st, fmt.Sprintf(format, args...)
	}
	k := s.key
	if k.status != "" {
		bad(k.status, "%s", k.problem)
		return
	}
	s.KeyBits, s.Testing, s.Authentic, s.Service = k.record.Bits(), k.record.Testing, k.authentic, k.service
	if s.Service == ServiceTLSRPT {
		if st, problem := s.reportProblem(report); st != "" {
			bad(st, "%s", problem)
			return
		}
	}
	if alg, _, _ := strings.Cut(s.Algorithm, "-"); alg != k.record.Algorithm {
		bad(PermError, "the key is for %s (RFC 6376 section 3.6.1)", k.record.Algorithm)
		return
	}
	if d, _ := identityDomain(s.Identity); k.record.Strict && d != s.Domain {
		bad(PermError, "the key does not allow a subdomain in i= (RFC 6376 section 3.6.1)")
		return
	}
	if _, ok := k.record.Key.(*rsa.PublicKey); ok {
		least := max(or(v.MinRSABits, DefaultMinRSABits), 1024)
		if s.KeyBits < least {
			bad(Policy, "the key has %d bits, fewer than %d (RFC 8301 section 3.2)", s.KeyBits, least)
			return
		}
		if most := or(v.MaxRSABits, DefaultMaxRSABits); s.KeyBits > most {
			bad(Policy, "the key has %d bits, more than %d", s.KeyBits, most)
			return
		}
	}
	if s.Length > s.body.written {
		bad(PermError, "l= is longer than the body (RFC 6376 section 3.5)")
		return
	}
	if subtle.ConstantTimeCompare(body, s.sum) != 1 {
		bad(Fail, "the body is not what was signed")
		return
	}
	valid := false
	switch key := k.record.Key.(type) {
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(key, crypto.SHA256, s.header, s.sig) == nil
	case ed25519.PublicKey:
		valid = ed25519.Verify(key, s.header, s.sig) // RFC 8463 section 3: of the hash
	}
	if !valid {
		bad(Fail, "the header is not what was signed")
		return
	}
	s.Status = Pass
}
