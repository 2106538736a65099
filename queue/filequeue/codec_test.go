package filequeue

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

// fill sets every field below v to something that is not zero.
func fill(t *testing.T, v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Date(2030, 1, 2, 3, 4, 5, *n, time.UTC)
		return
	case *netip.AddrPort:
		*x = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(*n))
		return
	case *error:
		*x = errors.New(fmt.Sprint("error ", *n))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d \xff\x00", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(-int64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n%200 + 1))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), n)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"a": "b", "": "\xff", "c": ""}).Convert(v.Type()))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	default:
		t.Fatalf("a field of kind %v: teach the codec and this test", v.Kind())
	}
}

// A field that is added to Envelope or Result, and that the codec does not
// know, would be lost in the queue: this test finds it.
func TestCodecComplete(t *testing.T) {
	n := 0
	var env mailspine.Envelope
	fill(t, reflect.ValueOf(&env).Elem(), &n)
	var e encoder
	e.envelope(&env)
	d := decoder{b: e.b}
	if got := d.envelope(); d.err != nil || !reflect.DeepEqual(got, &env) {
		t.Errorf("an envelope\n%+v\nbecame\n%+v, %v", &env, got, d.err)
	}
	var res queue.Result
	fill(t, reflect.ValueOf(&res).Elem(), &n)
	e = encoder{}
	e.result(res)
	d = decoder{b: e.b}
	if got := d.result(); d.err != nil || len(d.b) != 0 || !reflect.DeepEqual(got, res) {
		t.Errorf("a result\n%+v\nbecame\n%+v, %v", res, got, d.err)
	}
	e = encoder{}
	e.envelope(&mailspine.Envelope{})
	if len(e.b) != 0 {
		t.Errorf("an empty envelope takes %d octets", len(e.b))
	}
	zone := time.Date(2030, 1, 2, 3, 4, 5, 6, time.FixedZone("odd", 1))
	e = encoder{}
	e.time(zone)
	d = decoder{b: e.b}
	if got := d.time(); !got.Equal(zone) {
		t.Errorf("a time with an odd zone became %v", got)
	}
}

// Journals from before a Verdict had BIMI are read as they were written.
func TestVerdictWithoutBIMI(t *testing.T) {
	want := &mailspine.Verdict{SPF: "pass", DMARC: "fail", DKIMDomains: []string{"example.org"}}
	var v encoder
	for _, s := range []string{"pass", "", "fail", "", "", "", "", ""} {
		v.str(s)
	}
	v.uint(1)
	v.str("example.org")
	var e encoder
	e.uint(tagVerdict)
	e.str(string(v.b))
	d := decoder{b: e.b}
	if got := d.envelope().Verdict; d.err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read as %+v (%v)", got, d.err)
	}
}

func record(t testing.TB) []byte {
	env := newMessage("full-s", "x: ann bob").Envelope
	env.Meta = map[string]string{"k": "v"}
	env.Verdict = &mailspine.Verdict{SPF: "pass", DKIMDomains: []string{"example.org"}}
	env.HoldUntil = time.Unix(1e9, 0).UTC()
	last := queue.Result{Status: mailspine.Errorf(450, "4.2.1", "Busy").WithCause(errors.New("cause")), Warned: true}
	last.Receipt.RemoteMTA = "mx"
	var e encoder
	e.open(openEntry{1, 2, 3, 4})
	e.put(&putEntry{env: env, put: 5, stamp: 6, body: bodyRef{headLen: 3}, priority: 4, items: []putItem{{id: 7, route: "x", weight: 3, rcpts: []recipient{{index: 0}, {1, last}}}}})
	e.settle(&settleEntry{item: 7, epoch: 8, stamp: 9, delay: 10, attempts: 11, rcpts: []recipient{{1, last}}})
	e.abandon(&abandonEntry{7, 8, 9, 10, "why"})
	for _, c := range []controlEntry{{op: queue.OpHold, text: "why"}, {op: queue.OpReroute, text: "y"}, {op: queue.OpRelease}, {op: queue.OpFlush}} {
		c.stamp, c.items = 9, []controlItem{{id: 7}, {id: 8}}
		e.control(&c)
	}
	e.settle(&settleEntry{item: 7, epoch: 9, stamp: 9, attempts: 12, done: "full-s"})
	e.control(&controlEntry{op: queue.OpDelete, stamp: 9, items: []controlItem{{7, "full-s"}}})
	e.graves([]grave{{"x", 1}, {"y", 2}})
	return e.b
}

// Whatever is in a record with a right checksum, decoding it ends, without a
// panic, and takes memory in proportion.
func FuzzEntries(f *testing.F) {
	f.Add(record(f))
	f.Add([]byte{kindPut, 3, 1, 2, 3})
	f.Add([]byte{kindSettle, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		eachEntry(b, func(at int, kind byte, d *decoder) error {
			switch kind {
			case kindOpen:
				d.open()
			case kindPut:
				light := decoder{b: d.b}
				head := light.putHead()
				p, err := d.put()
				if err == nil && (light.err != nil || head.env.ID != p.env.ID || len(head.items) != len(p.items)) {
					t.Fatalf("putHead has %+v, put %+v, %v", head, p, light.err)
				}
				if err == nil {
					for i := range p.items {
						if head.items[i].open != len(p.items[i].rcpts) {
							t.Fatalf("putHead has %d recipients, put %d", head.items[i].open, len(p.items[i].rcpts))
						}
					}
					var e encoder
					e.put(p)
					again, err := entryAt(e.b, 0, kindPut)
					if err != nil {
						t.Fatal(err)
					}
					q, err := again.put()
					if err != nil || q.env.ID != p.env.ID || len(q.items) != len(p.items) {
						t.Fatalf("%+v encoded is %+v, %v", p, q, err)
					}
				}
			case kindSettle:
				light := decoder{b: d.b}
				if h, s := light.settleHead(), d.settle(); (light.err == nil) != (d.err == nil) || d.err == nil && (h.open != len(s.rcpts) || h.done != s.done) {
					t.Fatalf("settleHead has %+v, settle %+v, %v, %v", h, s, light.err, d.err)
				}
			case kindAbandon:
				d.abandon()
			case kindGraves:
				d.graves()
			case kindControl:
				if c := d.control(); d.err == nil {
					var e encoder
					e.control(c)
					again := must(entryAt(e.b, 0, kindControl))
					if got := again.control(); again.err != nil || !reflect.DeepEqual(got, c) {
						t.Fatalf("%+v encoded is %+v, %v", c, got, again.err)
					}
				}
			default:
				return errDecode
			}
			return nil
		})
	})
}

// A store opens any journal whose checksums are right, or says why not; and what it opened it can
// list, lease and settle, or says why not.
func FuzzReplay(f *testing.F) {
	f.Add(record(f), []byte("abc"))
	f.Add(record(f)[:40], []byte("abc"))
	var live encoder // the item of the record before is alive no more; this one is
	live.put(&putEntry{env: newMessage("live-s", "x: ann").Envelope, body: bodyRef{headLen: 3}, items: []putItem{{id: 9, route: "x", rcpts: []recipient{{index: 0}}}}})
	for op := queue.OpHold; op <= queue.OpReroute; op++ {
		e := encoder{b: live.b[:len(live.b):len(live.b)]}
		e.control(&controlEntry{op: op, stamp: 5, text: "text", items: []controlItem{{9, "live-s"}}})
		f.Add(e.b, []byte("abc"))
	}
	f.Fuzz(func(t *testing.T, meta, body []byte) {
		d := new(durabletest.Disk)
		if err := durable.MkdirAll(d, "spool", 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := durable.CreateLog(d, "spool/"+segmentName(1), durable.LogOptions{Magic: magic, Version: formatVersion},
			durable.Record{Meta: record(t), Body: []byte("abc")}, durable.Record{Meta: meta, Body: body})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		o := &Options{fs: d, Logger: quiet()}
		s, err := Open("spool", o)
		if err != nil {
			return
		}
		defer s.Close()
		before, err := s.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		for it, err := range s.List(ctx, queue.Filter{}) {
			if err != nil {
				break
			}
			n++
			if r, err := s.Open(ctx, it.Message); err == nil {
				r.Close()
			}
		}
		if n > before.Items {
			t.Fatalf("%d items are listed of %d", n, before.Items)
		}
		leases, _ := s.Lease(ctx, queue.LeaseRequest{Max: 10})
		for _, x := range leases {
			if errs, err := s.Settle(ctx, queue.Settlement{Token: x.Token, Results: make([]queue.Result, len(x.Recipients))}); err != nil || errs[0] != nil && !errors.Is(errs[0], errDecode) && !errors.Is(errs[0], errResults) {
				t.Fatal(errs, err)
			}
		}
		if st, err := s.Stats(ctx); err != nil || st.Items != before.Items {
			t.Fatalf("%+v became %+v, %v", before, st, err)
		}
	})
}
