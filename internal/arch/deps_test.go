package arch

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// requirements reads the require lines of go.mod: module path to "direct" or "indirect".
func requirements(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	req := map[string]string{}
	block := false
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		switch {
		case line == "require (":
			block = true
			continue
		case line == ")":
			block = false
			continue
		case strings.HasPrefix(line, "require "):
			line = strings.TrimPrefix(line, "require ")
		case strings.HasPrefix(line, "replace") || strings.HasPrefix(line, "tool"):
			t.Errorf("go.mod: %s: importers would not have it", line)
			continue
		case !block:
			continue
		}
		if fields := strings.Fields(line); len(fields) >= 2 {
			req[fields[0]] = "direct"
			if strings.HasSuffix(line, "// indirect") {
				req[fields[0]] = "indirect"
			}
		}
	}
	return req
}

// A dependency is a decision: it needs its line here and in docs/design.md.
func TestDependencies(t *testing.T) {
	var lines []string
	for m, how := range requirements(t) {
		lines = append(lines, how+" "+m)
	}
	slices.Sort(lines)
	golden(t, "deps.txt", strings.Join(lines, "\n")+"\n")

	design, err := os.ReadFile(filepath.Join(root, "docs", "design.md"))
	if err != nil {
		t.Fatal(err)
	}
	for m, how := range requirements(t) {
		short := strings.TrimPrefix(m, "github.com/")
		if how == "direct" && !strings.Contains(string(design), short) && !strings.Contains(string(design), strings.TrimPrefix(m, "golang.org/")) {
			t.Errorf("docs/design.md, Dependencies: no line for %s", m)
		}
	}
}

// What an importer of one package gets is listed by package, so that a heavy
// module cannot creep into a light one.
func TestModulesByPackage(t *testing.T) {
	out := goList(t, "list", "-deps", "-f", "{{if and .Module (not .Standard)}}{{.Module.Path}}{{end}}", ".")
	var lines []string
	for _, m := range out {
		if m != module {
			lines = append(lines, ".: "+m)
		}
	}
	for _, p := range load(t) {
		var ext []string
		for _, imp := range imports(p.files) {
			first, _, _ := strings.Cut(imp, "/")
			if strings.Contains(first, ".") && !strings.HasPrefix(imp, module) {
				ext = append(ext, moduleOf(t, imp))
			}
		}
		slices.Sort(ext)
		for _, m := range slices.Compact(ext) {
			lines = append(lines, p.dir+": "+m)
		}
	}
	slices.Sort(lines)
	golden(t, "modules.txt", strings.Join(slices.Compact(lines), "\n")+"\n")
}

func moduleOf(t *testing.T, imp string) string {
	best := ""
	for m := range requirements(t) {
		if (imp == m || strings.HasPrefix(imp, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	if best == "" {
		t.Errorf("%s belongs to no module of go.mod", imp)
	}
	return best
}

// The module graph is what an importer's go.sum sees of us.
func TestModuleGraph(t *testing.T) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Path}}", "all")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		if os.Getenv("MAILSPINE_STRICT") == "1" {
			t.Fatalf("go list -m all: %v\n%s", err, out)
		}
		t.Skipf("go list -m all needs every go.mod of the graph, and a module proxy where they are not cached: %s", out)
	}
	golden(t, "graph.txt", string(out))
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("go %s: %w", strings.Join(args, " "), err))
	}
	lines := strings.Fields(string(out))
	slices.Sort(lines)
	return slices.Compact(lines)
}
