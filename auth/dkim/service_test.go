package dkim

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

const reportMessage = "From: reports@example.org\r\n" +
	"To: tls@example.net\r\n" +
	"Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=b\r\n" +
	"MIME-Version: 1.0\r\n" +
	"\r\n--b--\r\n"

// A key for TLS reports signs TLS reports, where they are asked for, and nothing else.
func TestServices(t *testing.T) {
	ks, _ := signers(t)
	key := ks[1]
	record := func(services ...string) string {
		return (&Record{Key: key.Key.Public(), Services: services}).String()
	}
	mail, both, tls := []string(nil), []string{ServiceTLSRPT, ServiceEmail}, []string{ServiceTLSRPT}
	replace := func(old, new string) string {
		m := strings.Replace(reportMessage, old, new, 1)
		if m == reportMessage {
			t.Fatalf("no %q in it", old)
		}
		return m
	}
	const kind = "Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=b\r\n"
	for _, c := range []struct {
		name     string
		record   string
		services []string // of the verifier
		msg      string
		want     Status
		service  string
		problem  string
	}{
		{"mail, a key for all", record(), mail, message, Pass, "email", ""},
		{"mail, a key for mail", record("email"), mail, message, Pass, "email", ""},
		{"mail, a key for several", record("tlsrpt", "email"), mail, message, Pass, "email", ""},
		{"mail, a key for reports", record("tlsrpt"), mail, message, PermError, "", "s= does not allow email"},
		{"a report, nobody asks", record("tlsrpt"), mail, reportMessage, PermError, "", "s= does not allow email"},
		{"no service of the verifier's", record("tlsrpt"), []string{}, reportMessage, PermError, "", "s= does not allow email"},

		{"both, mail, a key for all", record(), both, message, Pass, "email", ""},
		{"both, mail, a key for *", record("*"), both, message, Pass, "email", ""},
		{"both, mail, a key for both", record("tlsrpt", "email"), both, message, Pass, "email", ""},
		{"both, mail, a key for reports", record("tlsrpt"), both, message, PermError, "tlsrpt", "the message is none"},
		{"both, mail, a key for others", record("x", "y-z"), both, message, PermError, "", "s= does not allow email or tlsrpt"},
		{"both, a report, a key for all", record(), both, reportMessage, Pass, "email", ""},
		{"both, a report, a key for reports", record("tlsrpt"), both, reportMessage, Pass, "tlsrpt", ""},
		{"both, a report, and others", record("x", "tlsrpt"), both, reportMessage, Pass, "tlsrpt", ""},

		{"reports, a key for mail", record("email"), tls, reportMessage, PermError, "", "s= does not allow tlsrpt"},
		{"reports, a key for all", record("*"), tls, reportMessage, Pass, "tlsrpt", ""},
		{"reports, mail", record("*"), tls, message, PermError, "tlsrpt", "the message is none"},
		{"another service", record("x"), []string{"x"}, message, Pass, "x", ""},

		{"capitals", record("tlsrpt"), both, replace("multipart/report; report-type=\"tlsrpt\"", "Multipart/Report; REPORT-TYPE=TLSRPT"), Pass, "tlsrpt", ""},
		{"another report", record("tlsrpt"), both, replace("\"tlsrpt\"", "feedback-report"), PermError, "tlsrpt", "the message is none"},
		{"a report in a mail", record("tlsrpt"), both, replace("multipart/report", "multipart/mixed"), PermError, "tlsrpt", "the message is none"},
		{"no type", record("tlsrpt"), both, replace(kind, ""), PermError, "tlsrpt", "the message is none"},
		{"two types", record("tlsrpt"), both, replace(kind, kind+"Content-Type: text/html\r\n"), PermError, "tlsrpt", "the message is none"},
		{"two types, the other way round", record("tlsrpt"), both, replace(kind, "Content-Type: text/html\r\n"+kind), PermError, "tlsrpt", "the message is none"},
		{"two report types", record("tlsrpt"), both, replace("report-type=", "report-type=x; report-type="), PermError, "tlsrpt", "the message is none"},
		{"a line that is no field", record("tlsrpt"), both, replace(kind, "Dear customer\r\n"+kind), PermError, "tlsrpt", "the message is none"},
		{"a long type", record("tlsrpt"), both, replace("boundary=b", "boundary=b; x="+strings.Repeat("y", maxType)), PermError, "tlsrpt", "the message is none"},
	} {
		res := verify(t, &Verifier{Resolver: keys{key.Name(): {c.record}}, Services: c.services}, mustSign(t, c.msg, key))
		if len(res) != 1 || res[0].Status != c.want || res[0].Service != c.service || !strings.Contains(res[0].Problem, c.problem) {
			t.Errorf("%s: %+v", c.name, res)
		}
	}

	// The type must be signed, and all of the body, even where l= is let pass.
	v := &Verifier{Resolver: keys{key.Name(): {record("tlsrpt")}}, Services: both, AllowLength: true}
	bare := key
	bare.Headers, bare.Oversign = []string{"From"}, []string{}
	if res := verify(t, v, mustSign(t, reportMessage, bare)); res[0].Status != Policy || !strings.Contains(res[0].Problem, "Content-Type") {
		t.Errorf("the type is not signed: %+v", res)
	}
	cut := strings.Replace(mustSign(t, reportMessage, key), "v=1;", "v=1; l=0;", 1)
	if res := verify(t, v, cut); res[0].Status != Policy || !strings.Contains(res[0].Problem, "l=") {
		t.Errorf("with l=: %+v", res)
	}
	// What is added to a message that is signed is seen as in any other.
	signed := mustSign(t, reportMessage, key)
	for name, msg := range map[string]string{"another type": "Content-Type: text/html\r\n" + signed, "body": signed + "x\r\n"} {
		if res := verify(t, v, msg); res[0].Status == Pass {
			t.Errorf("%s: %+v", name, res)
		}
	}
}

// Of several keys at a name the one counts that is for the service.
func TestKeysOfServices(t *testing.T) {
	ks, _ := signers(t)
	key := ks[1]
	mine := func(services ...string) string {
		return (&Record{Key: key.Key.Public(), Services: services}).String()
	}
	other := func(services ...string) string {
		return (&Record{Key: ks[0].Key.Public(), Services: services}).String()
	}
	both := []string{ServiceEmail, ServiceTLSRPT}
	for _, c := range []struct {
		name     string
		records  []string
		services []string
		msg      string
		want     Status
		problem  string
	}{
		{"one for each, mail", []string{other("tlsrpt"), mine("email")}, both, message, Pass, ""},
		{"one for each, only mail", []string{other("tlsrpt"), mine("email")}, nil, message, Pass, ""},
		{"one for each, only reports", []string{mine("tlsrpt"), other("email")}, []string{ServiceTLSRPT}, reportMessage, Pass, ""},
		{"two for mail", []string{mine("email"), mine("email", "x")}, both, message, PermError, "several"},
		{"two for reports", []string{mine("tlsrpt"), mine("tlsrpt")}, both, reportMessage, PermError, "several"},
		{"two for reports, mail", []string{other("tlsrpt"), other("tlsrpt"), mine()}, both, message, Pass, ""},
	} {
		res := verify(t, &Verifier{Resolver: keys{key.Name(): c.records}, Services: c.services}, mustSign(t, c.msg, key))
		if res[0].Status != c.want || !strings.Contains(res[0].Problem, c.problem) {
			t.Errorf("%s: %+v", c.name, res)
		}
	}
}

func TestServiceRecords(t *testing.T) {
	ks, _ := signers(t)
	key := ks[1]
	key.Services = []string{"tlsrpt", "x-y2"}
	if err := key.Validate(); err != nil {
		t.Fatal(err)
	}
	text := key.Record().String()
	if !strings.Contains(text, "; s=tlsrpt:x-y2;") {
		t.Errorf("record %q", text)
	}
	rec, err := ParseRecordFor(text, "a", "x-y2")
	if err != nil || !slices.Equal(rec.Services, key.Services) || !rec.Allows("tlsrpt") || rec.Allows("email") || rec.Allows("") {
		t.Errorf("%+v, %v", rec, err)
	}
	if _, err := ParseRecord(text); err == nil {
		t.Error("the record is for e-mail")
	}
	if _, err := ParseRecordFor(text); err == nil {
		t.Error("the record is for nothing in particular")
	}
	if rec, err := ParseRecordFor(ks[1].Record().String(), "tlsrpt"); err != nil || !rec.Allows("anything") {
		t.Errorf("a record without a list: %+v, %v", rec, err)
	}
	for _, c := range []struct {
		services []string
		record   string
		want     string
	}{
		{[]string{"tlsrpt"}, key.Record().String(), ""},
		{[]string{"tlsrpt"}, ks[1].Record().String(), ""},
		{nil, ks[1].Record().String(), ""},
		{[]string{"*"}, ks[1].Record().String(), ""},
		{nil, key.Record().String(), "does not allow email"},
		{[]string{"tlsrpt", "email"}, key.Record().String(), "not for email"},
	} {
		k := ks[1]
		k.Services = c.services
		err := k.Published(t.Context(), keys{k.Name(): {c.record}})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, published %q: %v", c.services, c.record, err)
		}
	}
	for _, s := range []string{"", " ", "-", "a-", "2a", "a;b", "a:b", "**"} {
		k := ks[1]
		k.Services = []string{s}
		if k.Validate() == nil {
			t.Errorf("service type %q", s)
		}
	}
	v := &Verifier{Services: []string{"x", "email"}}
	if got := v.services(); got[0] != "email" || !reflect.DeepEqual(v.Services, []string{"x", "email"}) {
		t.Errorf("%v", got)
	}
}
