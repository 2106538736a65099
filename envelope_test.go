package mailspine

import (
	"context"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func full() *Envelope {
	return &Envelope{
		ID: NewMsgID(), From: Address{"joe", "example.org"},
		Recipients: []Recipient{
			{Address: Address{"ann", "example.net"}, Notify: NotifyFailure | NotifyDelay, ORcpt: "rfc822;ann@example.com"},
			{Address: Address{"bob", "example.net"}},
		},
		Ret: RetHdrs, EnvID: "QQ314159", Body: Body8Bit, UTF8: true, RequireTLS: true,
		DeliverBy: DeliverBy{Time: time.Unix(1700000000, 0).UTC(), Return: true}, Priority: 3, HoldUntil: time.Unix(1700000001, 0).UTC(),
		Origin: Origin{Addr: netip.MustParseAddrPort("192.0.2.1:1234"), Helo: "mua", Proto: "ESMTPSA", Login: "joe",
			TLS: TLSInfo{Version: "TLS 1.3"}, Time: time.Unix(1700000002, 0).UTC()},
		Tenant: "t", Stream: "s", Pool: "p",
		Verdict: &Verdict{SPF: "pass", DKIMDomains: []string{"example.org"}},
		Meta:    map[string]string{"k": "v"},
	}
}

func TestEnvelopeClone(t *testing.T) {
	e := full()
	c := e.Clone()
	if !reflect.DeepEqual(e, c) {
		t.Fatal("a clone differs")
	}
	c.Recipients[0].Address.Local, c.Meta["k"], c.Verdict.DKIMDomains[0], c.Verdict.SPF = "x", "x", "x", "x"
	if !reflect.DeepEqual(e.Recipients, full().Recipients) || e.Meta["k"] != "v" || e.Verdict.DKIMDomains[0] != "example.org" || e.Verdict.SPF != "pass" {
		t.Error("a clone shares memory with its original")
	}
	// Every field that holds memory is cloned: a new one fails here until Clone
	// knows it.
	typ := reflect.TypeFor[Envelope]()
	for i := range typ.NumField() {
		switch f := typ.Field(i); f.Type.Kind() {
		case reflect.Slice, reflect.Map, reflect.Pointer, reflect.Interface, reflect.Func, reflect.Chan:
			if !slices.Contains([]string{"Recipients", "Meta", "Verdict"}, f.Name) {
				t.Errorf("Clone does not know field %s", f.Name)
			}
		}
	}
}

func TestEnvelopeJSON(t *testing.T) {
	e := full()
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var d Envelope
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(e, &d) {
		t.Errorf("through JSON:\n%+v\n%+v", e, d)
	}
}

func TestEnvelopeValidate(t *testing.T) {
	if err := full().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Envelope){
		"ID":                   func(e *Envelope) { e.ID = "../../etc/passwd" },
		"From":                 func(e *Envelope) { e.From = Address{"a\r\nb", "x"} },
		"Recipients:":          func(e *Envelope) { e.Recipients = nil },
		"Recipients[1]:":       func(e *Envelope) { e.Recipients[1].Address = Address{} },
		"Recipients[0]:":       func(e *Envelope) { e.Recipients[0].Address.Domain = "a b" },
		"Recipients[0].Notify": func(e *Envelope) { e.Recipients[0].Notify = NotifyNever | NotifyDelay },
		"Recipients[0].ORcpt":  func(e *Envelope) { e.Recipients[0].ORcpt = "a\nb" },
		"Ret":                  func(e *Envelope) { e.Ret = 9 },
		"EnvID":                func(e *Envelope) { e.EnvID = strings.Repeat("a", 101) },
		"Body":                 func(e *Envelope) { e.Body = 9 },
		"Priority":             func(e *Envelope) { e.Priority = -10 },
		"Meta":                 func(e *Envelope) { e.Meta["big"] = strings.Repeat("a", MaxMeta) },
	} {
		e := full()
		spoil(e)
		if err := e.Validate(); err == nil || !strings.Contains(err.Error(), "Envelope."+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestSubsetAndAttempt(t *testing.T) {
	e := full()
	sub := e.Subset([]int{1})
	if len(sub.Recipients) != 1 || sub.Recipients[0] != e.Recipients[1] || sub.ID != e.ID {
		t.Errorf("Subset: %+v", sub)
	}
	rec := recorder{}
	ctx := WithAttempt(context.Background(), rec)
	inner := WithSubset(WithSubset(ctx, []int{2, 4, 6}), []int{2, 0})
	AttemptFrom(inner).Record(0, Receipt{Reply: "six"})
	AttemptFrom(inner).Record(1, Receipt{Reply: "two"})
	AttemptFrom(inner).Record(2, Receipt{Reply: "out of range"})
	if len(rec) != 2 || rec[6].Reply != "six" || rec[2].Reply != "two" {
		t.Errorf("recorded: %v", rec)
	}
	// Outside of a queue everything works and does nothing.
	a := AttemptFrom(WithSubset(context.Background(), []int{0}))
	a.Record(0, Receipt{})
	if err := a.BeforeCommit(context.Background(), time.Second); err != nil {
		t.Error(err)
	}
}

type recorder map[int]Receipt

func (r recorder) BeforeCommit(context.Context, time.Duration) error { return nil }
func (r recorder) Record(i int, rc Receipt)                          { r[i] = rc }

func TestNewMsgID(t *testing.T) {
	seen := map[MsgID]bool{}
	last := MsgID("")
	for range 1000 {
		id := NewMsgID()
		if err := id.Validate(); err != nil || len(id) != 26 || seen[id] {
			t.Fatalf("%q: %v", id, err)
		}
		if last != "" && id[:9] < last[:9] {
			t.Fatalf("%q sorts before %q", id, last)
		}
		seen[id], last = true, id
	}
	for _, id := range []MsgID{"", ".", "..", "a/b", "a\x00b", "a b", "é", MsgID(strings.Repeat("a", 65))} {
		if id.Validate() == nil {
			t.Errorf("%q is taken", id)
		}
	}
}

type wrapper struct{ Deliverer }

func (w wrapper) Unwrap() Deliverer { return w.Deliverer }

type stagingDeliverer struct {
	DelivererFunc
	SpoolStager
}

func TestFind(t *testing.T) {
	inner := &stagingDeliverer{}
	d := wrapper{wrapper{inner}}
	if s := StagerOf(d); s != Stager(inner) {
		t.Errorf("StagerOf through two wrappers: %T", s)
	}
	if _, ok := StagerOf(DelivererFunc(nil)).(*SpoolStager); !ok {
		t.Error("no default Stager")
	}
	loop := &wrapper{}
	loop.Deliverer = loop
	if _, ok := Find[Stager](loop); ok {
		t.Error("found in a loop")
	}
	if _, ok := Find[Stager](nil); ok {
		t.Error("found in nil")
	}
}

func TestReverseName(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1":        "1.2.0.192.in-addr.arpa",
		"::ffff:192.0.2.1": "1.2.0.192.in-addr.arpa",
		"2001:db8::567:89ab": "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0." +
			"0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := ReverseName(netip.MustParseAddr(in)); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestSecretsStayOut(t *testing.T) {
	c := Credentials{Username: "joe", Password: "hunter2"}
	for _, s := range []string{c.String(), c.GoString()} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("the password is in %q", s)
		}
	}
}

func TestPartID(t *testing.T) {
	env := &Envelope{ID: MsgID(strings.Repeat("x", 64)), From: Address{"a", "example.org"}}
	for _, local := range []string{"b", "c", "d"} {
		env.Recipients = append(env.Recipients, Recipient{Address: Address{local, "example.org"}})
	}
	seen := map[MsgID]bool{env.ID: true}
	for _, index := range [][]int{{0, 1, 2}, {0}, {1}, {0, 1}, {1, 0}} {
		id := env.Subset(index).PartID()
		if err := id.Validate(); err != nil || seen[id] || id != env.Subset(index).PartID() {
			t.Errorf("the part %v has the ID %q (%v)", index, id, err)
		}
		seen[id] = true
	}
	env.From = Address{}
	if id := env.Subset([]int{0}).PartID(); seen[id] {
		t.Error("another sender makes no other ID")
	}
	env.ID = ""
	if id := env.PartID(); id != "" {
		t.Errorf("an ID of nothing: %q", id)
	}
}
