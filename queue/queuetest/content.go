package queuetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// pattern makes n octets that hold all 256 values and repeat late.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i + i>>8*7 + i>>16*13)
	}
	return b
}

// streamed hides what a content is made of, and gives its octets in odd pieces.
type streamed struct{ b []byte }

func (s streamed) Size() int64 { return int64(len(s.b)) }

func (s streamed) Open(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(&pieces{r: bytes.NewReader(s.b)}), nil
}

type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	p.n = p.n*3%4093 + 1
	return p.r.Read(b[:min(len(b), p.n)])
}

// fullEnvelope has no field that is zero, down to the smallest. A test of this
// package sees to that.
func fullEnvelope() *mailspine.Envelope {
	when := time.Date(2031, 2, 3, 4, 5, 6, 789000000, time.UTC)
	return &mailspine.Envelope{
		ID:   "Full-1_x",
		From: mailspine.Address{Local: `jöe "quoted" smith`, Domain: "bücher.example"},
		Recipients: []mailspine.Recipient{
			{Address: address("ann@example.net"), Notify: mailspine.NotifySuccess | mailspine.NotifyDelay, ORcpt: "rfc822;orig+1@example.com"},
			{Address: mailspine.Address{Local: "bob", Domain: "[IPv6:2001:db8::1]"}, Notify: mailspine.NotifyNever, ORcpt: "utf-8;büro@example.com"},
		},
		Ret: mailspine.RetHdrs, EnvID: "QQ314159 =+", Body: mailspine.BodyBinary, UTF8: true, RequireTLS: true,
		DeliverBy: mailspine.DeliverBy{Time: when, Return: true, Trace: true},
		Priority:  -9, HoldUntil: when.Add(time.Hour),
		Origin: mailspine.Origin{
			Addr: netip.MustParseAddrPort("[2001:db8::7]:50001"), Local: netip.MustParseAddrPort("192.0.2.1:587"),
			Helo: "[192.0.2.9]", Proto: "ESMTPSA", Login: "joe", Time: when.Add(-time.Hour),
			TLS: mailspine.TLSInfo{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", Peer: "client.example", ServerID: "mx.example.org"},
		},
		Tenant: "tenant ü", Stream: "bulk", Pool: "pool-7",
		Verdict: &mailspine.Verdict{
			SPF: "pass", DKIM: "fail", DMARC: "none", ARC: "pass", SPFDomain: "example.org", DKIMDomains: []string{"example.org", "example.com"},
			FromDomain: "example.org", Policy: "quarantine", Disposition: "none",
			BIMI: "pass", Indicator: "https://example.org/logo.svg", Evidence: "https://example.org/logo.pem",
		},
		Meta: map[string]string{"campaign": "spring", "": "empty key", "empty value": "", "octets": "\x00\xff\r\n\"<>é\u2028"},
	}
}

var sameEnvelope = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
}

var contentCases = []testCase{
	{"ContentExact", "Open returns the content as it was put, octet for octet, and Size is its length.", func(k *kit) {
		for i, n := range []int{0, 1, 255, 4096, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1<<20 + 77, 3 << 20} {
			id := fmt.Sprintf("m%d", i)
			m := simple(id)
			want := pattern(n)
			if err := k.s.Put(k.ctx, m, streamed{want}); err != nil {
				k.Fatalf("Put of %d octets: %v", n, err)
			}
			if got := k.read(mailspine.MsgID(id)); got != string(want) {
				k.Errorf("%d octets came back as %d others", n, len(got))
			}
			l := k.one(long)
			if l.Size != int64(n) {
				k.Errorf("Lease.Size is %d, want %d", l.Size, n)
			}
			k.finish(l, queue.Delivered)
		}
	}, 0},
	{"ContentSpliced", "Open returns the content as it was put, also when headers were prepended to it, or cut out.", func(k *kit) {
		base := mailspine.BytesContent(append([]byte("Subject: hello\r\nBcc: secret@example.org\r\n\r\n"), pattern(100<<10)...))
		c, err := mailspine.Edit(k.ctx, base, mailspine.HeaderEdit{
			Prepend: []byte("Received: from here\r\n"),
			Drop:    func(f mailspine.HeaderField) bool { return f.Is("Bcc") },
		})
		if err != nil {
			k.Fatal(err)
		}
		c = mailspine.Prepend(c, []byte("DKIM-Signature: v=1\r\n"))
		if err := k.s.Put(k.ctx, simple("m1"), c); err != nil {
			k.Fatalf("Put: %v", err)
		}
		want := "DKIM-Signature: v=1\r\nReceived: from here\r\nSubject: hello\r\n\r\n" + string(pattern(100<<10))
		if got := k.read("m1"); got != want {
			k.Errorf("%d octets came back, want %d: %.80q", len(got), len(want), got)
		}
	}, 0},
	{"ContentSeek", "The reader of Open is an io.Seeker too, and each starts at the first octet.", func(k *kit) {
		want := pattern(200 << 10)
		if err := k.s.Put(k.ctx, simple("m1"), mailspine.BytesContent(want)); err != nil {
			k.Fatal(err)
		}
		r1, err := k.s.Open(k.ctx, "m1")
		if err != nil {
			k.Fatal(err)
		}
		defer r1.Close()
		r2, err := k.s.Open(k.ctx, "m1")
		if err != nil {
			k.Fatal(err)
		}
		defer r2.Close()
		sk, ok := r1.(io.Seeker)
		if !ok {
			k.Fatalf("the reader %T is no io.Seeker", r1)
		}
		for _, off := range []int64{150 << 10, 7, 0} {
			if n, err := sk.Seek(off, io.SeekStart); err != nil || n != off {
				k.Fatalf("Seek(%d): %d, %v", off, n, err)
			}
			b, err := io.ReadAll(r1)
			if err != nil || !bytes.Equal(b, want[off:]) {
				k.Errorf("after Seek(%d): %d octets, %v", off, len(b), err)
			}
		}
		if n, err := sk.Seek(-10, io.SeekEnd); err != nil || n != int64(len(want)-10) {
			k.Errorf("Seek from the end: %d, %v", n, err)
		}
		if b, err := io.ReadAll(r2); err != nil || !bytes.Equal(b, want) {
			k.Errorf("the other reader: %d octets, %v", len(b), err)
		}
	}, 0},
	{"ContentStays", "A reader stays readable until it is closed, even if the message is removed meanwhile.", func(k *kit) {
		for i, n := range []int{1000, 2 << 20} {
			id := fmt.Sprintf("m%d", i)
			want := pattern(n)
			if err := k.s.Put(k.ctx, simple(id), mailspine.BytesContent(want)); err != nil {
				k.Fatal(err)
			}
			r, err := k.s.Open(k.ctx, mailspine.MsgID(id))
			if err != nil {
				k.Fatal(err)
			}
			head := make([]byte, 100)
			if _, err := io.ReadFull(r, head); err != nil {
				k.Fatal(err)
			}
			k.finish(k.one(long), queue.Delivered)
			k.gone(mailspine.MsgID(id))
			for j := range 20 { // others come and go
				k.put(simple(fmt.Sprintf("x%d-%d", i, j)))
				k.finish(k.one(long), queue.Delivered)
			}
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(append(head, rest...), want) {
				k.Errorf("after the removal of %d octets: %d more, %v", n, len(rest), err)
			}
			if err := r.Close(); err != nil {
				k.Errorf("Close of the reader: %v", err)
			}
		}
	}, 0},
	{"ContentUnknown", "Open of an unknown ID is ErrNotFound.", func(k *kit) {
		k.gone("nobody")
		k.gone("")
		k.gone("../../../etc/passwd")
	}, 0},
	{"Envelope", "Stores keep all fields of an Envelope, those of the application among them.", func(k *kit) {
		want := fullEnvelope()
		m := queue.Message{Envelope: want.Clone(), Items: []queue.NewItem{{Route: "r", Recipients: []int{0, 1}}}}
		k.put(m)
		l := k.one(long)
		if d := cmp.Diff(want, l.Envelope, sameEnvelope); d != "" {
			k.Errorf("the envelope changed (-put +leased):\n%s", d)
		}
		k.settle(settlement(l, queue.Open))
		if d := cmp.Diff(want, k.one(long).Envelope, sameEnvelope); d != "" {
			k.Errorf("the envelope changed after a settlement (-put +leased):\n%s", d)
		}
	}, 0},
	{"EnvelopeZero", "An Envelope whose optional fields are zero comes back with zero fields, the null reverse-path too.", func(k *kit) {
		want := simple("m1").Envelope
		want.From = mailspine.Address{}
		k.put(queue.Message{Envelope: want.Clone(), Items: []queue.NewItem{{Route: "r", Recipients: []int{0}}}})
		got := k.one(long).Envelope
		if len(got.Meta) == 0 {
			got.Meta = nil // an empty map is as good as none
		}
		if d := cmp.Diff(want, got, sameEnvelope); d != "" {
			k.Errorf("the envelope changed (-put +leased):\n%s", d)
		}
		if !got.HoldUntil.IsZero() || !got.Origin.Time.IsZero() || !got.DeliverBy.Time.IsZero() {
			k.Error("a zero time came back as another")
		}
	}, 0},
	{"Stage", "A store that is a Stager takes what was staged, with headers prepended or not, and the message outlives its stage.", func(k *kit) {
		st := k.s.(mailspine.Stager)
		for i, n := range []int{0, 100, 64 << 10, 2 << 20} {
			for _, head := range []string{"", "Received: from here\r\n"} {
				id := mailspine.MsgID(fmt.Sprintf("m%d-%d", i, len(head)))
				want := pattern(n)
				stage, err := st.Stage(k.ctx, int64(n))
				if err != nil {
					k.Fatalf("Stage: %v", err)
				}
				if _, err := io.Copy(stage, &pieces{r: bytes.NewReader(want)}); err != nil {
					k.Fatalf("writing to the stage: %v", err)
				}
				c, err := stage.Content()
				if err != nil {
					k.Fatalf("Content: %v", err)
				}
				if err := k.s.Put(k.ctx, simple(string(id)), mailspine.Prepend(c, []byte(head))); err != nil {
					k.Fatalf("Put: %v", err)
				}
				if err := stage.Close(); err != nil {
					k.Errorf("Close of the stage: %v", err)
				}
				if got := k.read(id); got != head+string(want) {
					k.Errorf("%d staged octets came back as %d others", n, len(got))
				}
				k.finish(k.one(long), queue.Delivered)
			}
		}
		// One that nobody adopts leaves nothing, and does no harm.
		stage, err := st.Stage(k.ctx, 0)
		if err != nil {
			k.Fatalf("Stage: %v", err)
		}
		fmt.Fprint(stage, "Subject: hal")
		if err := stage.Close(); err != nil {
			k.Errorf("Close of the stage: %v", err)
		}
		k.none("nothing was put")
	}, staging},
	{"StageTwice", "What was staged once can be put under several IDs.", func(k *kit) {
		st := k.s.(mailspine.Stager)
		stage, err := st.Stage(k.ctx, 0)
		if err != nil {
			k.Fatalf("Stage: %v", err)
		}
		want := pattern(300 << 10)
		if _, err := stage.Write(want); err != nil {
			k.Fatal(err)
		}
		c, err := stage.Content()
		if err != nil {
			k.Fatal(err)
		}
		for _, id := range []string{"m1", "m2"} {
			if err := k.s.Put(k.ctx, simple(id), c); err != nil {
				k.Fatalf("Put(%s): %v", id, err)
			}
		}
		stage.Close()
		for range 2 {
			l := k.lease(1, long)
			if len(l) != 1 {
				k.Fatal("nothing is due")
			}
			if got := k.read(l[0].Envelope.ID); got != string(want) {
				k.Errorf("%s: %d octets, want %d", l[0].Envelope.ID, len(got), len(want))
			}
			k.finish(l[0], queue.Delivered)
		}
	}, staging},
}
