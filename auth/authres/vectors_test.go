package authres

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
)

func TestVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		N, V, ID, Why string
		OK            any
		Res           []string
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 12 {
		t.Errorf("%d cases, expected 12", len(cases))
	}
	for _, c := range cases {
		t.Run(c.N, func(t *testing.T) {
			h, err := Parse(c.V)
			if want, ok := c.OK.(bool); ok && want != (err == nil) {
				t.Fatalf("Parse: %v, want success %v (%s)", err, want, c.Why)
			}
			if err != nil {
				return
			}
			var res []string
			for _, r := range h.Results {
				res = append(res, r.Method+"="+r.Value)
			}
			if h.ID != c.ID || !slices.Equal(res, c.Res) {
				t.Errorf("got %q %q, want %q %q (%s)", h.ID, res, c.ID, c.Res, c.Why)
			}
		})
	}
}
