package auth

import (
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
)

// Each tenant signs with its own keys or the shared ones, never with another's, and the service's own signature comes with each.
func TestTenantKeys(t *testing.T) {
	k := &TenantKeys{
		Dedicated: map[string]KeyMap{
			"a": {"a.example": {key("a.example")}, "shared.example": {key("a.shared.example")}},
			"b": {"b.example": {key("b.example"), key("esp.example")}},
		},
		Shared: KeyMap{"shared.example": {key("shared.example")}},
		Always: []dkim.SigningKey{key("esp.example")},
	}
	for _, c := range []struct {
		tenant, domain string
		want           []string
	}{
		{"a", "a.example", []string{"a.example", "esp.example"}},
		{"a", "news.a.example", []string{"a.example", "esp.example"}},
		{"a", "b.example", nil},
		{"b", "b.example", []string{"b.example", "esp.example"}},
		{"b", "a.example", nil},
		{"", "a.example", nil},
		{"a", "shared.example", []string{"a.shared.example", "esp.example"}},
		{"b", "shared.example", []string{"shared.example", "esp.example"}},
		{"c", "x.shared.example", []string{"shared.example", "esp.example"}},
		{"a", "esp.example", nil},
	} {
		keys, err := k.SigningKeys(t.Context(), &mailspine.Envelope{Tenant: c.tenant}, c.domain)
		ok := err == nil && len(keys) == len(c.want)
		for i := 0; ok && i < len(keys); i++ {
			ok = keys[i].Domain == c.want[i]
		}
		if !ok {
			t.Errorf("%s for %s: %v %v", c.domain, c.tenant, keys, err)
		}
	}
	if got := k.Dedicated["a"]["a.example"]; len(got) != 1 {
		t.Errorf("the map was changed: %v", got)
	}
	if keys, err := (&TenantKeys{}).SigningKeys(t.Context(), &mailspine.Envelope{}, "a.example"); keys != nil || err != nil {
		t.Errorf("zero: %v %v", keys, err)
	}
}
