package dkim

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// keys maps names to TXT records; nil records are NXDOMAIN too.
type keys map[string][]string

func (z keys) Lookup(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	if r := z[name]; t == mailspine.TypeTXT && r != nil {
		return mailspine.Answer{TXT: r}, nil
	}
	return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: mailspine.ErrNXDomain}
}

type vector struct {
	Name, File, Ref string
	DNS             keys
	Expect          []string
}

func readVectors(t testing.TB) []vector {
	data, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []vector
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// deviations are vectors whose result we know to be another than expected, with the reason. The test
// fails for one that starts to agree.
var deviations = map[string]string{}

func TestVectors(t *testing.T) {
	cases := readVectors(t)
	if len(cases) != 93 {
		t.Errorf("%d cases, expected 93", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			msg, err := os.ReadFile(filepath.Join("testdata", c.File))
			if err != nil {
				t.Fatal(err)
			}
			v := &Verifier{Resolver: c.DNS, Now: func() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }}
			res, err := v.Verify(t.Context(), mailspine.BytesContent(msg))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range res {
				got = append(got, string(r.Status))
				if (r.Status == Pass) != (r.Problem == "") {
					t.Errorf("%s with the problem %q", r.Status, r.Problem)
				}
			}
			ok := agree(got, c.Expect)
			if why, known := deviations[c.Name]; known {
				if ok {
					t.Errorf("agrees now, take it off the list of deviations (%s)", why)
				}
				return
			}
			if !ok {
				t.Errorf("got %q, want %q (%s): %+v", got, c.Expect, c.Ref, res)
			}
		})
	}
}

func agree(got, want []string) bool {
	if len(got) != len(want) {
		return slices.Equal(want, []string{"either"}) // whether there is a signature at all
	}
	for i, w := range want {
		ok := w == "either" || w == "notpass" && got[i] != "pass" || slices.Contains(strings.Split(w, "|"), got[i])
		if !ok {
			return false
		}
	}
	return true
}
