package mta

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	smtp "github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A sink is a Deliverer that keeps what it gets.
type sink struct {
	fail func(*mailspine.Envelope) error // nil: takes all

	mu  sync.Mutex
	got []delivered
}

type delivered struct {
	env      *mailspine.Envelope
	msg      string
	failures mailspine.RecipientErrors
}

func (s *sink) Deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
	b, err := mailspine.ReadContent(ctx, msg, 1<<20)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, delivered{env.Clone(), string(b), mailspine.FailuresFrom(ctx)})
	if s.fail != nil {
		return s.fail(env)
	}
	return nil
}

func (s *sink) all() []delivered {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// zone has a sender whose mail from loopback passes, and one who has everything else rejected.
func receiverZone() dnstest.Zone {
	return dnstest.Zone{
		"good.example":              {dnstest.TXT("v=spf1 ip4:127.0.0.1 -all")},
		"_dmarc.good.example":       {dnstest.TXT("v=DMARC1; p=reject")},
		"victim.example":            {dnstest.TXT("v=spf1 -all")},
		"_dmarc.victim.example":     {dnstest.TXT("v=DMARC1; p=reject")},
		"careful.example":           {dnstest.TXT("v=spf1 -all")},
		"_dmarc.careful.example":    {dnstest.TXT("v=DMARC1; p=quarantine")},
		"slow.example":              {dnstest.TXT("v=spf1 -all")},
		"_dmarc.slow.example":       {dnstest.ServFail},
		"none.example":              {dnstest.A("192.0.2.80")},
		"helo.example":              {dnstest.A("127.0.0.1"), dnstest.TXT("v=spf1 a -all")},
		"mx1.here.example":          {dnstest.A("127.0.0.1")},
		"here.example":              {dnstest.MX(10, "mx1.here.example")},
		"_dmarc.helo.example":       {dnstest.TXT("v=DMARC1; p=none")},
		"_dmarc.forgedname.example": {dnstest.TXT("v=DMARC1; p=none")},
	}
}

// here accepts the users of here.example.
var here = mailspine.RecipientCheckerFunc(func(_ context.Context, _ *mailspine.Envelope, r mailspine.Recipient) error {
	switch {
	case r.Address.Domain != "here.example" && r.Address.Domain != "mx1.here.example":
		return mailspine.Errorf(550, "5.7.1", "Relaying denied")
	case strings.HasPrefix(r.Address.Local, "nobody"):
		return mailspine.Errorf(550, "5.1.1", "No such user")
	}
	return nil
})

func newReceiver(next mailspine.Deliverer) *Receiver {
	zone := receiverZone()
	quiet := slog.New(slog.DiscardHandler)
	return &Receiver{
		Hostname: "mx1.here.example", Recipients: here, Next: next, Logger: quiet,
		Checker: &auth.Checker{Resolver: zone, ID: "mx1.here.example", Logger: quiet},
		Now:     func() time.Time { return time.Unix(1700000000, 0).UTC() },
	}
}

// serve starts a Receiver on loopback, and stops it at the end of the test.
func serve(t testing.TB, r *Receiver) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Serve(l) }()
	t.Cleanup(func() {
		r.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// talk sends commands, each answered before the next, and returns the last line
// of each reply; the greeting first. A command that ends with CRLF is sent as it is: a message.
func talk(t testing.TB, addr string, commands ...string) []string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(conn)
	var replies []string
	for i := -1; i < len(commands); i++ {
		if i >= 0 {
			c := commands[i]
			if !strings.HasSuffix(c, "\r\n") {
				c += "\r\n"
			}
			io.WriteString(conn, c)
		}
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return append(replies, err.Error())
			}
			if len(line) < 4 || line[3] != '-' {
				replies = append(replies, strings.TrimSpace(line))
				break
			}
		}
	}
	return replies
}

// send holds one transaction, and returns the reply to the message, or to the first command that
// was refused.
func send(t testing.TB, addr, from, to, msg string) string {
	t.Helper()
	replies := talk(t, addr, "EHLO helo.example", "MAIL FROM:<"+from+">", "RCPT TO:<"+to+">", "DATA", msg+".\r\n")
	for _, r := range replies {
		if r[0] != '2' && r[0] != '3' {
			return r
		}
	}
	return replies[len(replies)-1]
}

func from(domain, rest string) string { return "From: <ann@" + domain + ">\r\n" + rest }

// What comes through: the body and the other fields octet for octet, ours on top
// in the right order, the forged ones gone, the verdict in the envelope.
func TestReceiverTakes(t *testing.T) {
	next := &sink{}
	r := newReceiver(next)
	addr := serve(t, r)
	forged := "Authentication-Results: MX1.HERE.example.; dmarc=pass header.from=bank.example\r\n" +
		"authentication-results : (x) mx1.here.example (y) 1;\r\n\tspf=pass\r\n" +
		"Received-SPF: pass (really)\r\n" +
		"Authentication-Results: ;;; what\r\n"
	before := "Received: from somewhere\r\n\tby elsewhere; Tue, 1 Jan 2030 00:00:00 +0000\r\n"
	after := "Authentication-Results: other.example; spf=fail\r\nX-Odd:   spaces  kept \r\n" +
		from("good.example", "Content-Type: multipart/mixed; boundary=\"unclosed\r\nContent-Transfer-Encoding: no-such\r\n")
	body := "\r\n--unclosed\r\n.dot\r\n..dots\r\n\ttabs and \xff\xfe\r\nAuthentication-Results: mx1.here.example; spf=pass\r\n"
	wire := strings.ReplaceAll(forged+before+after+body, "\r\n.", "\r\n..")
	reply := send(t, addr, "ann@good.example", "bob@here.example", wire)
	if !strings.HasPrefix(reply, "250 2.0.0 ") {
		t.Fatalf("the message was refused: %s", reply)
	}
	got := next.all()
	if len(got) != 1 {
		t.Fatalf("delivered %d times", len(got))
	}
	head, ok := strings.CutSuffix(got[0].msg, before+after+body)
	if !ok {
		t.Fatalf("the message has changed:\n%q", got[0].msg)
	}
	head = regexp.MustCompile(`id [0-9A-Z]{26}`).ReplaceAllString(head, "id ID")
	// How the fields are folded is the business of auth.
	want := "Authentication-Results: mx1.here.example; spf=pass smtp.mailfrom=ann@good.example; dkim=none; " +
		"dmarc=pass header.from=good.example policy.dmarc=none Received-SPF: pass "
	if got := strings.Join(strings.Fields(head), " "); !strings.HasPrefix(got, want) {
		t.Errorf("the head begins\n%s\nwant\n%s", got, want)
	}
	if want := "Received: from helo.example ([127.0.0.1])\r\n\tby mx1.here.example with ESMTP\r\n\tid ID\r\n\tfor <bob@here.example>;\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n"; !strings.HasSuffix(head, want) {
		t.Errorf("the head ends\n%s\nwant\n%s", head, want)
	}
	if n := strings.Count(head, "\nReceived"); n != 2 {
		t.Errorf("the head has %d fields that begin with Received, want Received-SPF and Received:\n%s", n, head)
	}
	v := got[0].env.Verdict
	if v == nil || v.SPF != "pass" || v.DKIM != "none" || v.DMARC != "pass" || v.FromDomain != "good.example" || v.Disposition != "none" || v.Policy != "reject" {
		t.Errorf("the verdict is %+v", v)
	}
	if env := got[0].env; env.From.String() != "ann@good.example" || env.Origin.Helo != "helo.example" || env.ID == "" || !strings.Contains(reply, string(env.ID)) {
		t.Errorf("envelope %+v, reply %q", env, reply)
	}
	if s := r.Stats(); s.Messages != 1 || s.Refused != 0 {
		t.Errorf("stats %+v", s)
	}
}

// What authentication makes of a message, and that Next sees only what is taken.
func TestReceiverPolicy(t *testing.T) {
	for _, tt := range []struct {
		name  string
		from  string // MAIL
		msg   string
		edit  func(*auth.Checker)
		reply string
		want  string // DMARC, disposition of the verdict; "": not delivered
	}{
		{"pass", "ann@good.example", from("good.example", "\r\nhi\r\n"), nil, "250 2.0.0", "pass none"},
		{"DMARC reject", "eve@none.example", from("victim.example", "\r\nhi\r\n"), nil, "550 5.7.1", ""},
		{"DMARC reject, forged results do not help", "eve@none.example",
			"Authentication-Results: mx1.here.example; dmarc=pass\r\n" + from("victim.example", "\r\nhi\r\n"), nil, "550 5.7.1", ""},
		{"DMARC reject, monitored", "eve@none.example", from("victim.example", "\r\nhi\r\n"), func(c *auth.Checker) { c.Monitor = true }, "250 2.0.0", "fail none"},
		{"DMARC quarantine", "eve@none.example", from("careful.example", "\r\nhi\r\n"), nil, "250 2.0.0", "fail quarantine"},
		{"DMARC temperror", "eve@none.example", from("slow.example", "\r\nhi\r\n"), nil, "451 4.7.1", ""},
		{"DMARC temperror, accepted", "eve@none.example", from("slow.example", "\r\nhi\r\n"), func(c *auth.Checker) { c.AcceptTempError = true }, "250 2.0.0", "temperror none"},
		{"no policy", "eve@none.example", from("none.example", "\r\nhi\r\n"), nil, "250 2.0.0", "none none"},
		{"two authors", "ann@good.example", from("good.example", from("victim.example", "\r\nhi\r\n")), nil, "550 5.7.1", ""},
		{"no author", "ann@good.example", "Subject: hi\r\n\r\nhi\r\n", nil, "550 5.7.1", ""},
		{"null sender, HELO passes", "", from("helo.example", "\r\nreport\r\n"), nil, "250 2.0.0", "pass none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next := &sink{}
			r := newReceiver(next)
			checked := 0
			r.Trace = &ReceiverTrace{Checked: func(context.Context, *mailspine.Envelope, *auth.Results) { checked++ }}
			if tt.edit != nil {
				tt.edit(r.Checker)
			}
			reply := send(t, serve(t, r), tt.from, "bob@here.example", tt.msg)
			if !strings.HasPrefix(reply, tt.reply+" ") {
				t.Errorf("reply %q, want %s", reply, tt.reply)
			}
			got := next.all()
			if (len(got) == 1) != (tt.want != "") {
				t.Fatalf("delivered %d times", len(got))
			}
			if tt.want != "" {
				if v := got[0].env.Verdict; v.DMARC+" "+v.Disposition != tt.want {
					t.Errorf("verdict %+v, want %s", v, tt.want)
				}
			}
			if checked != 1 {
				t.Errorf("Trace.Checked was called %d times", checked)
			}
		})
	}
}

// The Receiver relays for nobody.
func TestReceiverRefusesRelay(t *testing.T) {
	next := &sink{}
	relay := &Mux{Routes: map[string]mailspine.Deliverer{"here.example": Checked{To: next, Recipients: here}}, Default: next}
	for name, rc := range map[string]mailspine.RecipientChecker{"nil": nil, "Mux with a default": relay, "zero Mux": &Mux{}, "Checked without a checker": Checked{To: next}} {
		r := newReceiver(next)
		r.Recipients = rc
		addr := serve(t, r)
		for _, to := range []string{"victim@elsewhere.example", "victim%elsewhere.example@third.example", `"victim@elsewhere.example"@third.example`, "victim@[192.0.2.1]"} {
			if reply := send(t, addr, "ann@good.example", to, ""); !strings.HasPrefix(reply, "550 5.7.1 ") {
				t.Errorf("%s: RCPT TO:<%s> was answered %q", name, to, reply)
			}
		}
	}
	if reply := send(t, serve(t, newReceiver(next)), "ann@good.example", "nobody@here.example", ""); !strings.HasPrefix(reply, "550 5.1.1 ") {
		t.Errorf("an unknown user was answered %q", reply)
	}
	if len(next.all()) > 0 {
		t.Error("something was delivered")
	}
}

// Commands that a Receiver refuses, and those that it does not offer.
func TestReceiverCommands(t *testing.T) {
	next := &sink{}
	r := newReceiver(next)
	addr := serve(t, r)
	got := talk(t, addr, "EHLO helo.example", "AUTH PLAIN AGFubgBwYXNz", "MAIL FROM:<> AUTH=<>",
		"MAIL FROM:<>", "RCPT TO:<postmaster>", "RCPT TO:<bob@here.example>", "DATA", from("helo.example", "\r\nreport\r\n.\r\n"), "QUIT")
	want := []string{"220 ", "250 ", "5", "5", "250 ", "250 ", "452 4.5.3 ", "354 ", "250 2.0.0 ", "221 "}
	for i, w := range want {
		if i >= len(got) || !strings.HasPrefix(got[i], w) {
			t.Fatalf("reply %d of %q does not begin with %q", i, got, w)
		}
	}
	if d := next.all(); len(d) != 1 || d[0].env.Recipients[0].Address.String() != "postmaster@mx1.here.example" || len(d[0].env.Recipients) != 1 {
		t.Errorf("delivered %v", d)
	}
}

// Mixed results at the door: the client is told 250 once, and nothing is lost or doubled.
func TestReceiverMixedResults(t *testing.T) {
	fail := func(env *mailspine.Envelope) error {
		errs := make(mailspine.RecipientErrors, len(env.Recipients))
		for i, rc := range env.Recipients {
			switch rc.Address.Local {
			case "full":
				errs[i] = mailspine.Errorf(452, "4.2.2", "Mailbox full")
			case "gone":
				errs[i] = mailspine.Errorf(550, "5.1.1", "No such user")
			}
		}
		return errs.Err()
	}
	for _, tt := range []struct {
		name   string
		to     []string
		reply  string
		undone string // who comes to Undelivered
	}{
		{"all taken", []string{"a", "b"}, "250 2.0.0", ""},
		{"some taken", []string{"a", "full", "b", "gone"}, "250 2.0.0", "full gone"},
		{"none taken: the temporary one decides", []string{"gone", "full"}, "452 4.2.2", ""},
		{"none taken for good", []string{"gone"}, "550 5.1.1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next, undelivered := &sink{fail: fail}, &sink{}
			r := newReceiver(next)
			r.Undelivered = undelivered
			cmds := []string{"EHLO helo.example", "MAIL FROM:<ann@good.example>"}
			for _, to := range tt.to {
				cmds = append(cmds, "RCPT TO:<"+to+"@here.example>")
			}
			replies := talk(t, serve(t, r), append(cmds, "DATA", from("good.example", "\r\nhi\r\n.\r\n"))...)
			if got := replies[len(replies)-1]; !strings.HasPrefix(got, tt.reply+" ") {
				t.Errorf("reply %q, want %s", got, tt.reply)
			}
			if n := len(next.all()); n != 1 {
				t.Errorf("Next was called %d times", n)
			}
			var undone []string
			for _, d := range undelivered.all() {
				for i, rc := range d.env.Recipients {
					undone = append(undone, rc.Address.Local)
					if d.failures[i] == nil {
						t.Errorf("no reason for %s", rc.Address.Local)
					}
				}
			}
			if got := strings.Join(undone, " "); got != tt.undone {
				t.Errorf("Undelivered got %q, want %q", got, tt.undone)
			}
		})
	}
}

// Without a Checker nothing is looked up, but results that claim to be ours still go.
func TestReceiverUnchecked(t *testing.T) {
	next := &sink{}
	r := newReceiver(next)
	r.Checker = nil
	reply := send(t, serve(t, r), "eve@none.example", "bob@here.example", "Received-SPF: pass\r\nAuthentication-Results: mx1.here.example; dmarc=pass\r\n"+from("victim.example", "\r\nhi\r\n"))
	if !strings.HasPrefix(reply, "250 ") {
		t.Fatal(reply)
	}
	got := next.all()[0]
	if rest, ok := strings.CutPrefix(got.msg, "Received: from"); !ok || !strings.HasSuffix(rest, "+0000\r\n"+from("victim.example", "\r\nhi\r\n")) {
		t.Errorf("%q", got.msg)
	}
	if got.env.Verdict != nil {
		t.Errorf("verdict %+v", got.env.Verdict)
	}
}

func TestReceiverValidates(t *testing.T) {
	for name, r := range map[string]*Receiver{
		"Receiver.Next is nil":        {Recipients: here},
		"auth: Checker.ID is empty":   {Next: &sink{}, Checker: &auth.Checker{Resolver: receiverZone()}},
		"auth: Checker.Resolver is n": {Next: &sink{}, Checker: &auth.Checker{ID: "x"}},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Serve(l); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Serve: %v, want %q", err, name)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error("Serve left the listener open")
		}
	}
}

// From a Relay to a Receiver over real sockets: MX lookup, STARTTLS with a verified
// certificate, DKIM that passes, the message octet for octet.
func TestRelayToReceiver(t *testing.T) {
	key, err := dkim.GenerateEd25519()
	if err != nil {
		t.Fatal(err)
	}
	sign := dkim.SigningKey{Domain: "signed.example", Selector: "s1", Key: ed25519.PrivateKey(key)}
	zone := receiverZone()
	zone["s1._domainkey.signed.example"] = []dnstest.Record{dnstest.TXT(sign.Record().String())}
	zone["_dmarc.signed.example"] = []dnstest.Record{dnstest.TXT("v=DMARC1; p=reject")}
	zone["signed.example"] = []dnstest.Record{dnstest.TXT("v=spf1 -all")}
	next := &sink{}
	authority := newCA(t)
	r := newReceiver(next)
	r.Checker.Resolver = zone
	r.TLSConfig = authority.server(t, "mx1.here.example")
	addrPort := netip.MustParseAddrPort(serve(t, r))

	body := from("signed.example", "Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n\r\n.\r\n..\r\nbyte \xff exact\r\n"+strings.Repeat("many lines\r\n", 20000)+"no end")
	relay := &Relay{
		Resolver: zone, Hostname: "out.signed.example", Port: addrPort.Port(), AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		TLSConfig: &tls.Config{RootCAs: authority.pool}, TLSPolicy: TLSRules{"here.example": {Level: TLSVerify}}, Logger: r.Logger,
	}
	signer := &auth.Signer{Next: relay, Keys: keys{sign}, Required: true, Logger: r.Logger}
	env := envelope(t, "ann@signed.example", "bob@here.example", "nobody@here.example")
	a := &attempt{}
	err = signer.Deliver(mailspine.WithAttempt(t.Context(), a), env, mailspine.StringContent(body))
	wantStatus(t, "bob", mailspine.ErrorAt(err, 0), "")
	wantStatus(t, "nobody", mailspine.ErrorAt(err, 1), "550 5.1.1")
	got := next.all()
	if len(got) != 1 || !strings.HasSuffix(got[0].msg, body+"\r\n") {
		t.Fatalf("delivered %d messages, or changed", len(got))
	}
	if v := got[0].env.Verdict; v.DKIM != "pass" || v.DMARC != "pass" || v.SPF != "fail" {
		t.Errorf("verdict %+v\n%.2000s", v, got[0].msg)
	}
	if !strings.Contains(got[0].msg, "with ESMTPS\r\n\t(TLS 1.3 ") {
		t.Errorf("no trace of TLS in %.1000q", got[0].msg)
	}
	if rc := a.receipts[0]; rc.TLS.Peer != "mx1.here.example" || rc.RemoteMTA != "mx1.here.example" || !strings.HasPrefix(rc.Reply, "250 2.0.0 ") || rc.Source == "" {
		t.Errorf("receipt %+v", rc)
	}
}

type keys []dkim.SigningKey

func (k keys) SigningKeys(context.Context, *mailspine.Envelope, string) ([]dkim.SigningKey, error) {
	return k, nil
}

// The Relay against another implementation: go-smtp's server.
func TestRelayToGoSMTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	be := &goSMTPBackend{}
	srv := smtp.NewServer(be)
	srv.Domain, srv.EnableDSN, srv.EnableSMTPUTF8, srv.MaxRecipients = "mx1.here.example", true, true, 2
	srv.TLSConfig = newCA(t).server(t, "mx1.here.example")
	srv.ErrorLog = discard{}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()

	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	relay := &Relay{Resolver: receiverZone(), Hostname: "out.sender.example", Port: port,
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Logger: slog.New(slog.DiscardHandler)}
	env := envelope(t, "ann@sender.example", "a@here.example", "refused@here.example", "b@here.example", "jürgen@here.example")
	env.EnvID, env.Ret = "id 1", mailspine.RetFull
	env.Recipients[0].Notify = mailspine.NotifyFailure
	msg := "Subject: hi\r\n\r\n.\r\nlast\r\n"
	err = relay.Deliver(t.Context(), env, mailspine.StringContent(msg))
	for i, w := range []string{"", "550 5.1.1", "", ""} {
		wantStatus(t, env.Recipients[i].Address.String(), mailspine.ErrorAt(err, i), w)
	}
	// The server says LIMITS RCPTMAX=2.
	want := []string{"ann@sender.example id 1 FULL -> a@here.example[FAILURE]: " + msg, "ann@sender.example id 1 FULL -> b@here.example[] jürgen@here.example[]: " + msg}
	if !slices.Equal(be.got, want) {
		t.Errorf("the server got\n%q\nwant\n%q", be.got, want)
	}
}

type discard struct{}

func (discard) Printf(string, ...any) {}
func (discard) Println(...any)        {}

type goSMTPBackend struct{ got []string }

func (b *goSMTPBackend) NewSession(*smtp.Conn) (smtp.Session, error) {
	return &goSMTPSession{b: b}, nil
}

type goSMTPSession struct {
	b        *goSMTPBackend
	from, to string
}

func (s *goSMTPSession) Mail(from string, o *smtp.MailOptions) error {
	s.from = fmt.Sprintf("%s %s %s", from, o.EnvelopeID, o.Return)
	return nil
}

func (s *goSMTPSession) Rcpt(to string, o *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "refused") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no"}
	}
	s.to += fmt.Sprintf(" %s%v", to, o.Notify)
	return nil
}

func (s *goSMTPSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	s.b.got = append(s.b.got, s.from+" ->"+s.to+": "+string(b))
	return err
}

func (s *goSMTPSession) Reset()        { s.from, s.to = "", "" }
func (s *goSMTPSession) Logout() error { return nil }

// A queue is idempotent by ID. One that took the message for some recipients must
// still take it for those that Undelivered hands over.
func TestReceiverMixedIntoOneQueue(t *testing.T) {
	store := memqueue.New(nil)
	q := &queue.Queue{Store: store, Hostname: "mx1.here.example", Logger: slog.New(slog.DiscardHandler)}
	full := mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error {
		return mailspine.Errorf(452, "4.2.2", "Mailbox full")
	})
	r := newReceiver(&Mux{Routes: map[string]mailspine.Deliverer{"here.example": full}, Default: q})
	r.Undelivered = q
	replies := talk(t, serve(t, r), "EHLO helo.example", "MAIL FROM:<ann@good.example>", "RCPT TO:<bob@here.example>",
		"RCPT TO:<postmaster@mx1.here.example>", "DATA", from("good.example", "\r\nhi\r\n.\r\n"))
	if got := replies[len(replies)-1]; !strings.HasPrefix(got, "250 2.0.0 ") {
		t.Fatalf("reply %q", got)
	}
	if st, err := store.Stats(t.Context()); err != nil || st.Messages != 2 {
		t.Errorf("the queue has %d messages, %v: one of two recipients is lost", st.Messages, err)
	}
}

// A report to many recipients goes to the first, however many follow: the client
// comes again for the others.
func TestReceiverReportToMany(t *testing.T) {
	next := &sink{}
	cmds := []string{"EHLO helo.example", "MAIL FROM:<>"}
	for range 30 {
		cmds = append(cmds, "RCPT TO:<bob@here.example>")
	}
	replies := talk(t, serve(t, newReceiver(next)), append(cmds, "DATA", from("helo.example", "\r\nreport\r\n.\r\n"))...)
	if got := replies[len(replies)-1]; !strings.HasPrefix(got, "250 2.0.0 ") || len(next.all()) != 1 {
		t.Errorf("%q", replies[len(replies)-3:])
	}
}

// A line that is no field ends the header for us, but not for every reader. What stands
// below it must not pass for header: not a forged result, and not as a fold of our Received either.
func TestReceiverHeaderEndsInJunk(t *testing.T) {
	const forged = "Authentication-Results: mx1.here.example; dmarc=pass\r\n"
	for name, msg := range map[string]string{
		"fold first":  " fold\r\n" + forged + from("good.example", "\r\nhi\r\n"),
		"junk first":  "junk\r\n" + forged + from("good.example", "\r\nhi\r\n"),
		"junk inside": "Subject: x\r\njunk\r\n" + forged + from("good.example", "\r\nhi\r\n"),
	} {
		for _, checker := range []*auth.Checker{nil, {Resolver: receiverZone(), ID: "mx1.here.example", Monitor: true, Logger: slog.New(slog.DiscardHandler)}} {
			next := &sink{}
			r := newReceiver(next)
			r.Checker = checker
			if reply := send(t, serve(t, r), "ann@good.example", "bob@here.example", msg); !strings.HasPrefix(reply, "250 ") {
				t.Errorf("%s: %s", name, reply)
				continue
			}
			head, body, _ := strings.Cut(next.all()[0].msg, "\r\n\r\n")
			if strings.Contains(head, "dmarc=pass") && checker == nil || strings.Contains(head, "junk") || strings.Contains(head, "fold\r\n") || !strings.Contains(body, forged) {
				t.Errorf("%s: the header is\n%s", name, head)
			}
			if want, _, _ := strings.Cut(msg, forged); !strings.HasSuffix(next.all()[0].msg, strings.TrimPrefix(want, "Subject: x\r\n")+forged+from("good.example", "\r\nhi\r\n")) {
				t.Errorf("%s: the rest has changed:\n%q", name, next.all()[0].msg)
			}
		}
	}
}
