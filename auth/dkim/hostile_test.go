package dkim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
)

func TestManySignatures(t *testing.T) {
	ks, zone := signers(t)
	sig := strings.TrimSuffix(mustSign(t, message, ks[1]), message)
	asked := 0
	counting := mailspine.ResolverFunc(func(ctx context.Context, n string, typ mailspine.Type) (mailspine.Answer, error) {
		asked++ // one lookup for all: they share a key
		return zone.Lookup(ctx, n, typ)
	})
	res := verify(t, &Verifier{Resolver: counting}, strings.Repeat(sig, 60)+message)
	if len(res) != 9 || statuses(res) != strings.Repeat("pass ", 8)+"policy" || !strings.Contains(res[8].Problem, "52 more") {
		t.Errorf("%d results: %s", len(res), statuses(res))
	}
	if asked != 1 {
		t.Errorf("%d lookups", asked)
	}
}

// A header block over the bound is dropped, whether it is one line or many, and
// the rest of the message costs no memory.
func TestHeaderBound(t *testing.T) {
	_, zone := signers(t)
	for name, fill := range map[string]string{
		"one line":    "X-Fill: " + strings.Repeat("x", 2<<20),
		"many lines":  strings.Repeat("X-Fill: x\r\n", 200000),
		"no end":      strings.Repeat("x", 2<<20),
		"many fields": strings.Repeat("a:\n", mailspine.MaxHeaderFields), // 15 KB, and one too many
	} {
		s := (&Verifier{Resolver: zone}).Start(t.Context())
		s.Write([]byte("DKIM-Signature: v=1\r\n"))
		s.Write([]byte(fill))
		s.Write([]byte("\r\n" + message))
		if block, over := s.HeaderBlock(); !over || block != nil {
			t.Errorf("%s: %d octets kept", name, len(block))
		}
		if res := s.Finish(); len(res) != 1 || res[0].Status != PermError {
			t.Errorf("%s: %+v", name, res)
		}
	}
}

func TestBadSignatures(t *testing.T) {
	ks, zone := signers(t)
	good := mustSign(t, message, ks[1])
	for _, c := range []struct {
		name, old, new string
		want           Status
		problem        string
	}{
		{"version", "v=1;", "v=2;", PermError, "version"},
		{"no version", "v=1;", "", PermError, "version"},
		{"tag twice", "v=1;", "v=1; d=example.com;", PermError, "twice"},
		{"tag name", "v=1;", "v=1; 1a=b;", PermError, "tag name"},
		{"empty tag", "v=1;", "v=1;;", PermError, "empty tag"},
		{"no equals", "v=1;", "v=1; foo;", PermError, "without a value"},
		{"algorithm", "ed25519-sha256", "ed25519-sha512", PermError, "algorithm"},
		{"sha1", "ed25519-sha256", "rsa-sha1", Policy, "8301"},
		{"other algorithm", "ed25519-sha256", "rsa-sha256", PermError, "ed25519"},
		{"canonicalization", "relaxed/relaxed", "nowsp", PermError, "c="},
		{"no from", "h=From:From", "h=Sender:Sender", PermError, "From is not signed"},
		{"identity", "v=1;", "v=1; i=joe@evilexample.org;", PermError, "i="},
		{"identity without @", "v=1;", "v=1; i=example.org;", PermError, "i="},
		{"query", "v=1;", "v=1; q=http/x;", PermError, "q="},
		{"length", "v=1;", "v=1; l=3;", Policy, "l="},
		{"length not a number", "v=1;", "v=1; l=-1;", PermError, "l="},
		{"length too large", "v=1;", "v=1; l=99999999999999999999;", PermError, "l="},
		{"expired", "v=1;", "v=1; x=999999999;", PermError, "before t="},
		{"expiry not a time", "v=1;", "v=1; x=soon;", PermError, "x="},
		{"name with NUL", "s=e1", "s=e\x001", PermError, "control"},
		{"name with parenthesis", "s=e1", "s=e1(x)", PermError, "domain name"},
		{"long label", "s=e1", "s=" + strings.Repeat("e", 64), PermError, "domain name"},
		{"empty label", "d=example.org", "d=example..org", PermError, "domain name"},
		{"key elsewhere", "s=e1", "s=e2", PermError, "no key"},
		{"not base64", "bh=", "bh=!", PermError, "bh="},
		{"5,000 names", "h=From:From", "h=From" + strings.Repeat(":x", 5000), Policy, "names"},
		{"not UTF-8", "v=1;", "v=1; i=\xff@example.org;", PermError, "UTF-8"},
		{"z with b=", "v=1;", "v=1; z=From:b=20x|b=x;", Fail, "header"},
	} {
		msg := strings.Replace(good, c.old, c.new, 1)
		if msg == good {
			t.Fatalf("%s: nothing replaced", c.name)
		}
		res := verify(t, &Verifier{Resolver: zone}, msg)
		if len(res) != 1 || res[0].Status != c.want || !strings.Contains(res[0].Problem, c.problem) {
			t.Errorf("%s: %+v", c.name, res)
		}
	}
}

func TestExpiry(t *testing.T) {
	ks, zone := signers(t)
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	ks[1].Lifetime = time.Hour
	sig, err := Sign(t.Context(), mailspine.StringContent(message), &SignOptions{Now: func() time.Time { return now }}, ks[1])
	if err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]string{time.Minute: "pass", time.Hour: "pass", time.Hour + time.Second: "policy"} {
		v := &Verifier{Resolver: zone, Now: func() time.Time { return now.Add(after) }}
		if res := verify(t, v, string(sig)+message); statuses(res) != want {
			t.Errorf("after %v: %+v", after, res)
		}
	}
}

func TestKeyRecords(t *testing.T) {
	ks, _ := signers(t)
	r, _ := testKeys(t)
	msg := mustSign(t, message, ks[1])
	rec := ks[1].Record().String()
	p := rec[strings.Index(rec, "p="):]
	for _, c := range []struct {
		name    string
		records []string
		want    string
		problem string
	}{
		{"alone", []string{rec}, "pass", ""},
		{"tabs and spaces", []string{"v = DKIM1 ;\tk = ed25519 ;\t" + strings.Replace(p, "=", "=\t", 1)}, "pass", ""},
		{"no version", []string{"k=ed25519; " + p}, "pass", ""},
		{"wildcard beside it", []string{"v=spf1 -all", rec}, "pass", ""},
		{"two keys", []string{rec, rec}, "permerror", "several"},
		{"revoked", []string{"v=DKIM1; k=ed25519; p="}, "permerror", "revoked"},
		{"no p", []string{"v=DKIM1; k=ed25519"}, "permerror", "p= is missing"},
		{"tag twice", []string{rec + "; k=ed25519"}, "permerror", "twice"},
		{"version late", []string{"k=ed25519; v=DKIM1; " + p}, "permerror", "first"},
		{"service", []string{"v=DKIM1; k=ed25519; s=tlsrpt; " + p}, "permerror", "s= does not allow email"},
		{"hash", []string{"v=DKIM1; k=ed25519; h=sha1; " + p}, "permerror", "sha256"},
		{"other key", []string{(&Record{Key: r.Public()}).String()}, "permerror", "for rsa"},
		{"testing", []string{"v=DKIM1; k=ed25519; t=y; " + p}, "pass", ""},
		{"strict", []string{"v=DKIM1; k=ed25519; t=s; " + p}, "pass", ""},
		{"not a key", []string{"v=DKIM1; k=ed25519; p=AAAA"}, "permerror", "Ed25519"},
		{"garbage", []string{"\xff\x00", ""}, "permerror", "UTF-8"},
		{"nothing", nil, "permerror", "no key"},
	} {
		res := verify(t, &Verifier{Resolver: keys{ks[1].Name(): c.records}}, msg)
		if statuses(res) != c.want || !strings.Contains(res[0].Problem, c.problem) {
			t.Errorf("%s: %+v", c.name, res)
		}
	}
	// RSA keys that are too small or too large are refused before they are used.
	rmsg := mustSign(t, message, ks[0])
	for bits, want := range map[int]string{512: "fewer than 1024", 16384: "more than 8192"} {
		rec := (&Record{Key: publicRSA(bits)}).String()
		res := verify(t, &Verifier{Resolver: keys{ks[0].Name(): {rec}}}, rmsg)
		if statuses(res) != "policy" || res[0].KeyBits != bits || !strings.Contains(res[0].Problem, want) {
			t.Errorf("%d bits: %+v", bits, res)
		}
	}
	// MinRSABits cannot be set below what RFC 8301 demands, but above.
	if res := verify(t, &Verifier{Resolver: keys{ks[0].Name(): {ks[0].Record().String()}}, MinRSABits: 4096}, rmsg); statuses(res) != "policy" {
		t.Errorf("2048 bits with a minimum of 4096: %+v", res)
	}
	if res := verify(t, &Verifier{Resolver: keys{ks[0].Name(): {(&Record{Key: publicRSA(768)}).String()}}, MinRSABits: 512}, rmsg); statuses(res) != "policy" {
		t.Errorf("768 bits with a minimum of 512: %+v", res)
	}
}

// A lone CR is no white space: it must not stand in for a signed blank.
func TestLoneCR(t *testing.T) {
	for in, want := range map[string]string{
		"From: a \t b\r\n":      "from:a b\r\n",
		"From: a\r\n b \r\n":    "from:a b\r\n",
		"From: a\rb\r\n":        "from:a\rb\r\n",
		"From: a \r\r\n\tb\r\n": "from:a \r b\r\n",
	} {
		if got := string(canonicalField([]byte(in), true)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// While keys are waited for, a header of many small fields costs little more than its octets.
func TestHeaderMemory(t *testing.T) {
	s := (&Verifier{Resolver: mailspine.ResolverFunc(stuck)}).Start(t.Context())
	defer s.Cancel()
	sig := "DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=s; h=from; b=AAAA;\r\n bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\r\n"
	s.Write([]byte(sig + strings.Repeat("a: "+strings.Repeat("x", 100)+"\r\n", 4000) + "\r\n"))
	if len(s.sigs) != 1 || s.sigs[0].Status != "" {
		t.Fatalf("%+v", s.sigs)
	}
	if s.sigs[0].field != nil || s.sigs[0].tags != nil {
		t.Error("the signature holds on to the fields")
	}
}

func TestResolverErrors(t *testing.T) {
	ks, _ := signers(t)
	msg := mustSign(t, message, ks[1])
	for kind, want := range map[error]string{
		mailspine.ErrNXDomain: "permerror", mailspine.ErrNoData: "permerror",
		mailspine.ErrDNSTemporary: "temperror", mailspine.ErrDNSBogus: "temperror", errors.New("odd"): "temperror",
	} {
		r := mailspine.ResolverFunc(func(_ context.Context, n string, typ mailspine.Type) (mailspine.Answer, error) {
			return mailspine.Answer{}, &mailspine.DNSError{Name: n, Type: typ, Kind: kind}
		})
		if res := verify(t, &Verifier{Resolver: r}, msg); statuses(res) != want {
			t.Errorf("%v: %+v", kind, res)
		}
	}
	// Against the contract: neither records nor an error.
	empty := mailspine.ResolverFunc(func(context.Context, string, mailspine.Type) (mailspine.Answer, error) {
		return mailspine.Answer{}, nil
	})
	if res := verify(t, &Verifier{Resolver: empty}, msg); statuses(res) != "temperror" {
		t.Errorf("empty answer: %+v", res)
	}
	if res := verify(t, &Verifier{}, msg); statuses(res) != "temperror" {
		t.Errorf("no resolver: %+v", res)
	}
	if res := verify(t, &Verifier{}, message); len(res) != 0 {
		t.Errorf("no signature: %+v", res)
	}
}

// stuck never answers until its context ends.
func stuck(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	<-ctx.Done()
	return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
}

func TestTimeoutAndCancel(t *testing.T) {
	ks, _ := signers(t)
	msg := mustSign(t, message, ks...)
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		v := &Verifier{Resolver: mailspine.ResolverFunc(stuck)}
		if res := verify(t, v, msg); statuses(res) != "temperror temperror" || time.Since(begin) != DefaultTimeout {
			t.Errorf("after %v: %+v", time.Since(begin), res)
		}
		begin = time.Now()
		s := v.Start(t.Context())
		s.Write([]byte(msg))
		s.Cancel()
		s.Cancel()
		s.Write([]byte(msg)) // does nothing, and does not fail
		if time.Since(begin) != 0 {
			t.Errorf("Cancel took %v", time.Since(begin))
		}
	})
}

func TestLength(t *testing.T) {
	// Vectors with l= are refused by default; with AllowLength they are judged.
	for _, c := range readVectors(t) {
		want, ok := map[string]Status{"l-zero": Pass, "l-too-long": PermError}[c.Name]
		if !ok {
			continue
		}
		msg, err := os.ReadFile(filepath.Join("testdata", c.File))
		if err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{"", "<b>added</b>\r\n"} {
			m := string(msg) + suffix
			if res := verify(t, &Verifier{Resolver: c.DNS}, m); res[0].Status != Policy || res[0].Length < 0 {
				t.Errorf("%s: %+v", c.Name, res)
			}
			if res := verify(t, &Verifier{Resolver: c.DNS, AllowLength: true}, m); res[0].Status != want {
				t.Errorf("%s, allowed: %+v", c.Name, res)
			}
		}
	}
}

// However a message is cut into pieces, the result is the same.
func TestPieces(t *testing.T) {
	for _, c := range readVectors(t) {
		msg, err := os.ReadFile(filepath.Join("testdata", c.File))
		if err != nil {
			t.Fatal(err)
		}
		v := &Verifier{Resolver: c.DNS, AllowLength: true}
		want := verify(t, v, string(msg))
		for _, size := range []int{1, 2, 7} {
			s := v.Start(t.Context())
			for p := msg; len(p) > 0; p = p[min(size, len(p)):] {
				s.Write(p[:min(size, len(p))])
			}
			if got := s.Finish(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s in pieces of %d: %+v, want %+v", c.Name, size, got, want)
			}
		}
	}
}

// A body of nothing but line ends, or of one endless line, costs neither memory nor
// time beyond its length.
func TestBodyMemory(t *testing.T) {
	ks, zone := signers(t)
	simple := ks[1]
	simple.Simple = true
	head := mustSign(t, message, ks[1], simple)
	head = head[:strings.Index(head, "\r\n\r\n")+4]
	for _, piece := range []string{"\r\n", "\n", " ", "x", "\t\r\n", "\r"} {
		chunk := bytes.Repeat([]byte(piece), 32<<10)
		s := (&Verifier{Resolver: zone}).Start(t.Context())
		s.Write([]byte(head))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 50 {
			s.Write(chunk)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%q: %d octets allocated for a body of %d", piece, n, 50*len(chunk))
		}
		if res := s.Finish(); statuses(res) != "fail fail" {
			t.Errorf("%q: %+v", piece, res)
		}
	}
}
