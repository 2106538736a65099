package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/mta"
)

const routeZone = `$TTL 3600
@	IN	SOA	ns.example.org. hostmaster.example.org. 1 3600 600 86400 60
@	IN	MX	10 mx1
@	IN	MX	20 mx2
@	IN	MX	30 mail.example.net.
mx1	IN	A	203.0.113.25
mx1	IN	A	8.8.4.25
mx1	IN	AAAA	2600::25
mx2	IN	A	8.8.8.25
mx2	IN	A	10.1.2.3
list	IN	A	8.8.8.26
null	IN	MX	0 .
alias	IN	CNAME	example.org.
`

func TestRouteGolden(t *testing.T) {
	zone := writeFile(t, routeZone)
	for _, tt := range []struct {
		name string
		code int
		args []string
	}{
		{"route.txt", exitOK, []string{"example.org", "-zone", zone, "list.example.org", "alias.example.org"}},
		{"route-own.txt", exitOK, []string{"-zone", zone, "-own", "8.8.8.25", "-port", "2525", "-allow", "203.0.113.0/24", "Example.ORG."}},
		{"route-problems.txt", exitProblem, []string{"-zone", zone, "-hostname", "mx1.example.org", "example.org", "null.example.org", "gone.example.org", "other.example", "[127.0.0.1]"}},
		{"route.json", exitOK, []string{"-json", "-zone", zone, "example.org"}},
	} {
		code, out, errs := tool(t, append([]string{"route"}, tt.args...)...)
		if code != tt.code || errs != "" {
			t.Errorf("%s: exit %d: %s", tt.name, code, errs)
		}
		golden(t, tt.name, out)
	}
}

// DNSSEC is believed of a server only when it is said so.
func TestRouteDNS(t *testing.T) {
	s, err := dnstest.Start(dnstest.Zone{
		"example.org":              {dnstest.Signed, dnstest.MX(10, "mx.example.org")},
		"mx.example.org":           {dnstest.A("8.8.8.25")},
		"_25._tcp.mx.example.org":  {dnstest.TLSA(3, 1, 1, make([]byte, 32))},
		"xn--bcher-kva.example":    {dnstest.MX(10, "mx.xn--bcher-kva.example")},
		"mx.xn--bcher-kva.example": {dnstest.A("8.8.8.26")},
		"servfail.example":         {dnstest.ServFail},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	plan := func(code int, args ...string) *mta.Plan {
		t.Helper()
		got, out, errs := tool(t, append([]string{"route", "-json", "-dns", s.Addr()}, args...)...)
		var plans []*mta.Plan
		if err := json.Unmarshal([]byte(out), &plans); got != code || errs != "" || err != nil || len(plans) != 1 {
			t.Fatalf("%v: exit %d: %v: %s%s", args, got, err, out, errs)
		}
		return plans[0]
	}
	if p := plan(exitOK, "example.org"); p.Authentic || strings.HasPrefix(p.Hosts[0].TLS, "DANE") {
		t.Errorf("believed without -trust: %s", p)
	}
	if p := plan(exitOK, "-trust", "example.org"); !p.Authentic || !strings.HasPrefix(p.Hosts[0].TLS, "DANE: 1 usable TLSA record") {
		t.Errorf("%s", p)
	}
	if p := plan(exitOK, "bücher.example"); p.Domain != "xn--bcher-kva.example" || p.Hosts[0].Addrs[0].Turn != 1 {
		t.Errorf("%s", p)
	}
	if p := plan(exitOK, "-mta-sts", "bücher.example"); !strings.Contains(p.Hosts[0].TLS, "no MTA-STS") {
		t.Errorf("%s", p)
	}
	if p := plan(exitProblem, "servfail.example"); !strings.HasPrefix(p.Error, "451 4.4.3") {
		t.Errorf("%s", p)
	}
}

func TestRouteUsage(t *testing.T) {
	for _, tt := range []struct{ want, args string }{
		{"domain is missing", "route"},
		{"not defined: -colour", "route -colour example.org"},
		{"no domain", "route exa%mple.org"},
		{"no domain", "route example.org a..b"},
		{"no domain", "route [300.1.1.1]"},
		{"no domain", "route ."},
		{"more than 1000", "route " + strings.Repeat("a.example ", 1001)},
		{"-hostname", "route -hostname mail example.org"},
		{"-own", "route -own mail.example.org example.org"},
		{"-own", "route -own fe80::1%eth0 example.org"},
		{"-allow", "route -allow 10.0.0.0 example.org"},
		{"-port", "route -port 0 example.org"},
		{"-port", "route -port 65536 example.org"},
		{"-dns", "route -dns ns.example.org example.org"},
		{"-trust", "route -trust example.org"},
		{"-zone", "route -zone /nowhere/at/all example.org"},
		{"exclude", "route -zone x -dns 192.0.2.1 example.org"},
	} {
		code, out, errs := tool(t, strings.Fields(tt.args)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%.60s: exit %d: %s%s", tt.args, code, out, errs)
		}
	}
	if code, out, errs := tool(t, "route", "-h"); code != exitOK || !strings.Contains(out+errs, "usage") {
		t.Errorf("-h: exit %d", code)
	}
	// An end in the middle is told.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs strings.Builder
	if code := run(ctx, []string{"route", "-zone", writeFile(t, routeZone), "example.org"}, &out, &errs); code != exitProblem || errs.String() == "" {
		t.Errorf("exit %d: %s%s", code, &out, &errs)
	}
}
