package dane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func ee(b byte) dnstest.Record { return dnstest.TLSA(3, 1, 1, slices.Repeat([]byte{b}, 32)) }

// world is a zone in which each case has a name of its own.
var world = dnstest.Zone{
	"signed.example":                   {dnstest.Signed, dnstest.SOA(time.Minute)},
	"a.signed.example":                 {dnstest.A("192.0.2.1"), dnstest.AAAA("2001:db8::1")},
	"_25._tcp.a.signed.example":        {ee(1), ee(2), dnstest.TTL(7 * time.Minute)},
	"_465._tcp.a.signed.example":       {ee(3)},
	"six.signed.example":               {dnstest.AAAA("2001:db8::1")},
	"_25._tcp.six.signed.example":      {ee(1)},
	"none.signed.example":              {dnstest.A("192.0.2.1")},
	"nodata.signed.example":            {dnstest.A("192.0.2.1")},
	"_25._tcp.nodata.signed.example":   {dnstest.TXT("no TLSA")},
	"pkix.signed.example":              {dnstest.A("192.0.2.1")},
	"_25._tcp.pkix.signed.example":     {dnstest.TLSA(1, 1, 1, make([]byte, 32)), dnstest.TLSA(3, 1, 9, make([]byte, 32))},
	"mixed.signed.example":             {dnstest.A("192.0.2.1")},
	"_25._tcp.mixed.signed.example":    {dnstest.TLSA(1, 1, 1, make([]byte, 32)), ee(1), dnstest.TLSA(3, 1, 1, []byte("short"))},
	"unsigned.signed.example":          {dnstest.A("192.0.2.1")},
	"_25._tcp.unsigned.signed.example": {dnstest.Unsigned, ee(1)},
	"servfail.signed.example":          {dnstest.A("192.0.2.1")},
	"_25._tcp.servfail.signed.example": {dnstest.ServFail},
	"bogus.signed.example":             {dnstest.A("192.0.2.1")},
	"_25._tcp.bogus.signed.example":    {dnstest.Bogus, ee(1)},
	"timeout.signed.example":           {dnstest.A("192.0.2.1")},
	"_25._tcp.timeout.signed.example":  {dnstest.Timeout},
	"badaddr.signed.example":           {dnstest.Bogus, dnstest.A("192.0.2.1")},
	"_25._tcp.badaddr.signed.example":  {ee(1)},
	"noaddr.signed.example":            {dnstest.TXT("nothing here")},
	"_25._tcp.noaddr.signed.example":   {ee(1)},
	// Servers that fail for one type of address.
	"bad4.signed.example":          {dnstest.Fault{Kind: dnstest.ServFail, Type: mailspine.TypeA}, dnstest.AAAA("2001:db8::1")},
	"_25._tcp.bad4.signed.example": {ee(1)},
	"bad6.signed.example":          {dnstest.Fault{Kind: dnstest.ServFail, Type: mailspine.TypeAAAA}, dnstest.A("192.0.2.1")},
	"_25._tcp.bad6.signed.example": {ee(1)},
	"only6.signed.example":         {dnstest.Fault{Kind: dnstest.ServFail, Type: mailspine.TypeAAAA}, dnstest.TXT("no A")},

	"plain.example":           {dnstest.Unsigned, dnstest.A("192.0.2.1")},
	"_25._tcp.plain.example":  {dnstest.ServFail}, // as some servers in unsigned zones
	"bad4.plain.example":      {dnstest.Unsigned, dnstest.Fault{Kind: dnstest.ServFail, Type: mailspine.TypeA}, dnstest.AAAA("2001:db8::1")},
	"_25._tcp.forged.example": {dnstest.Unsigned, ee(1)},
	"forged.example":          {dnstest.Unsigned, dnstest.A("192.0.2.1")},

	// Aliases: to a server that publishes, to one that does not, and out of what is signed.
	"alias.signed.example":              {dnstest.CNAME("a.signed.example")},
	"_25._tcp.alias.signed.example":     {ee(9)},
	"alias2.signed.example":             {dnstest.CNAME("none.signed.example")},
	"_25._tcp.alias2.signed.example":    {ee(9)},
	"alias3.signed.example":             {dnstest.CNAME("bogus.signed.example")},
	"_25._tcp.alias3.signed.example":    {ee(9)},
	"alias4.signed.example":             {dnstest.CNAME("none.signed.example")},
	"alias5.signed.example":             {dnstest.CNAME("pkix.signed.example")},
	"_25._tcp.alias5.signed.example":    {ee(9)},
	"out.signed.example":                {dnstest.CNAME("plain.example")},
	"_25._tcp.out.signed.example":       {ee(9)},
	"out2.signed.example":               {dnstest.CNAME("plain.example")},
	"out3.signed.example":               {dnstest.Fault{Kind: dnstest.ServFail, Type: mailspine.TypeCNAME}, dnstest.CNAME("plain.example")},
	"in.plain.example":                  {dnstest.Unsigned, dnstest.CNAME("a.signed.example")},
	"_25._tcp.in.plain.example":         {ee(9)},
	"records.signed.example":            {dnstest.A("192.0.2.1")}, // the records themselves are an alias
	"_25._tcp.records.signed.example":   {dnstest.CNAME("_25._tcp.a.signed.example")},
	"records2.signed.example":           {dnstest.A("192.0.2.1")},
	"_25._tcp.records2.signed.example":  {dnstest.CNAME("_25._tcp.forged.example")},
	"mx.xn--bcher-kva.example":          {dnstest.Signed, dnstest.A("192.0.2.1")},
	"_25._tcp.mx.xn--bcher-kva.example": {dnstest.Signed, ee(1)},
}

func TestLookup(t *testing.T) {
	if err := world.Check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host        string
		port        uint16
		base        string
		all, usable int
		names       []string
		secure      bool
		err         error
	}{
		{host: "a.signed.example", base: "a.signed.example", all: 2, usable: 2, names: []string{"a.signed.example"}, secure: true},
		{host: "A.Signed.Example.", port: 25, base: "a.signed.example", all: 2, usable: 2, names: []string{"a.signed.example"}, secure: true},
		{host: "a.signed.example", port: 465, base: "a.signed.example", all: 1, usable: 1, names: []string{"a.signed.example"}, secure: true},
		{host: "a.signed.example", port: 587, secure: true},
		{host: "six.signed.example", base: "six.signed.example", all: 1, usable: 1, names: []string{"six.signed.example"}, secure: true},
		{host: "mx.bücher.example", base: "mx.xn--bcher-kva.example", all: 1, usable: 1, names: []string{"mx.xn--bcher-kva.example"}, secure: true},
		{host: "none.signed.example", secure: true},
		{host: "nodata.signed.example", secure: true},
		{host: "pkix.signed.example", base: "pkix.signed.example", all: 2, usable: 0, names: []string{"pkix.signed.example"}, secure: true},
		{host: "mixed.signed.example", base: "mixed.signed.example", all: 3, usable: 1, names: []string{"mixed.signed.example"}, secure: true},
		{host: "unsigned.signed.example", secure: true},
		{host: "servfail.signed.example", err: mailspine.ErrDNSTemporary},
		{host: "bogus.signed.example", err: mailspine.ErrDNSBogus},
		{host: "timeout.signed.example", err: mailspine.ErrDNSTemporary},
		{host: "badaddr.signed.example", err: mailspine.ErrDNSBogus},
		{host: "noaddr.signed.example"},
		{host: "gone.signed.example"},
		{host: "bad4.signed.example", base: "bad4.signed.example", all: 1, usable: 1, names: []string{"bad4.signed.example"}, secure: true},
		{host: "bad6.signed.example", base: "bad6.signed.example", all: 1, usable: 1, names: []string{"bad6.signed.example"}, secure: true},
		{host: "only6.signed.example", err: mailspine.ErrDNSTemporary},
		{host: "plain.example"},
		{host: "bad4.plain.example", err: mailspine.ErrDNSTemporary},
		{host: "forged.example"},
		{host: "nowhere.test"},

		{host: "alias.signed.example", base: "a.signed.example", all: 2, usable: 2, names: []string{"a.signed.example", "alias.signed.example"}, secure: true},
		{host: "alias2.signed.example", base: "alias2.signed.example", all: 1, usable: 1, names: []string{"alias2.signed.example"}, secure: true},
		{host: "alias3.signed.example", err: mailspine.ErrDNSBogus},
		{host: "alias4.signed.example", secure: true},
		// The first secure records decide, usable or not.
		{host: "alias5.signed.example", base: "pkix.signed.example", all: 2, usable: 0, names: []string{"pkix.signed.example", "alias5.signed.example"}, secure: true},
		{host: "out.signed.example", base: "out.signed.example", all: 1, usable: 1, names: []string{"out.signed.example"}, secure: true},
		{host: "out2.signed.example", secure: true},
		{host: "out3.signed.example", err: mailspine.ErrDNSTemporary},
		{host: "in.plain.example"},
		{host: "records.signed.example", base: "records.signed.example", all: 2, usable: 2, names: []string{"records.signed.example"}, secure: true},
		{host: "records2.signed.example", secure: true},

		{host: "[192.0.2.1]"}, {host: ""}, {host: "."}, {host: "not a name"}, {host: strings.Repeat("a", 300)}, {host: "\xff"},
	} {
		r, err := Lookup(t.Context(), world, c.host, c.port)
		about := fmt.Sprintf("%s port %d", c.host, c.port)
		if c.err != nil {
			if !errors.Is(err, c.err) || len(r.All)+len(r.Usable)+len(r.Names)+len(r.Base) > 0 || r.Secure {
				t.Errorf("%s: %+v, %v; want %v and nothing else", about, r, err, c.err)
			}
			if s := mailspine.Status(err); s.Code != 451 || strings.Contains(s.Reply(), "signed") {
				t.Errorf("%s: a peer is told %q", about, s.Reply())
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", about, err)
			continue
		}
		if r.Base != c.base || len(r.All) != c.all || len(r.Usable) != c.usable || !slices.Equal(r.Names, c.names) || r.Secure != c.secure {
			t.Errorf("%s: %+v\nwant base %q, %d records, %d usable, names %q, secure %v", about, r, c.base, c.all, c.usable, c.names, c.secure)
		}
	}
}

// What a resolver does not vouch for counts for nothing, whatever it says; and in zones that are not signed, nobody asks for TLSA.
func TestLookupUntrusted(t *testing.T) {
	asked := 0
	r := mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
		if typ == mailspine.TypeTLSA {
			asked++
		}
		a, err := world.Lookup(ctx, name, typ)
		a.Authentic = false
		return a, err
	})
	for name := range world {
		if strings.HasPrefix(name, "_") {
			continue
		}
		recs, err := Lookup(t.Context(), r, name, 0)
		if len(recs.All) > 0 || recs.Secure {
			t.Errorf("%s: %+v, %v", name, recs, err)
		}
	}
	if asked > 0 {
		t.Errorf("asked %d times for TLSA records that could not count", asked)
	}
}

// The fewest questions, in the order of RFC 7672 section 2.2.2, and the shortest of the TTLs.
func TestLookupQuestions(t *testing.T) {
	for _, c := range []struct{ host, want string }{
		{"a.signed.example", "a.signed.example A, _25._tcp.a.signed.example TLSA"},
		{"plain.example", "plain.example A"},
		{"six.signed.example", "six.signed.example A, six.signed.example AAAA, _25._tcp.six.signed.example TLSA"},
		{"alias2.signed.example", "alias2.signed.example A, _25._tcp.none.signed.example TLSA, _25._tcp.alias2.signed.example TLSA"},
		{"out.signed.example", "out.signed.example A, out.signed.example CNAME, _25._tcp.out.signed.example TLSA"},
		{"in.plain.example", "in.plain.example A, in.plain.example CNAME"},
		{"[IPv6:2001:db8::1]", ""},
	} {
		var asked []string
		r := mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
			asked = append(asked, name+" "+typ.String())
			return world.Lookup(ctx, name, typ)
		})
		if _, err := Lookup(t.Context(), r, c.host, 0); err != nil {
			t.Errorf("%s: %v", c.host, err)
		}
		if got := strings.Join(asked, ", "); got != c.want {
			t.Errorf("%s asks\n%s, want\n%s", c.host, got, c.want)
		}
	}
	r, err := Lookup(t.Context(), world, "a.signed.example", 25)
	if err != nil || r.TTL != min(7*time.Minute, dnstest.DefaultTTL) {
		t.Errorf("TTL %v, %v", r.TTL, err)
	}
	if r, err = Lookup(t.Context(), world, "none.signed.example", 25); err != nil || r.TTL != time.Minute {
		t.Errorf("absent: TTL %v, %v", r.TTL, err)
	}
}

// Resolvers that do not keep their contract, or have no time.
func TestLookupBadResolver(t *testing.T) {
	if _, err := Lookup(t.Context(), nil, "a.signed.example", 25); !errors.Is(err, mailspine.ErrDNSTemporary) {
		t.Errorf("no resolver: %v", err)
	}
	odd := errors.New("odd")
	r := mailspine.ResolverFunc(func(context.Context, string, mailspine.Type) (mailspine.Answer, error) {
		return mailspine.Answer{}, odd
	})
	if _, err := Lookup(t.Context(), r, "a.signed.example", 25); !errors.Is(err, mailspine.ErrDNSTemporary) || !errors.Is(err, odd) {
		t.Errorf("an odd error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Lookup(ctx, world, "a.signed.example", 25); !errors.Is(err, mailspine.ErrDNSTemporary) || !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
	r = func(_ context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) { // no canonical name, a flood of records
		return mailspine.Answer{Authentic: true, TLSA: make([]mailspine.TLSA, 100_000), Addrs: nil}, nil
	}
	if recs, err := Lookup(t.Context(), r, "a.signed.example", 25); err != nil || recs.Base != "a.signed.example" || len(recs.All) != maxRecords || recs.Usable != nil {
		t.Errorf("a flood: %d records at %q, %v", len(recs.All), recs.Base, err)
	}
}
