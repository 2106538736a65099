package arch

import (
	"go/ast"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The floors of the house: a room may import rooms of lower floors, itself, and
// internal/. Rooms on one floor do not know each other.
var floors = map[string]int{".": 0, "auth": 1, "queue": 2, "mta": 3, "msa": 3, "mda": 3, "fbl": 3, "examples": 4}

// exceptions are imports between rooms of one floor that the design allows.
var exceptions = map[string]string{
	"mda/lmtp": "mta/smtpclient",
}

func room(dir string) string {
	r, _, _ := strings.Cut(dir, "/")
	return r
}

func imports(files map[string]*ast.File) []string {
	var all []string
	for _, f := range files {
		for _, i := range f.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestImports(t *testing.T) {
	for _, p := range load(t) {
		if _, ok := floors[room(p.dir)]; !ok && room(p.dir) != "internal" {
			t.Errorf("%s: %s is no room of the house", p.dir, room(p.dir))
		}
		for _, bad := range []string{"util", "utils", "common", "types", "pkg", "helper", "helpers", "misc"} {
			if path.Base(p.dir) == bad {
				t.Errorf("%s: a package called %s says nothing", p.dir, bad)
			}
		}
		for _, imp := range imports(p.files) {
			if imp == "testing" && !strings.HasPrefix(p.dir, "examples/") && !isKit(p.dir) {
				t.Errorf("%s imports testing outside of a test", p.dir)
			}
			if (strings.HasPrefix(imp, "github.com/jackc/") || imp == "database/sql") && p.dir != "queue/pgqueue" {
				t.Errorf("%s imports the database driver %s", p.dir, imp)
			}
			if p.dir == "auth/dns/dnstest" && imp == "testing" {
				t.Errorf("%s imports testing, and examples import it", p.dir)
			}
			to, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			to = strings.TrimPrefix(to, "/")
			if to == "" {
				to = "."
			}
			if isKit(to) && !isKit(p.dir) && room(p.dir) != "examples" {
				t.Errorf("%s imports %s, which is for tests and examples", p.dir, to)
			}
			if reason := forbidden(p.dir, to); reason != "" {
				t.Errorf("%s imports %s: %s", p.dir, to, reason)
			}
		}
	}
}

func forbidden(from, to string) string {
	switch {
	case room(from) == "internal":
		if to != "." && room(to) != "internal" {
			return "internal/ imports only the root, the standard library and codecs"
		}
		return ""
	case room(to) == "internal", room(from) == room(to):
		if from == "." {
			return "the root package imports nothing of ours"
		}
		return ""
	case exceptions[from] == to:
		return ""
	case floors[room(to)] >= floors[room(from)]:
		return "only rooms on lower floors may be imported"
	}
	return ""
}

// The test of the test: rules that never say no protect nothing.
func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"mta", "queue", true}, {"mta", "auth/spf", true}, {"mta", ".", true}, {"msa", "internal/smtpd", true},
		{"examples/pipeline", "mda/mailbox", true}, {"mda/lmtp", "mta/smtpclient", true}, {"queue/filequeue", "queue", true},
		{"internal/smtpd", ".", true}, {"internal/smtpd", "internal/wire", true},
		{"mta", "msa", false}, {"mda", "mta/smtpclient", false}, {"queue", "mta", false}, {"auth", "queue", false},
		{".", "auth", false}, {".", "internal/wire", false}, {"internal/smtpd", "queue", false}, {"auth", "examples/pipeline", false},
	} {
		if (forbidden(c.from, c.to) == "") != c.ok {
			t.Errorf("%s imports %s: allowed is %v", c.from, c.to, !c.ok)
		}
	}
}

// What makes data durable is in one place, where its faults can be injected.
func TestOnlyDurableSyncs(t *testing.T) {
	for _, p := range load(t) {
		if p.dir == "internal/durable" || strings.HasPrefix(p.dir, "internal/durable/") || isKit(p.dir) {
			continue
		}
		for name, f := range p.files {
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, _ := sel.X.(*ast.Ident)
				if s := sel.Sel.Name; s == "Fsync" || s == "Fdatasync" || s == "FlushFileBuffers" ||
					x != nil && x.Name == "os" && (s == "Rename" || s == "WriteFile") && room(p.dir) != "examples" {
					t.Errorf("%s: %s.%s belongs to internal/durable", path.Join(p.dir, name), x, s)
				}
				return true
			})
		}
	}
}
