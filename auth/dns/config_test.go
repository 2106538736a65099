package dns

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSystemServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for _, c := range []struct {
		conf string
		want []string
	}{
		{"# comment\nsearch example.org\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # here\r\noptions edns0\n", []string{"192.0.2.1", "2001:db8::1"}},
		{"nameserver fe80::1%eth0\nnameserver bad\nnameserver\n", []string{"fe80::1%eth0"}},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}},
		{"", []string{"127.0.0.1", "::1"}},
		{"nameserver\x00192.0.2.1\n", []string{"127.0.0.1", "::1"}},
	} {
		if err := os.WriteFile(file, []byte(c.conf), 0o600); err != nil {
			t.Fatal(err)
		}
		got := systemServers(file)
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: %q", c.conf, got)
		}
		if _, err := parseServers("Servers", got); err != nil {
			t.Error(err)
		}
	}
	if got := systemServers(filepath.Join(t.TempDir(), "none")); !slices.Equal(got, []string{"127.0.0.1", "::1"}) {
		t.Errorf("without the file: %q", got)
	}
}
