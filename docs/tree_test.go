// Package docs has no code: its tests keep what the pages say in step with the
// program.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A tree is what the tests need to know of the program's source.
type tree struct {
	funcs  map[string][]string             // by file: "F", and "T.F" for a method
	tests  map[string]bool                 // names of test functions
	consts map[string]map[string]*constant // by folder, by name
}

// A constant is declared in a file that is no test.
type constant struct {
	file  string // its name without the folder
	value ast.Expr
}

// parseTree reads the Go files below the folders, which are given from the
// root of the repository, as are the paths in the result.
func parseTree(t *testing.T, folders ...string) *tree {
	t.Helper()
	tr := &tree{funcs: map[string][]string{}, tests: map[string]bool{}, consts: map[string]map[string]*constant{}}
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join("..", folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel("..", path)
			if err == nil {
				tr.add(filepath.ToSlash(rel), f)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func (tr *tree) add(path string, f *ast.File) {
	isTest := strings.HasSuffix(path, "_test.go")
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			tr.funcs[path] = append(tr.funcs[path], funcName(d))
			if isTest && d.Recv == nil && strings.HasPrefix(d.Name.Name, "Test") {
				tr.tests[d.Name.Name] = true
			}
		case *ast.GenDecl:
			if d.Tok == token.CONST && !isTest {
				tr.addConsts(path, d)
			}
		}
	}
}

func (tr *tree) addConsts(path string, d *ast.GenDecl) {
	folder := filepath.Dir(path)
	if tr.consts[folder] == nil {
		tr.consts[folder] = map[string]*constant{}
	}
	for _, spec := range d.Specs {
		v := spec.(*ast.ValueSpec)
		for i, name := range v.Names {
			if i < len(v.Values) {
				tr.consts[folder][name.Name] = &constant{filepath.Base(path), v.Values[i]}
			}
		}
	}
}

func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if generic, ok := typ.(*ast.IndexExpr); ok {
		typ = generic.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return id.Name + "." + d.Name.Name
	}
	return d.Name.Name
}

// A row is one row of a table of a page.
type row struct {
	section string // the heading above it, without its marks
	cells   []string
}

// rows returns the rows of all tables of a page, heads left out.
func rows(t *testing.T, page string) []row {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var found []row
	section := ""
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if heading, ok := strings.CutPrefix(line, "#"); ok {
			section = strings.TrimSpace(strings.TrimLeft(heading, "#"))
		}
		head := i+1 < len(lines) && strings.HasPrefix(lines[i+1], "|---")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || head {
			continue
		}
		// A bar within a cell is written as the entity.
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		found = append(found, row{section, cells})
	}
	return found
}

// quoted returns what stands between backquotes in a cell.
func quoted(cell string) []string {
	var list []string
	for i, part := range strings.Split(cell, "`") {
		if i%2 == 1 {
			list = append(list, part)
		}
	}
	return list
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
