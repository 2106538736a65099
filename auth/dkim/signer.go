package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A SigningKey makes signatures for a domain. Domain, Selector and Key are
// required. It is safe for concurrent use if Key is; the keys of crypto/rsa and
// crypto/ed25519 are.
type SigningKey struct {
	Domain   string // d=
	Selector string // s=
	// Key signs; its public half is an *rsa.PublicKey of at least 1024 bits (2048
	// are right) or an ed25519.PublicKey. It may be a key in hardware.
	Key crypto.Signer

	// Identity is i=; "": left out, which means "@" and Domain.
	Identity string
	// Simple chooses simple canonicalization for both header and body; false: relaxed, which survives
	// what relays do to white space.
	Simple bool
	// Headers are the names of the fields to sign, all that the message has of each; nil: DefaultHeaders.
	// From is always signed.
	Headers []string
	// Oversign are the names that are signed once more than they occur, so that nobody can add
	// a field of that name (RFC 6376 section 8.15); nil: DefaultOversign; empty: From only.
	Oversign []string
	// Lifetime makes x=; 0: the signature does not expire.
	Lifetime time.Duration
	// Services are the service types that Record has; nil: none, which means that the key is for all. It
	// changes nothing in signatures.
	Services []string
}

// DefaultHeaders returns the fields that are signed unless a SigningKey says
// otherwise: those that a reader sees or acts upon (RFC 6376 section 5.4.1),
// nothing that is added on the way.
func DefaultHeaders() []string {
	return []string{
		"From", "Sender", "Reply-To", "Subject", "Date", "To", "Cc", "Message-ID", "In-Reply-To", "References",
		"MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID", "Content-Description",
		"Resent-Date", "Resent-From", "Resent-Sender", "Resent-To", "Resent-Cc", "Resent-Message-ID",
		"List-Id", "List-Help", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Subscribe", "List-Post", "List-Owner", "List-Archive",
		"Feedback-ID", "CFBL-Address", "CFBL-Feedback-ID", "Autocrypt", "BIMI-Selector",
	}
}

// DefaultOversign returns the fields that are oversigned unless a SigningKey
// says otherwise.
func DefaultOversign() []string {
	return []string{
		"From", "Reply-To", "Subject", "Date", "To", "Cc", "Message-ID",
		"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
	}
}

// Validate reports what makes a key unusable for signing.
func (k *SigningKey) Validate() error {
	if _, ok := keyName(k.Selector, k.Domain); !ok {
		return fmt.Errorf("dkim: selector %q and domain %q make no name", k.Selector, k.Domain)
	}
	if k.Key == nil {
		return errors.New("dkim: signing key without Key")
	}
	switch pub := k.Key.Public().(type) {
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n < 1024 {
			return fmt.Errorf("dkim: an RSA key of %d bits is too small (RFC 8301 section 3.2)", n)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("dkim: keys of type %T cannot sign", pub)
	}
	if k.Identity != "" {
		d, ok := identityDomain(k.Identity)
		dom := strings.ToLower(k.Domain)
		if !ok || d != dom && !strings.HasSuffix(d, "."+dom) {
			return fmt.Errorf("dkim: identity %q is not in %q", k.Identity, k.Domain)
		}
		if strings.ContainsAny(k.Identity, ";\r\n\x00") {
			return fmt.Errorf("dkim: identity %q cannot be written", k.Identity)
		}
	}
	for _, n := range k.Services {
		if n != "*" && !isService(n) {
			return fmt.Errorf("dkim: %q is no service type", n)
		}
	}
	for _, n := range slices.Concat(k.Headers, k.Oversign) {
		if n == "" || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' || r == ';' }) {
			return fmt.Errorf("dkim: %q is no field name", n)
		}
	}
	return nil
}

// Name returns the DNS name of the key's record.
func (k *SigningKey) Name() string {
	n, _ := keyName(k.Selector, k.Domain)
	return n
}

// Record returns the record to publish at Name.
func (k *SigningKey) Record() *Record {
	r := &Record{Algorithm: "rsa", Services: k.Services}
	if k.Key != nil {
		r.Key = k.Key.Public()
	}
	if _, ok := r.Key.(ed25519.PublicKey); ok {
		r.Algorithm = "ed25519"
	}
	return r
}

// Published checks that the record in DNS is the one of this key: before a new
// selector is put into use. A key that is not there yet, or another one, is an error;
// so is a record that is not for all of Services (nil: e-mail), and a lookup that fails.
func (k *SigningKey) Published(ctx context.Context, r mailspine.Resolver) error {
	if err := k.Validate(); err != nil {
		return err
	}
	services := k.Services
	if len(services) == 0 || slices.Contains(services, "*") {
		services = []string{ServiceEmail}
	}
	f := fetch(ctx, r, k.Name(), services)
	if f.status != "" {
		return fmt.Errorf("dkim: %s", f.problem)
	}
	for _, service := range services {
		if !f.record.Allows(service) {
			return fmt.Errorf("dkim: the key at %s is not for %s", k.Name(), service)
		}
	}
	if pub, ok := f.record.Key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(k.Key.Public()) {
		return fmt.Errorf("dkim: the key at %s is another one", k.Name())
	}
	return nil
}

// SignOptions change how [Sign] works; nil and zero fields mean the defaults.
type SignOptions struct {
	Now       func() time.Time // the clock for t= and x=; nil: time.Now
	MaxHeader int              // bound on the header block, in octets; 0: mailspine.MaxHeader
}

// ErrNoAuthor is the error of [Sign] for a message without exactly one From
// field, or for one whose header begins with white space: a signature of it
// would not be worth anything.
var ErrNoAuthor = errors.New("dkim: the message has not exactly one From field")

// Sign reads a message once, as a stream, and returns one DKIM-Signature field
// for each key, in that order, each ended by CRLF, to be prepended to the
// message (mailspine.Prepend). Of the message only the header block is kept in
// memory.
//
// The message must be as it will be sent: lines ended by CRLF, bodies in their final encoding.
func Sign(ctx context.Context, msg mailspine.Content, opts *SignOptions, keys ...SigningKey) ([]byte, error) {
	if opts == nil {
		opts = &SignOptions{}
	}
	for i := range keys {
		if err := keys[i].Validate(); err != nil {
			return nil, err
		}
	}
	r, err := msg.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var simple, relaxed *bodyHash
	var bodies []*bodyHash
	for _, k := range keys {
		h := &relaxed
		if k.Simple {
			h = &simple
		}
		if *h == nil {
			*h = newBodyHash(!k.Simple, -1)
			bodies = append(bodies, *h)
		}
	}
	split := splitter{max: or(opts.MaxHeader, mailspine.MaxHeader)}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		p := buf[:n]
		if !split.done {
			p = split.write(p)
			if split.over {
				return nil, mailspine.ErrHeaderTooLarge
			}
		}
		if len(p) > 0 {
			for _, h := range bodies {
				h.Write(p)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if len(split.buf) > 0 && (split.buf[0] == ' ' || split.buf[0] == '\t') {
		// It would continue whatever is put before it, the signature first of all.
		return nil, fmt.Errorf("%w: it begins with the continuation of a field", ErrNoAuthor)
	}
	bl := splitBlock(split.buf)
	if len(bl.byName["from"]) != 1 {
		return nil, ErrNoAuthor
	}
	var sumSimple, sumRelaxed []byte
	if simple != nil {
		sumSimple = simple.sum()
	}
	if relaxed != nil {
		sumRelaxed = relaxed.sum()
	}
	now := time.Now
	if opts.Now != nil {
		now = opts.Now
	}
	var out []byte
	for i := range keys {
		sum := sumRelaxed
		if keys[i].Simple {
			sum = sumSimple
		}
		f, err := keys[i].sign(bl, sum, now())
		if err != nil {
			return nil, err
		}
		out = append(out, f...)
	}
	return out, nil
}

// names lists h= for a message.
func (k *SigningKey) names(bl *block) []string {
	headers, over := k.Headers, k.Oversign
	if headers == nil {
		headers = DefaultHeaders()
	}
	if over == nil {
		over = DefaultOversign()
	}
	var names []string
	times := map[string]int{}
	add := func(n string, want int) {
		for l := strings.ToLower(n); times[l] < want; times[l]++ {
			names = append(names, n)
		}
	}
	add("From", 2) // once for the field, once against another
	for _, n := range headers {
		if strings.EqualFold(n, "DKIM-Signature") {
			continue // RFC 6376 section 3.5: a signature does not sign itself
		}
		// A field that occurs hundreds of times is nothing that readers know; the
		// bottom ones are signed.
		add(n, min(len(bl.byName[strings.ToLower(n)]), 50))
	}
	for _, n := range over {
		add(n, min(len(bl.byName[strings.ToLower(n)]), 50)+1)
	}
	return names
}

func (k *SigningKey) sign(bl *block, body []byte, now time.Time) ([]byte, error) {
	alg, canon := "rsa-sha256", "relaxed/relaxed"
	var opts crypto.SignerOpts = crypto.SHA256
	if _, ok := k.Key.Public().(ed25519.PublicKey); ok {
		alg, opts = "ed25519-sha256", crypto.Hash(0) // RFC 8463 section 3: PureEdDSA over the hash
	}
	if k.Simple {
		canon = "simple/simple"
	}
	names := k.names(bl)
	var b folder
	b.text("DKIM-Signature: v=1; a=" + alg + "; c=" + canon + ";")
	b.text(" d=" + strings.ToLower(k.Domain) + ";")
	b.text(" s=" + k.Selector + ";")
	if k.Identity != "" {
		b.text(" i=" + k.Identity + ";")
	}
	b.text(" t=" + strconv.FormatInt(now.Unix(), 10) + ";")
	if k.Lifetime > 0 {
		b.text(" x=" + strconv.FormatInt(now.Add(k.Lifetime).Unix(), 10) + ";")
	}
	b.text(" h=" + names[0])
	for _, n := range names[1:] {
		b.text(":" + n)
	}
	b.text(";")
	b.text(" bh=" + base64.StdEncoding.EncodeToString(body) + ";")
	b.text(" b=")

	h := sha256.New()
	bl.pick(h, names, !k.Simple)
	h.Write([]byte(strings.TrimSuffix(string(canonicalField([]byte(b.String()+"\r\n"), !k.Simple)), "\r\n")))
	sig, err := k.Key.Sign(rand.Reader, h.Sum(nil), opts)
	if err != nil {
		return nil, fmt.Errorf("dkim: sign for %s: %w", k.Name(), err)
	}
	enc := base64.StdEncoding.EncodeToString(sig)
	for len(enc) > 0 {
		n := min(72-b.col, len(enc))
		if n <= 0 {
			b.fold()
			continue
		}
		b.text(enc[:n])
		enc = enc[n:]
	}
	return []byte(b.String() + "\r\n"), nil
}

// A folder writes a header field in lines of at most 78 characters as far as its
// parts allow (RFC 5322 section 2.1.1). Parts are kept whole; a part's leading space becomes the fold's.
type folder struct {
	strings.Builder
	col int
}

func (f *folder) text(s string) {
	if f.col > 1 && f.col+len(s) > 76 {
		f.fold()
		s = strings.TrimPrefix(s, " ")
	}
	f.WriteString(s)
	f.col += len(s)
}

func (f *folder) fold() {
	f.WriteString("\r\n\t")
	f.col = 1
}

// GenerateRSA makes a key of the given size; 0: 2048 bits.
func GenerateRSA(bits int) (*rsa.PrivateKey, error) {
	bits = or(bits, 2048)
	if bits < 1024 || bits > DefaultMaxRSABits {
		return nil, fmt.Errorf("dkim: an RSA key has 1024 to %d bits", DefaultMaxRSABits)
	}
	return rsa.GenerateKey(rand.Reader, bits)
}

// GenerateEd25519 makes an Ed25519 key. Not every verifier knows them yet:
// sign with an RSA key as well (RFC 8463 section 3).
func GenerateEd25519() (ed25519.PrivateKey, error) {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	return k, err
}

// MarshalKey writes a private key in PKCS #8 and PEM. Keep it in a file that
// nobody else can read (0600).
func MarshalKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("dkim: marshal key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads a private key from PEM: PKCS #8, or PKCS #1 as older tools
// write it. Errors tell nothing of the key.
func ParseKey(text []byte) (crypto.Signer, error) {
	blk, _ := pem.Decode(text)
	if blk == nil {
		return nil, errors.New("dkim: no PEM block")
	}
	if k, err := x509.ParsePKCS1PrivateKey(blk.Bytes); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(blk.Bytes)
	if err != nil {
		return nil, errors.New("dkim: not a private key in PKCS #8 or PKCS #1")
	}
	switch k := k.(type) {
	case *rsa.PrivateKey:
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("dkim: keys of type %T cannot sign", k)
}
