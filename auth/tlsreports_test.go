package auth

import (
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
)

// A key that is for TLS reports vouches for them, at the addresses where they arrive, also before a strict DMARC policy;
// and for nothing else.
func TestTLSReports(t *testing.T) {
	k := key("tls.example")
	z := world()
	z["s._domainkey.tls.example"] = (&dkim.Record{Key: k.Key.Public(), Services: []string{dkim.ServiceTLSRPT}}).String()
	z["_dmarc.tls.example"] = "v=DMARC1; p=reject"
	const head = "From: reports@tls.example\r\nSubject: x\r\n"
	const kind = "Content-Type: multipart/report; report-type=tlsrpt; boundary=b\r\n"
	report := signed(t, "tls.example", head+kind+"\r\n--b--\r\n")
	mail := signed(t, "tls.example", head+"\r\nHello.\r\n")
	tls := []mailspine.Address{{Local: "tls", Domain: "example.net"}, {Local: "tls-reports", Domain: "bücher.example"}}
	to := func(list ...string) (rcpts []mailspine.Recipient) {
		for _, s := range list {
			local, domain, _ := strings.Cut(s, "@")
			rcpts = append(rcpts, mailspine.Recipient{Address: mailspine.Address{Local: local, Domain: domain}})
		}
		return rcpts
	}
	for _, c := range []struct {
		name     string
		reports  []mailspine.Address
		services []string
		to       []mailspine.Recipient
		msg      string
		dmarc    string
		domains  string
	}{
		{"a report", tls, nil, to("tls@example.net"), report, "pass", "tls.example"},
		{"to both addresses", tls, nil, to("TLS@Example.Net", "tls-reports@xn--bcher-kva.example"), report, "pass", "tls.example"},
		{"with services", tls, []string{dkim.ServiceEmail}, to("tls@example.net"), report, "pass", "tls.example"},
		{"with the service", tls, []string{dkim.ServiceTLSRPT}, to("tls@example.net"), report, "pass", "tls.example"},
		{"without addresses", nil, nil, to("tls@example.net"), report, "fail", ""},
		{"to somebody", tls, nil, to("ann@example.net"), report, "fail", ""},
		{"to the same name elsewhere", tls, nil, to("tls@example.com"), report, "fail", ""},
		{"also to somebody", tls, nil, to("tls@example.net", "ann@example.net"), report, "fail", ""},
		{"to nobody", tls, nil, nil, report, "fail", ""},
		{"a mail", tls, nil, to("tls@example.net"), mail, "fail", ""},
		{"a type on top", tls, nil, to("tls@example.net"), kind + mail, "fail", ""},
	} {
		ch := checker(z)
		ch.TLSReports, ch.DKIM.Services = c.reports, c.services
		env := envelope("192.0.2.9", "reports@tls.example")
		env.Recipients = c.to
		r := check(t, ch, env, c.msg)
		v := r.Verdict()
		if string(r.DMARC.Status) != c.dmarc || strings.Join(v.DKIMDomains, " ") != c.domains || (r.Reject() != nil) != (c.dmarc == "fail") {
			t.Errorf("%s: %+v, %+v, %v", c.name, r.DKIM, v, r.Reject())
		}
		if len(ch.DKIM.Services) != len(c.services) {
			t.Errorf("%s: the Checker was changed: %v", c.name, ch.DKIM.Services)
		}
	}
	// Mail to these addresses is checked as before.
	ch := checker(z)
	ch.TLSReports = tls
	env := envelope("192.0.2.9", "joe@example.org")
	env.Recipients = to("tls@example.net")
	if r := check(t, ch, env, signed(t, "example.org", from("joe@example.org"))); r.DMARC.Status != "pass" {
		t.Errorf("mail: %+v", r)
	}
}
