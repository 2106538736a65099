package auth

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/authres"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dmarc"
)

// A zone has TXT records by name; a value "!" is a temporary failure, "?" a name server that never answers.
type zone map[string]string

func (z zone) Lookup(ctx context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	no := func(kind, err error) (mailspine.Answer, error) {
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: kind, Err: err}
	}
	switch v, ok := z[name]; {
	case !ok:
		return no(mailspine.ErrNXDomain, nil)
	case v == "!":
		return no(mailspine.ErrDNSTemporary, nil)
	case v == "?":
		<-ctx.Done()
		return no(mailspine.ErrDNSTemporary, ctx.Err())
	case t != mailspine.TypeTXT:
		return no(mailspine.ErrNoData, nil)
	default:
		return mailspine.Answer{TXT: []string{v}}, nil
	}
}

func key(domain string) dkim.SigningKey {
	return dkim.SigningKey{Domain: domain, Selector: "s", Key: ed25519.NewKeyFromSeed(make([]byte, 32))}
}

// world has a good sender, a bank with a strict policy, and a domain whose name server is down.
func world() zone {
	k := key("example.org")
	return zone{
		"example.org":                "v=spf1 ip4:192.0.2.1 -all",
		"s._domainkey.example.org":   k.Record().String(),
		"_dmarc.example.org":         "v=DMARC1; p=reject",
		"bank.example":               "v=spf1 -all",
		"_dmarc.bank.example":        "v=DMARC1; p=reject; sp=quarantine",
		"mail.bank.example":          "v=spf1 -all",
		"down.example":               "!",
		"_dmarc.down.example":        "!",
		"s._domainkey.down.example":  k.Record().String(),
		"evil.example":               "v=spf1 ip4:192.0.2.66 -all",
		"s._domainkey.evil.example":  k.Record().String(),
		"slow.example":               "?",
		"_dmarc.slow.example":        "v=DMARC1; p=reject",
		"s._domainkey.slow.example":  "?",
		"testing.example":            "v=spf1 -all",
		"_dmarc.testing.example":     "v=DMARC1; p=reject; t=y",
		"s._domainkey.flaky.example": "!",
		"_dmarc.flaky.example":       "v=DMARC1; p=reject",
	}
}

func envelope(ip, from string) *mailspine.Envelope {
	env := &mailspine.Envelope{Origin: mailspine.Origin{
		Addr: netip.AddrPortFrom(netip.MustParseAddr(ip), 25), Helo: "mail.example.org"}}
	if from != "" {
		local, domain, _ := strings.Cut(from, "@")
		env.From = mailspine.Address{Local: local, Domain: domain}
	}
	return env
}

func checker(z zone) *Checker {
	return &Checker{Resolver: z, ID: "mx.example.net", Logger: slog.New(slog.DiscardHandler)}
}

func check(t *testing.T, c *Checker, env *mailspine.Envelope, msg string) *Results {
	t.Helper()
	k := c.Start(t.Context(), env)
	defer k.Cancel()
	for p := msg; p != ""; p = p[min(17, len(p)):] { // in pieces, as it is staged
		if n, err := k.Write([]byte(p[:min(17, len(p))])); n != min(17, len(p)) || err != nil {
			t.Fatalf("Write: %d %v", n, err)
		}
	}
	return k.Finish()
}

func signed(t *testing.T, domain, msg string) string {
	t.Helper()
	sig, err := dkim.Sign(t.Context(), mailspine.StringContent(msg), nil, key(domain))
	if err != nil {
		t.Fatal(err)
	}
	return string(sig) + msg
}

func from(f string) string { return "From: " + f + "\r\nSubject: x\r\n\r\nHello.\r\n" }

func TestChecker(t *testing.T) {
	good := signed(t, "example.org", from("Joe <joe@example.org>"))
	for _, c := range []struct {
		name, ip, mailFrom, msg string
		spf, dkim, dmarc        string
		disposition             string
		reject                  string // the beginning of the reply
	}{
		{"all pass", "192.0.2.1", "joe@example.org", good, "pass", "pass", "pass", "none", ""},
		{"only DKIM", "192.0.2.9", "joe@example.org", good, "fail", "pass", "pass", "none", ""},
		{"only SPF", "192.0.2.1", "joe@example.org", from("joe@example.org"), "pass", "none", "pass", "none", ""},
		{"nothing", "192.0.2.9", "joe@example.org", from("joe@example.org"), "fail", "none", "fail", "reject",
			"550 5.7.1 Rejected by the DMARC policy of example.org"},
		{"null sender", "192.0.2.9", "", good, "none", "pass", "pass", "none", ""},
		{"changed body", "192.0.2.9", "joe@example.org", good + "more\r\n", "fail", "fail", "fail", "reject", "550 5.7.1"},
		{"forged author", "192.0.2.66", "joe@evil.example", signed(t, "evil.example", from("Bank <info@bank.example>")), "pass", "pass", "fail", "reject",
			"550 5.7.1 Rejected by the DMARC policy of bank.example"},
		{"forged subdomain", "192.0.2.66", "joe@evil.example", from("info@mail.bank.example"), "pass", "none", "fail", "quarantine", ""},
		{"testing", "192.0.2.66", "joe@evil.example", from("a@testing.example"), "pass", "none", "fail", "quarantine", ""},
		{"no policy", "192.0.2.66", "joe@evil.example", from("joe@evil.example"), "pass", "none", "none", "none", ""},
		{"policy not known", "192.0.2.66", "joe@evil.example", from("a@down.example"), "pass", "none", "temperror", "reject",
			"451 4.7.1 DMARC of down.example cannot be evaluated now"},
		{"policy not known, but signed", "192.0.2.66", "joe@down.example", signed(t, "down.example", from("a@down.example")), "temperror", "pass", "temperror", "none", ""},
		{"key not known", "192.0.2.66", "joe@evil.example", signed(t, "flaky.example", from("a@flaky.example")), "pass", "temperror", "temperror", "reject", "451 4.7.1"},
		{"two From fields", "192.0.2.1", "joe@example.org", "From: info@bank.example\r\n" + good, "pass", "fail", "permerror", "reject", "550 5.7.1 Message has not"},
		{"two authors", "192.0.2.1", "joe@example.org", from("joe@example.org, info@bank.example"), "pass", "none", "permerror", "reject", "550 5.7.1"},
		{"no From", "192.0.2.1", "joe@example.org", "Subject: x\r\n\r\n", "pass", "none", "permerror", "reject", "550 5.7.1"},
		{"From below a line that is no field", "192.0.2.1", "joe@example.org", "Subject: x\r\nnonsense\r\n" + from("joe@example.org"), "pass", "none", "permerror", "reject", "550 5.7.1"},
		{"empty", "192.0.2.1", "joe@example.org", "", "pass", "none", "permerror", "reject", "550 5.7.1"},
		{"no body", "192.0.2.1", "joe@example.org", "From: joe@example.org\r\n", "pass", "none", "pass", "none", ""},
		{"huge header", "192.0.2.1", "joe@example.org", strings.Repeat("X: y\r\n", 200000) + good, "pass", "permerror", "permerror", "reject", "550 5.7.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := check(t, checker(world()), envelope(c.ip, c.mailFrom), c.msg)
			v := r.Verdict()
			if v.SPF != c.spf || v.DKIM != c.dkim || v.DMARC != c.dmarc || v.Disposition != c.disposition {
				t.Errorf("spf=%s dkim=%s dmarc=%s disposition=%s\n%+v", v.SPF, v.DKIM, v.DMARC, v.Disposition, r)
			}
			rej := r.Reject()
			switch {
			case rej == nil:
				if c.reject != "" {
					t.Errorf("taken, want %q", c.reject)
				}
			case c.reject == "" || !strings.HasPrefix(rej.Reply(), c.reject):
				t.Errorf("%q, want %q", rej.Reply(), c.reject)
			}
			wellFormed(t, r)
			// Monitor takes everything, and reports the same.
			m := checker(world())
			m.Monitor = true
			r = check(t, m, envelope(c.ip, c.mailFrom), c.msg)
			if r.Reject() != nil || r.Disposition() != dmarc.NonePolicy || r.Verdict().DMARC != c.dmarc {
				t.Errorf("monitor: %+v", r.Verdict())
			}
		})
	}
}

// wellFormed fails unless Header is exactly an Authentication-Results and a
// Received-SPF field, and the former says what the Results say.
func wellFormed(t *testing.T, r *Results) {
	t.Helper()
	b := r.Header()
	h, err := mailspine.ParseHeader(strings.NewReader(string(b)+"\r\n"), 0)
	fields := 2
	if r.BIMI.Status == bimi.Pass {
		fields++
		if r.BIMI.Preference != "" {
			fields++
		}
	}
	if err != nil || len(h.Fields) != fields || h.Body != int64(len(b)) || !h.Fields[0].Is("Authentication-Results") || !h.Fields[fields-1].Is("Received-SPF") {
		t.Fatalf("not %d fields: %q", fields, b)
	}
	a, err := authres.Parse(h.Fields[0].Value())
	if err != nil {
		t.Fatalf("%v: %q", err, b)
	}
	if a.ID != r.ID {
		t.Errorf("id %q", a.ID)
	}
	count := map[string]int{}
	for _, res := range a.Results {
		count[res.Method+"="+res.Value]++
	}
	want := map[string]int{"spf=" + string(r.SPF.Status): 1, "dmarc=" + string(r.DMARC.Status): 1}
	if r.BIMI.Status != "" {
		want["bimi="+string(r.BIMI.Status)] = 1
	}
	for _, d := range r.DKIM {
		want["dkim="+string(d.Status)]++
	}
	if len(r.DKIM) == 0 {
		want["dkim=none"] = 1
	}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("%v, want %v: %q", count, want, b)
	}
}

func TestCheckerFields(t *testing.T) {
	c := checker(world())
	c.AcceptTempError, c.AcceptNoAuthor, c.CheckHelo = true, true, true
	if r := check(t, c, envelope("192.0.2.66", "joe@evil.example"), from("a@down.example")); r.Reject() != nil || r.DMARC.Status != dmarc.TempError {
		t.Errorf("AcceptTempError: %v %+v", r.Reject(), r.DMARC)
	}
	r := check(t, c, envelope("192.0.2.1", "joe@example.org"), "Subject: x\r\n\r\n")
	if r.Reject() != nil || r.Disposition() != dmarc.NonePolicy || r.DMARC.Status != dmarc.PermError {
		t.Errorf("AcceptNoAuthor: %v %+v", r.Reject(), r.DMARC)
	}
	if r.Helo.Status != "none" {
		t.Errorf("HELO: %+v", r.Helo)
	}
	for c, ok := range map[*Checker]bool{{}: false, {ID: "x"}: false, {Resolver: zone{}}: false, {ID: "x", Resolver: zone{}}: true} {
		if (c.Validate() == nil) != ok {
			t.Errorf("%+v: %v", c, c.Validate())
		}
	}
	// The zero Checker has results too.
	r = check(t, &Checker{Logger: c.Logger}, envelope("192.0.2.1", "joe@example.org"), signed(t, "example.org", from("joe@example.org")))
	if v := r.Verdict(); v.SPF != "temperror" || v.DKIM != "temperror" || v.DMARC != "temperror" || r.Reject().Code != 451 {
		t.Errorf("zero Checker: %+v", v)
	}
	if (&Results{}).Reject() != nil || len((&Results{}).Header()) == 0 {
		t.Error("zero Results")
	}
}

// What strangers write into HELO, MAIL FROM, selectors and domains cannot add results.
func TestInjection(t *testing.T) {
	evil := []string{
		"a\r\nAuthentication-Results: mx.example.net; dmarc=pass", `x"; dmarc=pass header.from=bank.example; x="`, "x; dmarc=pass", "x (; dmarc=pass)", "x\\", "\"",
		"a\nb", "\x00", "a\u2028b", "\xff\xfe", strings.Repeat("x", 5000), strings.Repeat(`"`, 5000), strings.Repeat("(", 5000), "é@ü", "",
	}
	for _, e := range evil {
		env := &mailspine.Envelope{
			From:   mailspine.Address{Local: e, Domain: e},
			Origin: mailspine.Origin{Helo: e, Addr: netip.MustParseAddrPort("192.0.2.1:1")},
		}
		c := checker(world())
		c.ID = "mx.example.net"
		c.CheckHelo = false
		msg := "DKIM-Signature: v=1; a=" + strings.NewReplacer("\r", "", "\n", "").Replace(e) + "; d=x; s=\"; b=;\r\n" + from("a@example.org")
		for _, f := range []mailspine.Address{env.From, {Local: e, Domain: "example.org"}, {}} {
			env.From = f
			r := check(t, c, env, msg)
			wellFormed(t, r)
			for l := range strings.SplitSeq(string(r.Header()), "\r\n") {
				if len(l) > 998 {
					t.Errorf("line of %d octets", len(l))
				}
			}
		}
	}
}

func TestTimeout(t *testing.T) {
	msg := signed(t, "slow.example", from("a@slow.example"))
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		c := checker(world())
		c.Timeout = 5 * time.Second
		r := check(t, c, envelope("192.0.2.1", "a@slow.example"), msg)
		if d := time.Since(begin); d != 5*time.Second {
			t.Errorf("took %v", d)
		}
		if v := r.Verdict(); v.SPF != "temperror" || v.DKIM != "temperror" || v.DMARC != "temperror" || r.Reject() == nil || r.Reject().Code != 451 {
			t.Errorf("%+v %v", v, r.Reject())
		}
		// Nothing waits when the transaction dies.
		begin = time.Now()
		k := c.Start(t.Context(), envelope("192.0.2.1", "a@slow.example"))
		k.Write([]byte(msg[:100]))
		k.Cancel()
		k.Cancel()
		// Nor when its context ends.
		ctx, cancel := context.WithCancel(t.Context())
		k = c.Start(ctx, envelope("192.0.2.1", "a@slow.example"))
		k.Write([]byte(msg))
		cancel()
		if r := k.Finish(); r.DMARC.Status != dmarc.TempError {
			t.Errorf("%+v", r.DMARC)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("waited %v", d)
		}
	})
}

func TestForged(t *testing.T) {
	c := &Checker{ID: "mx.Bücher.example"}
	field := func(name, value string) mailspine.HeaderField {
		return mailspine.HeaderField{Name: name, Raw: []byte(name + ":" + value + "\r\n")}
	}
	for value, want := range map[string]bool{
		" mx.bücher.example; dmarc=pass":                                         true,
		" MX.BÜCHER.EXAMPLE; dmarc=pass":                                         true,
		" mx.xn--bcher-kva.example; dmarc=pass":                                  true,
		" mx.xn--BCHER-kva.example.; dmarc=pass":                                 true,
		"mx.bücher.example 1; dmarc=pass":                                        true,
		" mx.bücher.example 2; dmarc=pass":                                       true,
		" mx.bücher.example":                                                     true,
		" \"mx.bücher.example\"; dmarc=pass":                                     true,
		" \"mx\\.bücher.example\"; dmarc=pass":                                   true,
		"\r\n\t(a (nested) comment) mx.bücher.example (x)\r\n 1 (y); dmarc=pass": true,
		" mx.bücher.example; nonsense ((":                                        true,
		" mx.bücher\x00.example; dmarc=pass":                                     true,
		" (not closed mx.bücher.example; dmarc=pass":                             true,
		" mx.example.net(x).example; dmarc=pass":                                 true,
		" \"mx.b\"ücher.example; dmarc=pass":                                     true,
		" ; dmarc=pass":                                                          true,
		"":                                                                       true,
		" \xff; dmarc=pass":                                                      true,
		" mx.example.net; dmarc=pass":                                            false,
		" mx.bücher.example.net; dmarc=pass":                                     false,
		" x-mx.bücher.example; dmarc=pass":                                       false,
		" mx.example.net; dmarc=pass (mx.bücher.example; dmarc=pass)":            false,
	} {
		for _, name := range []string{"Authentication-Results", "AUTHENTICATION-results"} {
			if got := c.Forged(field(name, value)); got != want {
				t.Errorf("%q: %v", value, got)
			}
		}
		if c.Forged(field("ARC-Authentication-Results", value)) || c.Forged(field("X-Authentication-Results", value)) {
			t.Errorf("%q: a field of another name is forged", value)
		}
	}
	if !c.Forged(field("received-spf", " pass")) || !(&Checker{}).Forged(field("Authentication-Results", " x; spf=pass")) {
		t.Error("Received-SPF, or no ID")
	}
	// Thousands of them.
	msg := strings.Repeat("Authentication-Results: mx.xn--bcher-kva.example;\r\n dmarc=pass\r\n", 4000) + from("a@b.example")
	clean, err := mailspine.Edit(t.Context(), mailspine.StringContent(msg), mailspine.HeaderEdit{Drop: c.Forged})
	if err != nil {
		t.Fatal(err)
	}
	if clean.Size() != int64(len(from("a@b.example"))) {
		t.Errorf("%d octets left", clean.Size())
	}
}

func TestSigner(t *testing.T) {
	var got string
	next := mailspine.DelivererFunc(func(ctx context.Context, _ *mailspine.Envelope, msg mailspine.Content) error {
		b, err := mailspine.ReadContent(ctx, msg, 1<<20)
		got = string(b)
		return err
	})
	keys := KeyMap{"example.org": {key("example.org")}, "esp.example": {key("esp.example"), key("example.org")}, "foreign.example": {key("example.org")}}
	env := &mailspine.Envelope{Recipients: make([]mailspine.Recipient, 1)}
	for _, c := range []struct {
		name, msg string
		sigs      int    // when not required
		required  string // the refusal when required; "": the same as when not
	}{
		{"own", from("joe@example.org"), 1, ""},
		{"own in upper case", from("joe@EXAMPLE.org"), 1, ""},
		{"subdomain", from("joe@news.example.org"), 1, ""},
		{"two keys", from("joe@esp.example"), 2, ""},
		{"no key", from("joe@example.com"), 0, "550 5.7.1 Not authorised to send for example.com"},
		{"unrelated key", from("joe@foreign.example"), 1, "550 5.7.1 Not authorised to send for foreign.example"},
		{"no author", "Subject: x\r\n\r\n", 0, "550 5.7.1 Message has not exactly one author"},
		{"two authors, one below a line that is no field", "From: a@example.org\r\njunk\r\n" + from("a@example.org"), 0, "550 5.7.1 Message has not exactly one author"},
		{"two authors", from("a@example.org, b@example.com"), 0, "550 5.7.1"},
	} {
		for _, required := range []bool{false, true} {
			got = ""
			s := &Signer{Next: next, Keys: keys, Required: required, Logger: slog.New(slog.DiscardHandler)}
			err := s.Deliver(t.Context(), env, mailspine.StringContent(c.msg))
			if required && c.required != "" {
				if !strings.HasPrefix(mailspine.Status(err).Reply(), c.required) || got != "" {
					t.Errorf("%s: %v", c.name, err)
				}
				continue
			}
			if err != nil || !strings.HasSuffix(got, c.msg) || strings.Count(got, "DKIM-Signature:") != c.sigs {
				t.Errorf("%s: %v %q", c.name, err, got)
			}
			res, err := (&dkim.Verifier{Resolver: zone{
				"s._domainkey.example.org": keys["example.org"][0].Record().String(), "s._domainkey.esp.example": keys["esp.example"][0].Record().String(),
			}}).Verify(t.Context(), mailspine.StringContent(got))
			if err != nil || len(res) != c.sigs {
				t.Errorf("%s: %v %+v", c.name, err, res)
			}
			for _, r := range res {
				if r.Status != dkim.Pass {
					t.Errorf("%s: %+v", c.name, r)
				}
			}
		}
	}
}

func TestSignerErrors(t *testing.T) {
	boom := errors.New("password of the key store")
	next := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		t.Error("delivered")
		return nil
	})
	keys := KeysFunc(func(context.Context, *mailspine.Envelope, string) ([]dkim.SigningKey, error) { return nil, boom })
	many := KeyMap{"example.org": make([]dkim.SigningKey, MaxKeys+1)}
	broken := KeyMap{"example.org": {{Domain: "example.org"}}}
	msg := from("joe@example.org")
	for name, c := range map[string]struct {
		s    Signer
		msg  string
		want string
	}{
		"no Next":      {Signer{Keys: broken}, msg, "451 4.3.0"},
		"no Keys":      {Signer{Next: next}, msg, "451 4.3.0"},
		"Keys fails":   {Signer{Next: next, Keys: keys}, msg, "451 4.3.0 Local error in processing"},
		"too many":     {Signer{Next: next, Keys: many}, msg, "451 4.3.0"},
		"broken key":   {Signer{Next: next, Keys: broken}, msg, "451 4.3.0"},
		"large header": {Signer{Next: next, Keys: broken, MaxHeader: 10}, msg, "552 5.3.4"},
	} {
		err := c.s.Deliver(t.Context(), &mailspine.Envelope{}, mailspine.StringContent(c.msg))
		if got := mailspine.Status(err).Reply(); !strings.HasPrefix(got, c.want) || strings.Contains(got, "password") {
			t.Errorf("%s: %s", name, got)
		}
	}
	q := &stagingDeliverer{}
	if mailspine.StagerOf(&Signer{Next: q}) != mailspine.Stager(q) {
		t.Error("the Signer hides its Next's Stager")
	}
}

type stagingDeliverer struct {
	mailspine.Deliverer
	mailspine.SpoolStager
}
