package dkim

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	peer "github.com/emersion/go-msgauth/dkim"
	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

// modelBody is RFC 6376 sections 3.4.3 and 3.4.4 word for word, over a whole body.
func modelBody(body string, relaxed bool) string {
	// A lone LF is taken as a line end.
	body = strings.ReplaceAll(strings.ReplaceAll(body, "\r\n", "\n"), "\n", "\r\n")
	if relaxed {
		lines := strings.Split(body, "\r\n")
		for i, l := range lines {
			l = strings.TrimRight(regexp.MustCompile(`[ \t]+`).ReplaceAllString(l, " "), " ")
			lines[i] = l
		}
		body = strings.Join(lines, "\r\n")
	}
	for strings.HasSuffix(body, "\r\n") {
		body = body[:len(body)-2]
	}
	if body == "" && relaxed {
		return ""
	}
	return body + "\r\n"
}

func TestBodyModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"\r\n", "\r\n", "\n", "\r", " ", "\t", "a", "bc", "\x00"}), 0, 40).Draw(t, "body"), "")
		relaxed := rapid.Bool().Draw(t, "relaxed")
		h := newBodyHash(relaxed, -1)
		for rest := body; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			h.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		want := modelBody(body, relaxed)
		sum := sha256.Sum256([]byte(want))
		if got := h.sum(); !bytes.Equal(got, sum[:]) {
			t.Fatalf("body %q: not the hash of %q", body, want)
		}
		if h.written != int64(len(want)) {
			t.Fatalf("body %q: %d octets, want %d", body, h.written, len(want))
		}
	})
}

func FuzzVerify(f *testing.F) {
	ks, zone := signers(f)
	rec := zone[ks[1].Name()][0]
	f.Add([]byte(mustSign(f, message, ks[1])), rec, 3)
	f.Add([]byte(mustSign(f, reportMessage, ks[1])), (&Record{Key: ks[1].Key.Public(), Services: []string{ServiceTLSRPT}}).String(), 7)
	f.Add([]byte("DKIM-Signature: v=1; a=rsa-sha256; d=a.b; s=c; h=from; bh=; b=\r\n\r\n"), "v=DKIM1; p=", 1)
	f.Add([]byte(" x\xff\r\nFrom: a@example.org\r\n\r\n"), rec, 5)
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, rec, 1000)
	}
	f.Fuzz(func(t *testing.T, msg []byte, record string, piece int) {
		v := &Verifier{MaxHeader: 64 << 10, Services: []string{ServiceTLSRPT, ServiceEmail}, Resolver: mailspine.ResolverFunc(func(_ context.Context, name string, _ mailspine.Type) (mailspine.Answer, error) {
			if len(name) > 253 || strings.ContainsAny(name, "\x00 \\\r\n") {
				t.Errorf("asked for %q", name)
			}
			return mailspine.Answer{TXT: []string{record}}, nil
		})}
		s := v.Start(t.Context())
		piece = max(1, piece)
		for p := msg; len(p) > 0; p = p[min(piece, len(p)):] {
			s.Write(p[:min(piece, len(p))])
		}
		res := s.Finish()
		if len(res) > DefaultMaxSignatures+1 {
			t.Errorf("%d results", len(res))
		}
		for _, r := range res {
			if (r.Status == Pass) != (r.Problem == "") || r.Status == "" {
				t.Errorf("%+v", r)
			}
			if r.Status == Pass && r.Service == ServiceTLSRPT && !bytes.Contains(bytes.ToLower(msg), []byte("tlsrpt")) {
				t.Errorf("a key for reports signs a mail: %+v", r)
			}
			if strings.ContainsAny(r.Problem, "\r\n\x00") {
				t.Errorf("control characters in %q", r.Problem)
			}
		}
		// What can be signed can be verified.
		sig, err := Sign(t.Context(), mailspine.BytesContent(msg), nil, ks[1])
		if err != nil {
			return
		}
		got, err := (&Verifier{Resolver: zone}).Verify(t.Context(), mailspine.BytesContent(append(sig, msg...)))
		if err != nil || got[0].Status != Pass {
			t.Errorf("own signature: %v %+v", err, got)
		}
	})
}

// FuzzDifferential compares with go-msgauth, whose verifier is another
// reading of the same RFC: a message whose signature passes here must pass there, and
// the other way round. Where the two are known to differ the reason is checked.
func FuzzDifferential(f *testing.F) {
	// Only the Ed25519 key is the same in every process that fuzzes.
	all, zone := signers(f)
	for _, simple := range []bool{false, true} {
		k := all[1]
		k.Simple = simple
		f.Add([]byte(mustSign(f, message, k)))
		f.Add([]byte(mustSign(f, strings.Replace(message, "Hello", "\t \r\n\r\nHello", 1), k)))
	}
	f.Add([]byte("From: a\r\n\tb: c \r\nTo:\r\n \r\n\r\n\t.\r\n"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		res, err := (&Verifier{Resolver: zone}).Verify(t.Context(), mailspine.BytesContent(msg))
		if err != nil {
			t.Fatal(err)
		}
		peers, err := peer.VerifyWithOptions(bytes.NewReader(msg), &peer.VerifyOptions{
			MaxVerifications: DefaultMaxSignatures,
			LookupTXT:        func(name string) ([]string, error) { return zone[strings.ToLower(name)], nil },
		})
		if err != nil || len(peers) != len(res) {
			return // it refuses some messages altogether
		}
		for i, r := range res {
			ours, theirs := r.Status == Pass, peers[i].Err == nil
			if ours == theirs {
				continue
			}
			if reason := differs(msg, r, peers[i].Err); reason == "" {
				t.Errorf("ours: %+v\ntheirs: %v\n%q", r, peers[i].Err, msg)
			}
		}
		// What one signs the other verifies, at least if the message is well formed.
		if !wellFormed(msg) {
			return
		}
		for _, canon := range []peer.Canonicalization{"simple", "relaxed"} {
			k := all[1]
			k.Simple = canon == "simple"
			sig, err := Sign(t.Context(), mailspine.BytesContent(msg), nil, k)
			if err != nil {
				continue
			}
			theirs, err := peer.VerifyWithOptions(bytes.NewReader(append(sig, msg...)), &peer.VerifyOptions{
				LookupTXT: func(name string) ([]string, error) { return zone[name], nil }})
			if err != nil || theirs[0].Err != nil {
				t.Errorf("go-msgauth does not verify our %s signature: %v %+v\n%s%q", canon, err, theirs, sig, msg)
			}
			var signed bytes.Buffer
			if err := peer.Sign(&signed, bytes.NewReader(msg), &peer.SignOptions{Domain: k.Domain, Selector: k.Selector, Signer: k.Key,
				HeaderCanonicalization: canon, BodyCanonicalization: canon, HeaderKeys: []string{"From", "Subject", "To", "x"}}); err != nil {
				continue
			}
			ours, err := (&Verifier{Resolver: zone}).Verify(t.Context(), mailspine.BytesContent(signed.Bytes()))
			if err != nil || ours[0].Status != Pass {
				t.Errorf("we do not verify go-msgauth's %s signature: %v %+v\n%q", canon, err, ours, signed.Bytes())
			}
		}
	})
}

// wellFormed reports whether a message has CRLF line ends, printable ASCII in
// its header, and fields only.
func wellFormed(msg []byte) bool {
	head, _, ok := bytes.Cut(msg, []byte("\r\n\r\n"))
	if !ok || bytes.Count(msg, []byte("\n")) != bytes.Count(msg, []byte("\r\n")) || bytes.Count(msg, []byte("\r")) != bytes.Count(msg, []byte("\r\n")) {
		return false
	}
	for i, l := range bytes.Split(head, []byte("\r\n")) {
		name, _, ok := bytes.Cut(l, []byte(":"))
		fold := i > 0 && len(l) > 0 && (l[0] == ' ' || l[0] == '\t')
		if !fold && (!ok || len(name) == 0 || bytes.ContainsAny(name, " \t")) || fold && len(bytes.TrimSpace(l)) == 0 {
			return false
		}
		for _, c := range l {
			if c != '\t' && c < ' ' || c > 0x7e {
				return false
			}
		}
	}
	return true
}

// differs names the known differences.
func differs(msg []byte, r Verification, theirs error) string {
	switch {
	case theirs == nil && r.Status == PermError:
		return "our reading of tags is stricter"
	case theirs == nil && r.Status == Policy:
		return "our policy"
	case bytes.Contains(msg, []byte("\r")) && bytes.Count(msg, []byte("\r")) != bytes.Count(msg, []byte("\r\n")):
		return "a CR alone: go-msgauth's relaxed body takes it for part of a line end"
	case bytes.Count(msg, []byte("\n")) != bytes.Count(msg, []byte("\r\n")):
		return "a LF alone"
	}
	return ""
}

func FuzzParseRecord(f *testing.F) {
	ks, zone := signers(f)
	f.Add(zone[ks[0].Name()][0])
	f.Add("v=DKIM1; k=ed25519; t=y:s; h=sha256:sha1; s=email; n=a note; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
	f.Add("v=DKIM1; k=ed25519; s=tlsrpt; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
	f.Add("p=;;")
	f.Fuzz(func(t *testing.T, s string) {
		// Whatever e-mail accepts, more services accept too.
		rec, err := ParseRecordFor(s, ServiceTLSRPT, ServiceEmail)
		if r, e := ParseRecord(s); e == nil && err != nil || e == nil && !r.Allows(ServiceEmail) {
			t.Fatalf("%+v %v, %v", r, e, err)
		}
		if (rec == nil) == (err == nil) {
			t.Fatalf("%v %v", rec, err)
		}
		if err != nil {
			return
		}
		again, err := ParseRecordFor(rec.String(), ServiceTLSRPT, ServiceEmail)
		if err != nil || !slices.Equal(again.Services, rec.Services) || again.Testing != rec.Testing || again.Strict != rec.Strict || again.Bits() != rec.Bits() {
			t.Errorf("%q, written as %q: %+v %v", s, rec, again, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	ks, zone := signers(b)
	for _, size := range []int{10 << 10, 1 << 20} {
		body := strings.Repeat("A line of text that is as long as lines of text are, with some words.\r\n", size/71)
		msg := []byte(mustSign(b, message+body, ks[0]))
		name := map[bool]string{true: "10KB", false: "1MB"}[size == 10<<10]
		// The floor: what no verifier can do without.
		b.Run(name+"/floor", func(b *testing.B) {
			b.SetBytes(int64(len(msg)))
			k := ks[0].Key.(*rsa.PrivateKey)
			sum := sha256.Sum256(msg)
			sig, err := k.Sign(nil, sum[:], crypto.SHA256)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				sum := sha256.Sum256(msg)
				if err := rsa.VerifyPKCS1v15(&k.PublicKey, crypto.SHA256, sum[:], sig); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(msg)))
			b.ReportAllocs()
			for b.Loop() {
				res, err := (&Verifier{Resolver: zone}).Verify(b.Context(), mailspine.BytesContent(msg))
				if err != nil || res[0].Status != Pass {
					b.Fatal(res, err)
				}
			}
		})
	}
}
