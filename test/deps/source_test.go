package deps

import (
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The only package with ioctls on userfaultfds.
const uffdPackage = "handler/uffd"

// unsafePackages may import unsafe in any file; elsewhere its file is called
// *_unsafe.go, or is a test. Add a package here with its reason.
var unsafePackages = []string{}

// eachGoFile walks the source rather than asking `go list`, which leaves out
// files that are built elsewhere. The path is relative to the module.
func eachGoFile(t *testing.T, visit func(path string, source []byte)) {
	t.Helper()
	root := "../.."
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != root && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(relative), source)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUffdAloneHasUffdIoctls(t *testing.T) {
	eachGoFile(t, func(path string, source []byte) {
		if under(path, uffdPackage) || strings.HasSuffix(path, "_test.go") {
			return
		}
		for _, found := range uffdIoctls(source) {
			t.Errorf("%s: %s: ioctls on userfaultfds belong into %s", path, found, uffdPackage)
		}
	})
}

// uffdIoctls finds names and numbers of them in code, not in comments and text.
func uffdIoctls(source []byte) []string {
	var found []string
	files := token.NewFileSet()
	file := files.AddFile("", files.Base(), len(source))
	var tokens scanner.Scanner
	tokens.Init(file, source, nil, 0)
	for {
		position, kind, text := tokens.Scan()
		if kind == token.EOF {
			return found
		}
		name := kind == token.IDENT && strings.Contains(strings.ToUpper(text), "UFFDIO")
		if name || kind == token.INT && isUffdIoctl(text) {
			found = append(found, "line "+strconv.Itoa(file.Line(position))+": "+text)
		}
	}
}

// isUffdIoctl knows them by their type byte, 0xAA (linux/userfaultfd.h): alone,
// or in bits 8 to 15 of a number with small command in the byte below.
func isUffdIoctl(literal string) bool {
	number, err := strconv.ParseUint(literal, 0, 64)
	hex := strings.HasPrefix(strings.ToLower(literal), "0x")
	if err != nil || !hex || number > 1<<32-1 {
		return false
	}
	return number == 0xAA || number>>8&0xff == 0xAA && number&0xff <= 0x3f
}

func TestUffdIoctlsAreKnownByNameAndByNumber(t *testing.T) {
	for text, want := range map[string]int{
		"const UFFDIO_COPY = 1":              1,
		"var n = uffdioMove(3)":              1,
		"const api = 0xc018aa3f":             1,
		"const kind = 0xAA":                  1,
		"// UFFDIO_COPY, 0xc018aa3f":         0,
		`var s = "UFFDIO_POISON"`:            0,
		"const mix = 0x9e3779b97f4aaa15":     0,
		"const n, m = 0xaabb, 43534 // 0xaa": 0,
	} {
		if found := uffdIoctls([]byte("package p\n" + text + "\n")); len(found) != want {
			t.Errorf("%q: found %v, want %d", text, found, want)
		}
	}
}

func TestUnsafeIsInFilesThatSaySo(t *testing.T) {
	eachGoFile(t, func(path string, source []byte) {
		if strings.HasSuffix(path, "_unsafe.go") || strings.HasSuffix(path, "_test.go") || underOneOf(path, unsafePackages) {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, source, parser.ImportsOnly)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		if importsUnsafe(file) {
			t.Errorf("%s imports unsafe: move that part into a file *_unsafe.go", path)
		}
	})
}

func importsUnsafe(file *ast.File) bool {
	for _, one := range file.Imports {
		if one.Path.Value == `"unsafe"` {
			return true
		}
	}
	return false
}
