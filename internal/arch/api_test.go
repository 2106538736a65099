package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/doc"
	"go/printer"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Each package's exported API is a golden file: a change of it is a visible diff.
func TestExportedAPI(t *testing.T) {
	want := map[string]bool{}
	for _, p := range load(t) {
		if p.isMain() || p.isInternal() {
			continue
		}
		name := "api/" + strings.ReplaceAll(p.dir, "/", ".") + ".txt"
		if p.dir == "." {
			name = "api/mailspine.txt"
		}
		want[filepath.Base(name)] = true
		golden(t, name, strings.Join(api(t, p), "\n")+"\n")
	}
	files, _ := os.ReadDir("testdata/api")
	for _, f := range files {
		if !want[f.Name()] {
			if *update {
				os.Remove(filepath.Join("testdata/api", f.Name()))
				continue
			}
			t.Errorf("testdata/api/%s: its package is gone", f.Name())
		}
	}
}

func docOf(t *testing.T, p *pkg) *doc.Package {
	t.Helper()
	// doc.NewFromFiles edits the files it is given, so they are not used again.
	files := slices.Collect(maps.Values(p.files))
	d, err := doc.NewFromFiles(p.fset, files, p.path())
	if err != nil {
		t.Fatalf("%s: %v", p.dir, err)
	}
	return d
}

func api(t *testing.T, p *pkg) []string {
	d := docOf(t, p)
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	values := func(kind string, vs []*doc.Value) {
		for _, v := range vs {
			for _, n := range v.Names {
				if token.IsExported(n) {
					add("%s %s", kind, n)
				}
			}
		}
	}
	funcs := func(fs []*doc.Func) {
		for _, f := range fs {
			f.Decl.Body, f.Decl.Doc = nil, nil
			add("%s", oneLine(p.fset, f.Decl))
		}
	}
	values("const", d.Consts)
	values("var", d.Vars)
	funcs(d.Funcs)
	for _, ty := range d.Types {
		for _, s := range ty.Decl.Specs {
			spec := s.(*ast.TypeSpec)
			switch x := spec.Type.(type) {
			case *ast.StructType:
				add("type %s struct", spec.Name)
				fields(p.fset, x.Fields, func(s string) { add("type %s struct, %s", spec.Name, s) })
			case *ast.InterfaceType:
				add("type %s interface", spec.Name)
				fields(p.fset, x.Methods, func(s string) { add("type %s interface, %s", spec.Name, s) })
			default:
				add("type %s %s", spec.Name, oneLine(p.fset, spec.Type))
			}
		}
		values("const", ty.Consts)
		values("var", ty.Vars)
		funcs(ty.Funcs)
		funcs(ty.Methods)
	}
	slices.Sort(out)
	return out
}

func fields(fset *token.FileSet, list *ast.FieldList, add func(string)) {
	for _, f := range list.List {
		typ := oneLine(fset, f.Type)
		if len(f.Names) == 0 {
			add(typ)
		}
		for _, n := range f.Names {
			if token.IsExported(n.Name) {
				add(n.Name + " " + typ)
			}
		}
	}
}

func oneLine(fset *token.FileSet, n any) string {
	var b bytes.Buffer
	printer.Fprint(&b, fset, n)
	return strings.Join(strings.Fields(b.String()), " ")
}

// go doc of every package reads as documentation: everything exported has a
// comment, each package has its page in doc.go, and an example.
func TestDocumented(t *testing.T) {
	for _, p := range load(t) {
		if f := p.files["doc.go"]; f == nil || f.Doc == nil {
			t.Errorf("%s: no doc.go with the package's page", p.dir)
		}
		if !p.isMain() && !p.isInternal() {
			found := false
			for _, f := range p.tests {
				for _, ex := range doc.Examples(f) {
					found = found || ex.Output != "" || ex.EmptyOutput
				}
			}
			if !found {
				t.Errorf("%s: no Example with output", p.dir)
			}
		}
		d := docOf(t, p)
		undocumented := func(what, name, text string) {
			if strings.TrimSpace(text) == "" && token.IsExported(name) {
				t.Errorf("%s: %s %s has no comment", p.dir, what, name)
			}
		}
		values := func(vs []*doc.Value) {
			for _, v := range vs {
				for _, s := range v.Decl.Specs {
					spec := s.(*ast.ValueSpec)
					for _, n := range spec.Names {
						undocumented("value", n.Name, v.Doc+spec.Doc.Text()+spec.Comment.Text())
					}
				}
			}
		}
		funcs := func(fs []*doc.Func) {
			for _, f := range fs {
				undocumented("func", f.Name, f.Doc)
			}
		}
		values(d.Consts)
		values(d.Vars)
		funcs(d.Funcs)
		for _, ty := range d.Types {
			undocumented("type", ty.Name, ty.Doc)
			values(ty.Consts)
			values(ty.Vars)
			funcs(ty.Funcs)
			for _, m := range ty.Methods {
				// Methods that implement a well-known interface speak for
				// themselves in some code bases; here they do not.
				undocumented("method", ty.Name+"."+m.Name, m.Doc)
			}
		}
	}
}

// A file of over 900 lines wants splitting, and a mark means unfinished work.
func TestFiles(t *testing.T) {
	for _, p := range load(t) {
		for _, files := range []map[string]*ast.File{p.files, p.tests} {
			for name, f := range files {
				where := filepath.Join(p.dir, name)
				if n := p.fset.File(f.Pos()).LineCount(); n > 900 {
					t.Errorf("%s has %d lines", where, n)
				}
				for _, g := range f.Comments {
					for _, mark := range []string{"TO" + "DO", "FIX" + "ME", "X" + "XX"} {
						if strings.Contains(g.Text(), mark) {
							t.Errorf("%s:%d: %s", where, p.fset.Position(g.Pos()).Line, mark)
						}
					}
				}
			}
		}
	}
}
