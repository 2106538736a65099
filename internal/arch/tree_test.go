package arch

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	module = "github.com/mailspine/mailspine"
	root   = "../.."
)

// A pkg is one package of the module, with its files parsed.
type pkg struct {
	dir   string // relative to the root, "." for the root package, with slashes
	name  string
	fset  *token.FileSet
	files map[string]*ast.File // without tests, by file name
	tests map[string]*ast.File
}

func (p *pkg) path() string { return path.Join(module, p.dir) }

func (p *pkg) isMain() bool { return p.name == "main" }
func (p *pkg) isInternal() bool {
	return strings.HasPrefix(p.dir, "internal/") || strings.Contains(p.dir, "/internal/")
}

// isKit tells the packages that serve tests: xxxtest.
func isKit(dir string) bool { return strings.HasSuffix(dir, "test") }

// load parses the root module. Nested modules are their own affair.
func load(t *testing.T) []*pkg {
	t.Helper()
	byDir := map[string]*pkg{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != root && (strings.HasPrefix(n, ".") || strings.HasPrefix(n, "_") || n == "testdata") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != root {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		rel, _ := filepath.Rel(root, filepath.Dir(p))
		dir := filepath.ToSlash(rel)
		q := byDir[dir]
		if q == nil {
			q = &pkg{dir: dir, fset: token.NewFileSet(), files: map[string]*ast.File{}, tests: map[string]*ast.File{}}
			byDir[dir] = q
		}
		f, err := parser.ParseFile(q.fset, p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if strings.HasSuffix(p, "_test.go") {
			q.tests[d.Name()] = f
		} else {
			q.files[d.Name()] = f
			q.name = f.Name.Name
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []*pkg
	for _, q := range byDir {
		if len(q.files) > 0 {
			pkgs = append(pkgs, q)
		}
	}
	slices.SortFunc(pkgs, func(a, b *pkg) int { return strings.Compare(a.dir, b.dir) })
	if len(pkgs) < 2 {
		t.Fatalf("found %d packages below %s", len(pkgs), root)
	}
	return pkgs
}

// golden compares text with a file below testdata, or rewrites that.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Errorf("%v; go test ./internal/arch -update writes it", err)
		return
	}
	if string(want) == got {
		return
	}
	w, g := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for _, l := range w {
		if !slices.Contains(g, l) {
			t.Errorf("%s: gone: %s", name, l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			t.Errorf("%s: new: %s", name, l)
		}
	}
	t.Errorf("%s differs; if that is meant, go test ./internal/arch -update", name)
}
