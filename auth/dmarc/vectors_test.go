package dmarc

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
)

// A zone maps names to TXT records and A records.
type zone map[string]struct {
	TXT [][]string
	A   []string
	Err error
}

func (z zone) Lookup(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	rec, ok := z[name]
	no := func(kind error) (mailspine.Answer, error) {
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: kind}
	}
	var a mailspine.Answer
	switch {
	case rec.Err != nil:
		return no(rec.Err)
	case t == mailspine.TypeTXT && len(rec.TXT) > 0:
		for _, s := range rec.TXT {
			a.TXT = append(a.TXT, strings.Join(s, ""))
		}
		return a, nil
	case t == mailspine.TypeA && len(rec.A) > 0:
		for _, s := range rec.A {
			a.Addrs = append(a.Addrs, netip.MustParseAddr(s))
		}
		return a, nil
	case ok:
		return no(mailspine.ErrNoData)
	}
	// An empty non-terminal exists (RFC 8020).
	for n := range z {
		if strings.HasSuffix(n, "."+name) {
			return no(mailspine.ErrNoData)
		}
	}
	return no(mailspine.ErrNXDomain)
}

func TestVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/treewalk.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, Ref  string
		FromDomain string `json:"from_domain"`
		Zone       zone
		DKIMPass   []string `json:"dkim_pass"`
		SPFPass    *string  `json:"spf_pass"`
		Want       struct {
			Result, Disposition, Org *string
			Queries                  []string
		}
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 20 {
		t.Errorf("%d cases, expected 20", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			v := &Verifier{Resolver: c.Zone}
			var ids []Identifier
			for _, d := range c.DKIMPass {
				ids = append(ids, Identifier{d, "pass"})
			}
			spf := Identifier{"", "none"}
			if c.SPFPass != nil {
				spf = Identifier{*c.SPFPass, "pass"}
			}
			r := v.Verify(t.Context(), c.FromDomain, spf, ids)
			if w := c.Want.Result; w != nil && string(r.Status) != *w {
				t.Errorf("result %s (%s), want %s", r.Status, r.Problem, *w)
			}
			if w := c.Want.Disposition; w != nil {
				got := r.Disposition
				if r.Status == Pass {
					got = r.Policy // the vectors give what would have been done
				}
				if string(got) != *w {
					t.Errorf("disposition %s, want %s", got, *w)
				}
			}
			if w := c.Want.Org; w != nil && r.OrgDomain != *w {
				t.Errorf("organisational domain %s, want %s", r.OrgDomain, *w)
			}
			if w := c.Want.Queries; w != nil && !slices.Equal(r.Queries, w) {
				t.Errorf("queries %q, want %q", r.Queries, w)
			}
		})
	}
}
