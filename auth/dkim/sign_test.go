package dkim

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	peer "github.com/emersion/go-msgauth/dkim"

	"github.com/mailspine/mailspine"
)

// rsaKey is made once per test binary: RSA keys are slow to make.
var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return GenerateRSA(2048) })

func testKeys(t testing.TB) (*rsa.PrivateKey, ed25519.PrivateKey) {
	t.Helper()
	k, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	return k, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
}

// publicRSA is a public key of a size whose private half nobody needs.
func publicRSA(bits int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
}

// signers are an RSA and an Ed25519 key for example.org, and the zone with their records.
func signers(t testing.TB) ([]SigningKey, keys) {
	r, e := testKeys(t)
	ks := []SigningKey{
		{Domain: "example.org", Selector: "r1", Key: r},
		{Domain: "example.org", Selector: "e1", Key: e},
	}
	z := keys{}
	for _, k := range ks {
		z[k.Name()] = []string{k.Record().String()}
	}
	return ks, z
}

const message = "Received: from a by b; Tue, 2 Jun 2026 10:00:00 +0000\r\n" +
	"From: Joe <joe@example.org>\r\n" +
	"To: ann@example.net,\r\n\tbob@example.net\r\n" +
	"Subject:  a   test\r\n" +
	"Date: Tue, 2 Jun 2026 10:00:00 +0000\r\n" +
	"Message-ID: <1@example.org>\r\n" +
	"\r\n" +
	"Hello,  world. \r\n\r\nBye.\r\n\r\n\r\n"

func mustSign(t testing.TB, msg string, ks ...SigningKey) string {
	t.Helper()
	sig, err := Sign(t.Context(), mailspine.StringContent(msg), nil, ks...)
	if err != nil {
		t.Fatal(err)
	}
	return string(sig) + msg
}

func verify(t testing.TB, v *Verifier, msg string) []Verification {
	t.Helper()
	res, err := v.Verify(t.Context(), mailspine.StringContent(msg))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// statuses lists what came out.
func statuses(res []Verification) string {
	var s []string
	for _, r := range res {
		s = append(s, string(r.Status))
	}
	return strings.Join(s, " ")
}

func TestSignVerify(t *testing.T) {
	ks, zone := signers(t)
	for _, simple := range []bool{false, true} {
		for i := range ks {
			ks[i].Simple = simple
			ks[i].Identity = "@news.example.org"
			ks[i].Lifetime = time.Hour
		}
		msg := mustSign(t, message, ks...)
		for l := range strings.SplitSeq(msg[:strings.Index(msg, "Received:")], "\r\n") {
			if len(l) > 78 {
				t.Errorf("line of %d characters: %q", len(l), l)
			}
		}
		res := verify(t, &Verifier{Resolver: zone}, msg)
		if statuses(res) != "pass pass" {
			t.Fatalf("simple %v: %+v\n%s", simple, res, msg)
		}
		for i, want := range []struct {
			alg  string
			bits int
		}{{"rsa-sha256", 2048}, {"ed25519-sha256", 256}} {
			r := res[i]
			if r.Domain != "example.org" || r.Selector != ks[i].Selector || r.Identity != "@news.example.org" || r.Algorithm != want.alg ||
				r.KeyBits != want.bits || r.Length != -1 || r.Signed.IsZero() || r.Expires.Sub(r.Signed) != time.Hour || len(r.Signature) != 12 {
				t.Errorf("%+v", r)
			}
		}
		// The peer agrees.
		vs, err := peer.VerifyWithOptions(strings.NewReader(msg), &peer.VerifyOptions{LookupTXT: func(n string) ([]string, error) { return zone[n], nil }})
		if err != nil || len(vs) != 2 || vs[0].Err != nil || vs[1].Err != nil {
			t.Errorf("simple %v: go-msgauth says %v %+v", simple, err, vs)
		}
	}
}

func TestVerifyPeer(t *testing.T) {
	ks, zone := signers(t)
	for _, k := range ks {
		for _, hc := range []peer.Canonicalization{"simple", "relaxed"} {
			for _, bc := range []peer.Canonicalization{"simple", "relaxed"} {
				var b bytes.Buffer
				err := peer.Sign(&b, strings.NewReader(message), &peer.SignOptions{
					Domain: "example.org", Selector: k.Selector, Signer: k.Key, HeaderCanonicalization: hc, BodyCanonicalization: bc})
				if err != nil {
					t.Fatal(err)
				}
				if res := verify(t, &Verifier{Resolver: zone}, b.String()); statuses(res) != "pass" {
					t.Errorf("%s %s/%s: %+v", k.Selector, hc, bc, res)
				}
			}
		}
	}
}

// What readers see cannot be added to: an oversigned name occurs once more in h= than in the message.
func TestOversign(t *testing.T) {
	ks, zone := signers(t)
	msg := mustSign(t, message, ks[0])
	for _, added := range []string{"From: boss@example.org", "Subject: other", "Reply-To: evil@example.com", "Content-Type: text/html", "To: x@example.com"} {
		for _, m := range []string{added + "\r\n" + msg, strings.Replace(msg, "\r\n\r\n", "\r\n"+added+"\r\n\r\n", 1)} {
			if res := verify(t, &Verifier{Resolver: zone}, m); statuses(res) != "fail" {
				t.Errorf("with %q: %+v", added, res)
			}
		}
	}
	for _, added := range []string{"Received: from c by d", "X-Spam: no", "List-Id: <l.example.com>"} {
		if res := verify(t, &Verifier{Resolver: zone}, added+"\r\n"+msg); statuses(res) != "pass" {
			t.Errorf("with %q: %+v", added, res)
		}
	}
}

func TestSignErrors(t *testing.T) {
	ks, _ := signers(t)
	good := ks[0]
	with := func(f func(*SigningKey)) SigningKey { k := good; f(&k); return k }
	for name, k := range map[string]SigningKey{
		"no key":      with(func(k *SigningKey) { k.Key = nil }),
		"no domain":   with(func(k *SigningKey) { k.Domain = "" }),
		"bad domain":  with(func(k *SigningKey) { k.Domain = "a..b" }),
		"injection":   with(func(k *SigningKey) { k.Selector = "a;d=evil.example" }),
		"no selector": with(func(k *SigningKey) { k.Selector = "" }),
		"identity":    with(func(k *SigningKey) { k.Identity = "joe@evilexample.org" }),
		"header name": with(func(k *SigningKey) { k.Headers = []string{"From", "a:b"} }),
		"weak":        with(func(k *SigningKey) { k.Key = fakeSigner{publicRSA(512)} }),
		"other kind":  with(func(k *SigningKey) { k.Key = fakeSigner{"x"} }),
	} {
		if _, err := Sign(t.Context(), mailspine.StringContent(message), nil, k); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	for _, msg := range []string{"Subject: x\r\n\r\n", "From: a@example.org\r\nFrom: b@example.org\r\n\r\n", "", "\r\nFrom: a@example.org\r\n", " x\r\nFrom: a@example.org\r\n\r\n"} {
		if _, err := Sign(t.Context(), mailspine.StringContent(msg), nil, good); !errors.Is(err, ErrNoAuthor) {
			t.Errorf("%q: %v", msg, err)
		}
	}
	_, err := Sign(t.Context(), mailspine.StringContent(message), &SignOptions{MaxHeader: 100}, good)
	if !errors.Is(err, mailspine.ErrHeaderTooLarge) {
		t.Errorf("large header: %v", err)
	}
	_, err = Sign(t.Context(), brokenContent{}, nil, good)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("broken content: %v", err)
	}
	hsm := with(func(k *SigningKey) { k.Key = fakeSigner{k.Key.Public()} })
	if _, err = Sign(t.Context(), mailspine.StringContent(message), nil, hsm); !errors.Is(err, errHSM) {
		t.Errorf("broken hardware: %v", err)
	}
}

var errHSM = errors.New("no hardware")

type fakeSigner struct{ pub crypto.PublicKey }

func (f fakeSigner) Public() crypto.PublicKey { return f.pub }
func (f fakeSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errHSM
}

type brokenContent struct{}

func (brokenContent) Size() int64 { return 100 }
func (brokenContent) Open(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(io.MultiReader(strings.NewReader(message[:100]), errReader{})), nil
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestKeys(t *testing.T) {
	if _, err := GenerateRSA(512); err == nil {
		t.Error("made a key of 512 bits")
	}
	r, e := testKeys(t)
	gen, err := GenerateEd25519()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []crypto.Signer{r, e, gen} {
		pem, err := MarshalKey(k)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseKey(pem)
		if err != nil || !back.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(k.Public()) {
			t.Errorf("%T: %v", k, err)
		}
		s := SigningKey{Domain: "example.org", Selector: "s", Key: k}
		rec, err := ParseRecord(s.Record().String())
		if err != nil || !back.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(rec.Key) {
			t.Errorf("%T: %v", k, err)
		}
		zone := keys{}
		if err := s.Published(t.Context(), zone); err == nil {
			t.Error("published nowhere, and found")
		}
		zone[s.Name()] = []string{s.Record().String()}
		if err := s.Published(t.Context(), zone); err != nil {
			t.Error(err)
		}
		other := s
		if other.Key = e; k == crypto.Signer(r) {
			if err := other.Published(t.Context(), zone); err == nil {
				t.Error("another key passes as published")
			}
		}
	}
	for _, bad := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParseKey([]byte(bad)); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
	full := &Record{Key: e.Public(), Hashes: []string{"sha256"}, Testing: true, Strict: true}
	rec, err := ParseRecord(full.String())
	if err != nil || !rec.Testing || !rec.Strict || rec.Algorithm != "ed25519" || rec.Bits() != 256 {
		t.Errorf("%q: %+v %v", full, rec, err)
	}
}

func ExampleSign() {
	key := ed25519.NewKeyFromSeed(make([]byte, 32)) // a real one comes from GenerateEd25519
	signer := SigningKey{Domain: "example.org", Selector: "2026a", Key: key}
	fmt.Println(signer.Name(), "TXT", signer.Record())

	msg := mailspine.StringContent("From: joe@example.org\r\nSubject: hello\r\n\r\nHello.\r\n")
	sig, err := Sign(context.Background(), msg, nil, signer)
	if err != nil {
		panic(err)
	}
	signed := mailspine.Prepend(msg, sig)

	dns := mailspine.ResolverFunc(func(context.Context, string, mailspine.Type) (mailspine.Answer, error) {
		return mailspine.Answer{TXT: []string{signer.Record().String()}}, nil
	})
	res, err := (&Verifier{Resolver: dns}).Verify(context.Background(), signed)
	if err != nil {
		panic(err)
	}
	fmt.Println(res[0].Status, res[0].Domain, res[0].Algorithm)
	// Output:
	// 2026a._domainkey.example.org TXT v=DKIM1; k=ed25519; p=O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=
	// pass example.org ed25519-sha256
}
