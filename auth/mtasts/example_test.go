package mtasts_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/auth/mtasts"
)

// A policy says which hosts may be delivered to.
func ExampleParsePolicy() {
	p, err := mtasts.ParsePolicy([]byte("version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmax_age: 604800\n"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Mode, p.MaxAge)
	for _, host := range []string{"mail.example.com", "mx1.example.net", "a.b.example.net", "evil.example"} {
		fmt.Println(host, p.Matches(host))
	}
	_, err = mtasts.ParsePolicy([]byte("version: STSv1\nmode: enforced\n"))
	fmt.Println(err)
	// Output:
	// enforce 168h0m0s
	// mail.example.com true
	// mx1.example.net true
	// a.b.example.net false
	// evil.example false
	// policy file, line 2: mode: "enforced" is not enforce, testing or none
}

// Publishing a policy takes a TXT record and a file.
func ExampleRecord() {
	p := mtasts.Policy{Mode: mtasts.ModeTesting, MX: []string{"mx.example.org"}, MaxAge: 14 * 24 * time.Hour}
	fmt.Println("_mta-sts.example.org. TXT", mtasts.Record(p))
	for _, line := range p.Lines() {
		fmt.Println(line)
	}
	// Output:
	// _mta-sts.example.org. TXT v=STSv1; id=d966dad975cd7d88a29f;
	// version: STSv1
	// mode: testing
	// mx: mx.example.org
	// max_age: 1209600
}

// The policy host of some domains; it belongs behind HTTPS.
func ExampleHandler() {
	h := &mtasts.Handler{Policies: map[string]mtasts.Policy{
		"example.org": {Mode: mtasts.ModeEnforce, MX: []string{"*.example.org"}, MaxAge: 14 * 24 * time.Hour},
	}}
	for _, host := range []string{"mta-sts.example.org", "mta-sts.example.net"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "https://"+host+mtasts.WellKnownPath, nil))
		fmt.Println(host, w.Code, w.Header().Get("Content-Type"))
	}
	// Output:
	// mta-sts.example.org 200 text/plain; charset=utf-8
	// mta-sts.example.net 404 text/plain; charset=utf-8
}

// A policy that is kept protects mail although an attacker has taken DNS and the policy host away.
func ExampleCache() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "mta-sts-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	store, err := mtasts.OpenFile(filepath.Join(dir, "policies"), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer store.Close()
	// It was fetched an hour ago.
	if err := store.Save(ctx, mtasts.Entry{Domain: "example.org", Fetched: time.Now().Add(-time.Hour), Policy: mtasts.Policy{
		ID: "20261124", Mode: mtasts.ModeEnforce, MX: []string{"mx.example.org"}, MaxAge: 14 * 24 * time.Hour,
	}}); err != nil {
		fmt.Println(err)
		return
	}
	zone := dnstest.Zone{"_mta-sts.example.org": {dnstest.ServFail}, "mta-sts.example.org": {dnstest.ServFail}}

	cache := &mtasts.Cache{Fetcher: &mtasts.Fetcher{Resolver: zone}, Store: store, Logger: slog.New(slog.DiscardHandler)}
	p, problem := cache.Policy(ctx, "example.org")
	fmt.Println(p.Mode, p.Matches("mx.example.org"), p.Matches("mx.evil.example"))
	if e := (*mtasts.Error)(nil); errors.As(problem, &e) {
		fmt.Println(e.Kind, errors.Is(e, mailspine.ErrDNSTemporary))
	}
	p, problem = cache.Policy(ctx, "example.net") // has none
	fmt.Println(p.Mode == "", problem)
	// Output:
	// enforce true false
	// dns true
	// true <nil>
}
