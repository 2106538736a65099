package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/fbl"
)

// publish adds to a name server what dns.txt of a server's directory asks for.
func publish(t *testing.T, ns *dnstest.Server, dir string) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "dns.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := mdns.NewZoneParser(f, ".", "dns.txt")
	zone, n := dnstest.Zone{}, 0
	for rr, ok := z.Next(); ok; rr, ok = z.Next() {
		name := strings.TrimSuffix(rr.Header().Name, ".")
		switch r := rr.(type) {
		case *mdns.MX:
			zone[name] = append(zone[name], dnstest.MX(r.Preference, strings.TrimSuffix(r.Mx, ".")))
		case *mdns.TXT:
			zone[name] = append(zone[name], dnstest.TXT(r.Txt...))
		default:
			t.Errorf("dns.txt: unexpected %s", rr)
		}
		n++
	}
	if err := z.Err(); err != nil || n != 5 {
		t.Fatalf("dns.txt: %d records, %v", n, err)
	}
	for name, recs := range zone {
		ns.Set(name, recs...)
	}
}

// Two servers, and a DNS with no more than what their dns.txt says: a message goes from one to the
// other through the MX, passes all checks there, and the reader's complaint comes back.
func TestTwoServers(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	ns, err := dnstest.Start(dnstest.Zone{
		"mail.alpha.example": {dnstest.A("127.0.0.1")},
		"mail.beta.example":  {dnstest.A("127.0.0.1"), dnstest.TXT("v=spf1 a -all")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })

	beta := start(t, t.TempDir(), "-domain", "beta.example", "-user", "rita:moor", "-user", "rex:oedipus", "-dns", ns.Addr())
	args := []string{"-domain", "alpha.example", "-user", "ann:hunter2", "-user", "al:capone", "-dns", ns.Addr(), "-mx-port", beta.port("smtp")}
	alphaDir := t.TempDir()
	alpha := start(t, alphaDir, args...)
	publish(t, ns, beta.dir)
	publish(t, ns, alphaDir)
	// What the domain may say besides, once it knows that all of its mail passes.
	ns.Set("_dmarc.alpha.example", dnstest.TXT("v=DMARC1; p=reject"))
	ns.Set("default._bimi.alpha.example", dnstest.TXT("v=BIMI1; l=https://alpha.example/indicator.svg"))
	submit := func(user, password, to, subject string) error {
		_, err := alpha.submit(user, password, user+"@alpha.example", []string{to}, letter(user+"@alpha.example", to, subject))
		return err
	}

	// An MX that leads to a private address is a stranger's attempt to reach what only we can reach.
	if err := submit("ann", "hunter2", "rex@beta.example", "guarded"); err != nil {
		t.Fatal(err)
	}
	var report string
	eventually(t, "a notification", func() bool {
		for _, m := range alpha.mailbox("ann@alpha.example", "") {
			report = m
		}
		return report != ""
	})
	if !strings.Contains(report, "Status: 5.4.4") || !strings.Contains(report, "d=alpha.example") {
		t.Errorf("notification:\n%s", report)
	}
	alpha.stop()

	alpha = start(t, alphaDir, append(args, "-allow-private", "127.0.0.0/8")...)
	if err := submit("ann", "hunter2", "rita@beta.example", "hello"); err != nil {
		t.Fatal(err)
	}
	got := beta.with("rita@beta.example", "", "hello")
	for _, want := range []string{"spf=pass", "dkim=pass", "dmarc=pass", "bimi=pass", "https://alpha.example/indicator.svg"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}

	if unfolded := strings.NewReplacer("\r\n", "", "\t", "", " ", "").Replace(got); !strings.Contains(unfolded, ":X-Feedback-Token:") && !strings.Contains(unfolded, ":X-Feedback-Token;") {
		t.Errorf("the token is not signed:\n%s", got)
	}

	// An address that does not exist: the sender is told once by a notification, and then at the door.
	if err := submit("al", "capone", "nobody@beta.example", "into the void"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a notification", func() bool {
		return strings.Contains(strings.Join(alpha.mailbox("al@alpha.example", ""), ""), "Status: 5.1.1")
	})
	eventually(t, "the bounce counts", func() bool {
		err := submit("al", "capone", "nobody@beta.example", "into the void")
		return err != nil && strings.Contains(err.Error(), "suppression list")
	})

	// A forged complaint, one that passes DKIM but has no token of ours, stops nobody.
	key := signingKey(t, beta.dir, "beta.example")
	forged := strings.Replace(got, "X-Feedback-Token: ", "X-Feedback-Token: aaaa", 1)
	complain(t, ctx, alpha, key, forged)
	review := ""
	eventually(t, "the forged complaint waits for review", func() bool {
		review = strings.Join(alpha.mailbox("ann@alpha.example", "Feedback"), "")
		return review != ""
	})
	if !strings.Contains(review, "X-Feedback-Review: ") {
		t.Errorf("no reason in\n%s", review)
	}
	if err := submit("ann", "hunter2", "rita@beta.example", "again"); err != nil {
		t.Fatal(err)
	}
	beta.with("rita@beta.example", "", "again")
	// Nor does one with a token that was copied, from who can sign for nobody.
	complain(t, ctx, alpha, nil, got)
	eventually(t, "the unsigned complaint waits for review", func() bool { return len(alpha.mailbox("ann@alpha.example", "Feedback")) == 2 })
	if err := submit("ann", "hunter2", "rita@beta.example", "and again"); err != nil {
		t.Fatal(err)
	}
	beta.with("rita@beta.example", "", "and again")

	// A real one stops the next message of that sender to that reader, and nothing else, from then on.
	complain(t, ctx, alpha, key, got)
	eventually(t, "the complaint counts", func() bool { return strings.Contains(alpha.log.String(), "msg=complaint ") })
	stopped := func() {
		t.Helper()
		if err := submit("ann", "hunter2", "rita@beta.example", "stopped"); err == nil || !strings.Contains(err.Error(), "suppression list") {
			t.Errorf("after the complaint: %v", err)
		}
	}
	stopped()
	alpha.stop()
	alpha = start(t, alphaDir, append(args, "-allow-private", "127.0.0.0/8")...)
	stopped()
	if err := submit("al", "capone", "rita@beta.example", "from another"); err != nil {
		t.Error(err)
	}
	if err := submit("ann", "hunter2", "rex@beta.example", "to another"); err != nil {
		t.Error(err)
	}
	beta.with("rita@beta.example", "", "from another")
	beta.with("rex@beta.example", "", "to another")

	// Some recipients are stopped and others are not: one answer at the door, and a notification.
	if _, err := alpha.submit("ann", "hunter2", "ann@alpha.example", []string{"rita@beta.example", "rex@beta.example"}, letter("ann@alpha.example", "rex@beta.example", "to both")); err != nil {
		t.Error(err)
	}
	beta.with("rex@beta.example", "", "to both")
	eventually(t, "a notification for the one", func() bool {
		all := strings.Join(alpha.mailbox("ann@alpha.example", ""), "")
		return strings.Contains(all, "Status: 5.1.0") && strings.Contains(all, "rita@beta.example")
	})
	if all := strings.Join(beta.mailbox("rita@beta.example", ""), ""); strings.Contains(all, "stopped") || strings.Contains(all, "to both") {
		t.Error("rita has got what was stopped")
	}
	alpha.stop()
	beta.stop()
}

func signingKey(t *testing.T, dir, domain string) *dkim.SigningKey {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "dkim.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := dkim.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return &dkim.SigningKey{Domain: domain, Selector: selector, Key: key}
}

// complain sends what a provider sends when rita@beta.example reports a message. Without a key it passes
// nothing: the domain says that no host may send for it.
func complain(t *testing.T, ctx context.Context, p *process, key *dkim.SigningKey, message string) {
	t.Helper()
	from := "staff@mail.beta.example"
	if key == nil {
		from = "staff@nowhere.example"
	}
	c := &fbl.Complaint{
		From: "Abuse Desk <" + from + ">", To: mailspine.Address{Local: "fbl", Domain: "alpha.example"}, Date: time.Now(),
		MessageID: string(mailspine.NewMsgID()) + "@beta.example", Type: fbl.TypeAbuse, UserAgent: "Test/1",
		Recipients: []mailspine.Address{{Local: "rita", Domain: "beta.example"}}, Returned: []byte(message), Full: true,
	}
	report, _ := c.Bytes()
	if key != nil {
		sig, err := dkim.Sign(ctx, mailspine.BytesContent(report), nil, *key)
		if err != nil {
			t.Fatal(err)
		}
		report = append(sig, report...)
	}
	if _, err := p.send(from, []string{"FBL@alpha.example"}, string(report)); err != nil {
		t.Fatal(err)
	}
}
