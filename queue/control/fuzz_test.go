package control

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/mailspine/mailspine/queue"
)

// What decode accepts is valid, selects what it says, and comes out the same when it is written and read again.
func FuzzDecode(f *testing.F) {
	calls := []string{"list", "control", "bounce"}
	for _, s := range []string{
		`{"filter":{}}`,
		`{"filter":{"id":"01ABC","item":7,"route":"r","tenant":"t","stream":"s","sender":"<>","recipient":"@example.net","domain":"example.net","state":"held","min_age":"1h","max_age":"2h0m0.5s"}}`,
		`{"filter":{},"command":{"op":"hold","reason":"because"}}`,
		`{"filter":{"tenant":"acme"},"command":{"op":"reroute","route":"x"}}`,
		`{"filter":{},"status":{"code":550,"enhanced":"5.7.1","message":"No"}}`,
		`{"filter":{"tenant":""}}`, `{"filter":{"tenant":"a","tenant":""}}`, `{"filter":{"id":null}}`, `{"Filter":{}}`,
		`{"filter":{}}{"filter":{}}`, `[]`, `null`, "", `{"filter":{"item":-1}}`, `{"filter":{"min_age":1}}`, `{"filter":{"sender":"a@b@c"}}`,
	} {
		for i := range len(calls) {
			f.Add([]byte(s), byte(i))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, n byte) {
		call := calls[int(n)%len(calls)]
		o, err := decode(bytes.NewReader(b), call)
		if err != nil {
			if o != (order{}) {
				t.Fatalf("an order in spite of %v", err)
			}
			return
		}
		if err := o.filter.Validate(); err != nil {
			t.Fatal(err)
		}
		req := request{Filter: filterOf(o.filter)}
		if call == "control" {
			if err := o.command.Validate(); err != nil {
				t.Fatal(err)
			}
			req.Command = commandOf(o.command)
		}
		if req.Status = statusOf(o.status); o.status != nil && o.status.Temporary() {
			t.Fatal(o.status)
		}
		again, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		p, err := decode(bytes.NewReader(again), call)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if p.filter != o.filter || p.command != o.command || (p.status == nil) != (o.status == nil) || p.status != nil && p.status.Error() != o.status.Error() {
			t.Fatalf("%+v became %+v", o, p)
		}
		if o.filter == (queue.Filter{}) && bytes.Contains(b, []byte(`"filter":{"`)) && utf8.Valid(b) && call == "list" &&
			bytes.Count(b, []byte("{")) == 2 {
			t.Fatalf("%s selects everything", b)
		}
	})
}

// What a server answers is read without a panic, and what is accepted can be shown.
func FuzzItem(f *testing.F) {
	b, err := json.Marshal(itemOf(someItem()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"id":1,"state":"due","recipients":[{}],"envelope":{"Recipients":[{"Address":"a@b"}]}}`))
	f.Add([]byte(`{"state":"held","age":"-5h","due":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w item
		if json.Unmarshal(b, &w) != nil {
			return
		}
		it, err := w.queue()
		if err != nil {
			return
		}
		if it.Envelope != nil && len(it.States) != len(it.Envelope.Recipients) {
			t.Fatalf("%d states, %d recipients", len(it.States), len(it.Envelope.Recipients))
		}
		if _, err := json.Marshal(itemOf(it)); err != nil {
			t.Skip("JSON needs a year of at most four digits: ", err)
		}
	})
}
