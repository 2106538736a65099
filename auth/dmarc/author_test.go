package dmarc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
)

func header(t testing.TB, s string) *mailspine.Header {
	t.Helper()
	h, err := mailspine.ParseHeader(strings.NewReader(s+"\r\n"), 0)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestAuthor(t *testing.T) {
	for _, c := range []struct {
		header, want string
		err          error
	}{
		{"From: joe@example.org", "example.org", nil},
		{"FROM : Joe <joe@Example.ORG>", "example.org", nil},
		{"From: \"Joe, the great\" <joe@example.org>", "example.org", nil},
		{"From: Joe (at <x@bank.example>) <joe@example.org> (x@bank.example)", "example.org", nil},
		{"From: \"ceo@bank.example\" <joe@example.org>", "example.org", nil},
		{"From: =?utf-8?q?ceo=40bank=2Eexample?= <joe@example.org>", "example.org", nil},
		{"From: joe@Bücher.example", "xn--bcher-kva.example", nil},
		{"From: a@example.org, b@EXAMPLE.org.", "example.org", nil},
		{"From: a@example.org, Bob <b@EXAMPLE.org>,", "example.org", nil},
		{"From: us: a@example.org, b@example.org;", "example.org", nil},
		{"From: \"a@b\"@example.org", "example.org", nil},
		{"From: joe @ example . org", "example.org", nil},
		{"From: joe@example.org <joe@example.org>", "example.org", nil},
		{"From:\r\n Joe\r\n\t<joe@example.org>", "example.org", nil},
		{"From: J. R. Tolkien <joe@example.org>", "example.org", nil},

		{"Subject: x", "", ErrNoFrom},
		{"From: a@example.org\r\nfrom: a@example.org", "", ErrManyFrom},
		{"From: a@example.org, b@bank.example", "", ErrManyAuthors},
		{"From: us: a@example.org; , b@bank.example", "", ErrManyAuthors},
		{"From: ceo@bank.example <joe@example.org>", "", ErrManyAuthors},
		{"From: Boss ceo@bank.example x <joe@example.org>", "", ErrManyAuthors},
		{"From:", "", ErrBadFrom},
		{"From: <>", "", ErrBadFrom},
		{"From: nobody:;", "", ErrBadFrom},
		{"From: joe", "", ErrBadFrom},
		{"From: joe@", "", ErrBadFrom},
		{"From: (x\rFrom: y) joe@example.org", "", ErrBadFrom},
		{"From: (x\\\x00) joe@example.org", "", ErrBadFrom},
		{"From: =?utf-8?q?ceo=40bank=2Eexample=3E?=@example.org", "", ErrBadFrom},
		{"From: Joe <\"=?utf-8?q?ceo=40bank=2Eexample=3E?=\"@example.org>", "", ErrBadFrom},
		{"From: @example.org", "", ErrBadFrom},
		{"From: <joe@example.org", "", ErrBadFrom},
		{"From: joe@example.org>", "", ErrBadFrom},
		{"From: <joe@example.org> x", "", ErrBadFrom},
		{"From: <joe@example.org> <x@bank.example>", "", ErrBadFrom},
		{"From: <joe@example.org>@bank.example", "", ErrBadFrom},
		{"From: <@bank.example:joe@example.org>", "", ErrBadFrom},
		{"From: joe@example.org@bank.example", "", ErrBadFrom},
		{"From: joe@example.org bank.example", "", ErrBadFrom},
		{"From: joe@[192.0.2.1]", "", ErrBadFrom},
		{"From: joe@exam\x00ple.org", "", ErrBadFrom},
		{"From: \"a\x00\" <joe@example.org>", "", ErrBadFrom},
		{"From: (a\x00) <joe@example.org>", "", ErrBadFrom},
		{"From: joe@example.org\r", "example.org", nil},
		{"From: joe@exam\rple.org", "", ErrBadFrom},
		{"From: joe@example..org", "", ErrBadFrom},
		{"From: joe@.example.org", "", ErrBadFrom},
		{"From: joe@\"example.org\"", "", ErrBadFrom},
		{"From: joe@ex(ample.org", "", ErrBadFrom},
		{"From: joe@ex(c)ample.org", "", ErrBadFrom},
		{"From: \"joe <joe@example.org>", "", ErrBadFrom},
		{"From: a: b: c@example.org;", "", ErrBadFrom},
		{"From: a: c@example.org", "", ErrBadFrom},
		{"From: a: c@example.org; d", "", ErrBadFrom},
		{"From: c@example.org;", "", ErrBadFrom},
		{"From: \\joe@example.org", "", ErrBadFrom},
		{"From: joe@" + strings.Repeat("a", 64) + ".example", "", ErrBadFrom},
		{"From: joe@" + strings.Repeat("a.", 200) + "example", "", ErrBadFrom},
		{"From: " + strings.Repeat("a@example.org, ", 5000), "", ErrBadFrom},
		{"From: " + strings.Repeat("(", 10000), "", ErrBadFrom},
	} {
		got, err := Author(header(t, c.header+"\r\n"))
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%.60q: %q %v, want %q %v", c.header, got, err, c.want, c.err)
		}
	}
}

func FuzzAuthor(f *testing.F) {
	for _, s := range []string{"Joe <joe@example.org>", "a: b@c, \"d\" (e) <f@g>;", "ceo@bank.example <joe@example.org>", "joe @ a . b", "(\\", "\"\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := &mailspine.Header{Fields: []mailspine.HeaderField{{Name: "From", Raw: []byte("From: " + s + "\r\n")}}}
		d, err := Author(h)
		switch {
		case err != nil && d != "" || err == nil && !validName(d):
			t.Errorf("%q %v", d, err)
		case err != nil && !errors.Is(err, ErrBadFrom) && !errors.Is(err, ErrManyAuthors):
			t.Errorf("%v", err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=DMARC1; p=reject; sp=none; np=quarantine; adkim=s; aspf=r; psd=y; t=y; rua=mailto:a@b!10m,https://x/y; ruf=mailto:c@d; fo=0:d; pct=5")
	f.Add("v = DMARC1 ;;;p")
	f.Fuzz(func(t *testing.T, s string) {
		rec, ok := ParseRecord(s)
		if ok != (rec != nil) {
			t.Fatal("ok and record disagree")
		}
		if ok && (len(rec.AggregateReports) > maxURIs || rec.wish(true, false) == "" || !strings.Contains(s, "DMARC1")) {
			t.Errorf("%+v", rec)
		}
	})
}

func ExampleAuthor() {
	for _, from := range []string{"Joe <joe@Example.org>", "ceo@bank.example <joe@example.org>"} {
		h, err := mailspine.ParseHeader(strings.NewReader("From: "+from+"\r\n\r\n"), 0)
		if err != nil {
			panic(err)
		}
		fmt.Println(Author(h))
	}
	// Output:
	// example.org <nil>
	//  dmarc: the From field names several domains (RFC 9989 section 5.3.1)
}
