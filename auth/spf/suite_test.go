package spf

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
)

// vectors returns the path of a conformance file, or skips the test.
func vectors(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("MAILSPINE_VECTORS")
	path := filepath.Join(dir, name)
	if dir != "" {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if os.Getenv("MAILSPINE_STRICT") == "1" {
		t.Fatalf("MAILSPINE_STRICT=1 and %q is not in MAILSPINE_VECTORS=%q", name, dir)
	}
	t.Skipf("MAILSPINE_VECTORS does not lead to %s: the suite is not run", name)
	return ""
}

// A zone is what the suites call zonedata.
type zone map[string][]yamlPair

func (z zone) Lookup(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
	no := func(kind error) (mailspine.Answer, error) {
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: kind}
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	for range 10 {
		recs, ok := z[name]
		if !ok {
			return no(mailspine.ErrNXDomain)
		}
		a := mailspine.Answer{CanonicalName: name}
		hasTXT := slices.ContainsFunc(recs, func(r yamlPair) bool { return r.key == "TXT" })
		timeout, cname := false, ""
		for _, r := range recs {
			// The suites' SPF records are TXT records too, unless there are some.
			typ := r.key
			if typ == "SPF" && !hasTXT {
				typ = "TXT"
			}
			switch {
			case typ == "TIMEOUT":
				timeout = true
			case typ == "CNAME":
				cname = strings.TrimSuffix(strings.ToLower(r.value.(string)), ".")
			case typ != t.String():
			case typ == "TXT":
				if r.value == "NONE" {
					continue
				}
				a.TXT = append(a.TXT, joined(r.value))
			case typ == "A" || typ == "AAAA":
				a.Addrs = append(a.Addrs, netip.MustParseAddr(r.value.(string)))
			case typ == "PTR":
				a.Names = append(a.Names, strings.TrimSuffix(r.value.(string), "."))
			case typ == "MX":
				mx := r.value.([]any)
				n, err := strconv.Atoi(mx[0].(string))
				if err != nil {
					panic(err)
				}
				a.MX = append(a.MX, mailspine.MX{Preference: uint16(n), Host: strings.TrimSuffix(mx[1].(string), ".")})
			}
		}
		switch {
		case len(a.TXT)+len(a.Addrs)+len(a.Names)+len(a.MX) > 0:
			return a, nil
		case cname != "":
			name = cname
			continue
		case timeout:
			return no(mailspine.ErrDNSTemporary)
		}
		return no(mailspine.ErrNoData)
	}
	return no(mailspine.ErrDNSTemporary)
}

func joined(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	var b strings.Builder
	for _, s := range v.([]any) {
		b.WriteString(s.(string))
	}
	return b.String()
}

func pairs(v any) []yamlPair { p, _ := v.([]yamlPair); return p }

type suiteCase struct {
	name, helo, host, from, explanation string
	results                             []string
}

func readCase(p yamlPair) suiteCase {
	c := suiteCase{name: p.key}
	for _, f := range pairs(p.value) {
		switch f.key {
		case "helo":
			c.helo = f.value.(string)
		case "host":
			c.host = f.value.(string)
		case "mailfrom":
			c.from = f.value.(string)
		case "explanation":
			c.explanation = f.value.(string)
		case "result":
			if l, ok := f.value.([]any); ok {
				for _, r := range l {
					c.results = append(c.results, r.(string))
				}
			} else {
				c.results = []string{f.value.(string)}
			}
		}
	}
	return c
}

func (c *suiteCase) address() mailspine.Address {
	i := strings.LastIndexByte(c.from, '@')
	if i < 0 {
		return mailspine.Address{Domain: c.from}
	}
	return mailspine.Address{Local: c.from[:i], Domain: c.from[i+1:]}
}

// runSuite runs all cases of a suite file and returns how many there are, and
// how many explanations were compared.
func runSuite(t *testing.T, path string, changed map[string]string) (cases, explanations int) {
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := parseYAML(string(src))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range docs {
		var tests []yamlPair
		var description string
		z := zone{}
		for _, p := range doc {
			switch p.key {
			case "description":
				description = p.value.(string)
			case "tests":
				tests = pairs(p.value)
			case "zonedata":
				for _, name := range pairs(p.value) {
					key := strings.ToLower(name.key)
					z[key] = nil
					items, _ := name.value.([]any)
					for _, item := range items {
						if s, ok := item.(string); ok {
							z[key] = append(z[key], yamlPair{key: s})
						} else {
							z[key] = append(z[key], pairs(item)...)
						}
					}
				}
			}
		}
		for _, p := range tests {
			c := readCase(p)
			cases++
			t.Run(description+"/"+c.name, func(t *testing.T) {
				v := &Verifier{Resolver: z}
				r := v.Check(t.Context(), netip.MustParseAddr(c.host), c.helo, c.address())
				if why, ok := changed[c.name]; ok {
					if slices.Contains(c.results, string(r.Status)) {
						t.Errorf("%s is expected to differ from the suite (%s), and does not any more", c.name, why)
					}
					return
				}
				if !slices.Contains(c.results, string(r.Status)) {
					t.Errorf("result %s (%s), want %v", r.Status, r.Problem, c.results)
				}
				if c.explanation != "" {
					want := c.explanation
					if want == "DEFAULT" {
						want = ""
					}
					explanations++
					if r.Explanation != want {
						t.Errorf("explanation %q, want %q", r.Explanation, want)
					}
				}
				checkField(t, r.Header("mx.example.org"))
			})
		}
	}
	return cases, explanations
}

// checkField fails if a field is not one well-formed header field.
func checkField(t *testing.T, f []byte) {
	t.Helper()
	h, err := mailspine.ParseHeader(strings.NewReader(string(f)+"\r\n"), 0)
	if err != nil || len(h.Fields) != 1 || h.Body != int64(len(f)) {
		t.Errorf("not one header field: %q", f)
	}
	for l := range strings.SplitSeq(string(f), "\r\n") {
		if len(l) > 998 || strings.ContainsAny(l, "\r\n\x00") {
			t.Errorf("not a line of a header field: %q", l)
		}
	}
}

func TestRFC7208Suite(t *testing.T) {
	cases, explanations := runSuite(t, vectors(t, "spf/rfc7208-tests.yml"), nil)
	if cases != 203 {
		t.Errorf("ran %d cases, the suite has 203", cases)
	}
	t.Logf("%d cases, %d explanations", cases, explanations)
}

// RFC 4408 is obsolete. Where RFC 7208 decides otherwise we follow RFC 7208.
func TestRFC4408Suite(t *testing.T) {
	cases, _ := runSuite(t, vectors(t, "spf/rfc4408-tests.yml"), map[string]string{})
	t.Logf("%d cases", cases)
}

func failing(kind error) mailspine.Resolver {
	return mailspine.ResolverFunc(func(_ context.Context, name string, t mailspine.Type) (mailspine.Answer, error) {
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: t, Kind: kind, Err: errors.New("secret detail")}
	})
}

// txt is a zone of TXT records and addresses.
func txt(records map[string]string) zone {
	z := zone{}
	for name, text := range records {
		switch typ, rest, _ := strings.Cut(text, " "); typ {
		case "A", "AAAA", "PTR":
			z[name] = append(z[name], yamlPair{typ, rest})
		default:
			z[name] = append(z[name], yamlPair{"TXT", text})
		}
	}
	return z
}
