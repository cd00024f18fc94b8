package deps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// A test skips through internal/need, which fails it where everything must run. Only
// the word to rapid that a drawn action does not apply is something else: it discards
// a draw, not a test.
func TestTestsAreSkippedThroughNeedOnly(t *testing.T) {
	eachGoFile(t, func(path string, source []byte) {
		if under(path, "internal/need") {
			return
		}
		for _, where := range skips(t, path, source) {
			t.Errorf("%s: skips by itself: call need.Skip, which fails where everything must run", where)
		}
	})
}

// skips lists the calls of Skip, Skipf and SkipNow of a file, but need's and rapid's.
func skips(t *testing.T, path string, source []byte) (found []string) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, source, parser.SkipObjectResolution)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return nil
	}
	var visit func(node ast.Node, rapid bool)
	visit = func(node ast.Node, rapid bool) {
		ast.Inspect(node, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit:
				if drawn := takesRapid(n.Type); drawn != rapid {
					visit(n.Body, drawn)
					return false
				}
			case *ast.CallExpr:
				call, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || !strings.HasPrefix(call.Sel.Name, "Skip") || rapid {
					return true
				}
				if x, ok := call.X.(*ast.Ident); ok && x.Name == "need" {
					return true
				}
				found = append(found, files.Position(n.Pos()).String())
			}
			return true
		})
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		visit(d, ok && takesRapid(f.Type))
	}
	return found
}

// takesRapid says whether a function's first parameter is a *rapid.T.
func takesRapid(f *ast.FuncType) bool {
	if len(f.Params.List) == 0 {
		return false
	}
	star, ok := f.Params.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	named, ok := star.X.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	from, ok := named.X.(*ast.Ident)
	return ok && from.Name == "rapid" && named.Sel.Name == "T"
}

func TestSkipsAreFound(t *testing.T) {
	for body, want := range map[string]int{
		"func f(t *testing.T) { t.Skip() }":                                                1,
		"func f(t *testing.T) { t.Run(``, func(t *testing.T) { t.Skipf(``) }) }":           1,
		"func f(tb testing.TB) { if true { tb.SkipNow() } }":                               1,
		"func f(t *testing.T) { need.Skip(t, ``) }":                                        0,
		"func f(t *testing.T) { rapid.Check(t, func(t *rapid.T) { t.Skip(``) }) }":         0,
		"func f(t *rapid.T) { t.Skip(``) }":                                                0,
		"func f(t *testing.T) { rapid.Check(t, func(t *rapid.T) {}); t.Skip(`too late`) }": 1,
	} {
		if found := skips(t, "x.go", []byte("package p\n"+body+"\n")); len(found) != want {
			t.Errorf("%s: found %v, want %d", body, found, want)
		}
	}
}
