package queue

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/report"
)

// onlyOpen is a store with one message.
type onlyOpen struct {
	Store
	msg string
}

func (s onlyOpen) Open(context.Context, mailspine.MsgID) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(s.msg)), nil
}

// Whatever strangers put into replies, names, parameters and messages, the report is one that our own parser reads
// to the same recipients, with our own header, in lines that SMTP can carry.
func FuzzNotification(f *testing.F) {
	f.Add("550 5.1.1 no\r\nBcc: eve@example.net", "mx.example.net", "client", "rfc822;joe@example.org", "id", letterHead, uint16(0))
	f.Add("452 \x00\xff\xfe full", "mx\r\nTo: x", "\xc3\xa4", "utf-8;ä@b", "QQ+=\\x{0D}", "Subject: ä\r\n\r\n--report_\r\n", uint16(1))
	f.Add(strings.Repeat("x", 1200), strings.Repeat("m", 1100), strings.Repeat("h ", 500), ";", "", strings.Repeat("y", 3000), uint16(2))
	f.Add("", "", "", "rfc822;", " ", "", uint16(7))
	f.Add("550 5.1.1 no", "mx", "h", "", "", "\r\n", uint16(16))
	f.Add("550 5.1.1 nö", "mx", "h", "utf-8;ä@b", "", "Subject: ä\r\n\r\nä\r\n", uint16(51))
	f.Add("250 ok", "mx", "", "a;b;c", "x", "From: a\r\n b\r\n\r\nbody", uint16(12))
	f.Fuzz(func(t *testing.T, reply, mta, helo, orcpt, envid, msg string, bits uint16) {
		env := &mailspine.Envelope{
			ID: "m1", From: mailspine.Address{Local: "sender", Domain: "example.org"}, EnvID: envid,
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ann", Domain: "example.net"}, ORcpt: orcpt, Notify: mailspine.NotifySuccess | mailspine.NotifyFailure | mailspine.NotifyDelay}},
			Origin:     mailspine.Origin{Helo: helo}, UTF8: bits&1 != 0, Ret: mailspine.RetHdrs,
		}
		if bits&2 != 0 {
			env.Ret = mailspine.RetFull
		}
		if bits&16 != 0 {
			env.Recipients[0].Address.Local = "änne"
		}
		if bits&32 != 0 {
			env.From = mailspine.Address{}
		}
		if env.Validate() != nil {
			return
		}
		q := &Queue{Store: onlyOpen{msg: msg}, Hostname: "mx.example.org", Logger: slog.New(slog.DiscardHandler), Postmaster: mailspine.Address{Local: "postmaster", Domain: "example.org"}}
		d := newDelivery(q, Lease{Envelope: env, Recipients: make([]RecipientState, 1), Size: int64(len(msg)), Age: time.Hour}, time.Now())
		d.Record(0, mailspine.Receipt{RemoteMTA: mta, Reply: reply})
		v := verdict{result: Result{Receipt: d.finish()[0]}}
		want := report.Failed
		switch {
		case bits&4 != 0 && !env.From.IsZero():
			v.result.State = Delivered
			want = report.Relayed
			if mta == "" {
				want = report.Delivered
			}
		case bits&8 != 0 && !env.From.IsZero():
			v.result.State, v.warn, want = Open, true, report.Delayed
			v.result.Status = &mailspine.Error{Code: 451, Message: line(reply, maxText)}
		default:
			v.result.State = Failed
			v.result.Status = &mailspine.Error{Code: 550, Message: line(reply, maxText)}
		}
		n := q.notification(context.Background(), d, []verdict{v}, time.Minute)
		if n == nil {
			t.Fatal("nothing is told")
		}
		if err := (Message{Envelope: n.env, Items: []NewItem{{Recipients: []int{0}}}}).Validate(mailspine.BytesContent(n.content)); err != nil {
			t.Fatalf("the report is refused: %v", err)
		}
		for l := range bytes.SplitSeq(n.content, []byte("\r\n")) {
			if len(l) > 998 || bytes.ContainsAny(l, "\r\n\x00") {
				t.Fatalf("a line that SMTP cannot carry: %q", l)
			}
		}
		if !n.env.UTF8 && n.env.Body == mailspine.Body7Bit && !isASCII(n.content) {
			t.Fatalf("declared as plain ASCII:\n%s", n.content)
		}
		h, err := mailspine.ParseHeader(bytes.NewReader(n.content), 0)
		if err != nil {
			t.Fatalf("the header: %v\n%s", err, n.content)
		}
		if got := len(h.Values("To")) + len(h.Values("From")) + len(h.Values("Subject")) + len(h.Values("Message-ID")); got != 4 || len(h.Values("Bcc")) != 0 {
			t.Fatalf("the header has other fields:\n%s", n.content)
		}
		r, err := report.Parse(bytes.NewReader(n.content))
		if err != nil {
			t.Fatalf("our parser: %v\n%s", err, n.content)
		}
		if len(r.Delivery.Recipients) != 1 || r.Delivery.Recipients[0].Action != want || r.Delivery.Recipients[0].Final != report.ForAddress(env.Recipients[0].Address) {
			t.Fatalf("our parser finds %+v, want %s for %s\n%s", r.Delivery.Recipients, want, env.Recipients[0].Address, n.content)
		}
	})
}

const letterHead = "From: sender@example.org\r\nSubject: A letter\r\n\r\nDear reader,\r\n"
