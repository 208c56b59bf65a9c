package docs

import (
	"fmt"
	"go/ast"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestEveryListedLimitHasTheValueOfTheCode(t *testing.T) {
	tr := parseTree(t, "internal", "cmd")
	listed := map[string]bool{}
	for _, r := range rows(t, "limits.md") {
		if r.section == "Memory" || r.section == "Under attack" {
			continue
		}
		name := strings.Trim(r.cells[0], "`")
		where := r.section + "." + name
		if len(r.cells) != 3 || r.cells[2] == "" || listed[where] {
			t.Errorf("%s: the row is %q, or there twice", where, r.cells)
		}
		listed[where] = true
		c := tr.consts[r.section][name]
		if c == nil {
			t.Errorf("%s is no constant of the code", where)
			continue
		}
		got, err := tr.value(r.section, c.value)
		if err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		if want, err := written(r.cells[1]); err != nil || got != want {
			t.Errorf("%s is %v, the page says %s, %v", where, got, r.cells[1], err)
		}
	}
}

// mostMemory leaves room for the kernel below the unit's MemoryMax of 512 MiB.
const mostMemory = 400

func TestTheMemoryLimitsAreTheSumsOfTheCodeAndStayBelow400MiB(t *testing.T) {
	tr := parseTree(t, "internal")
	sum, total := int64(0), int64(0)
	for _, r := range rows(t, "limits.md") {
		if r.section != "Memory" {
			continue
		}
		want, err := strconv.ParseInt(r.cells[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if r.cells[0] == "all together" {
			total = want
			continue
		}
		got, err := tr.sum(r.cells[2])
		if got = (got + 1<<20 - 1) >> 20; err != nil || got != want {
			t.Errorf("%s: the page says %d MiB, the code %d MiB, %v", r.cells[0], want, got, err)
		}
		sum += want
	}
	if sum != total || sum > mostMemory {
		t.Errorf("the rows are %d MiB, the page says %d; at most %d", sum, total, mostMemory)
	}
}

// sum computes "`pkg.Name` × 12 KiB + 4 × 2 MiB", in bytes.
func (tr *tree) sum(terms string) (sum int64, err error) {
	for term := range strings.SplitSeq(terms, " + ") {
		product := int64(1)
		for factor := range strings.SplitSeq(term, " × ") {
			var a amount
			if pkg, name, ok := strings.Cut(strings.Trim(factor, "`"), "."); ok {
				a, err = tr.value(filepath.Join("internal", pkg), ast.NewIdent(name))
			} else {
				a, err = written(factor)
			}
			if err != nil {
				return 0, err
			}
			product *= a.n
		}
		sum += product
	}
	return sum, nil
}

// An amount is the value of a limit.
type amount struct {
	n          int64 // nanoseconds, if it is a duration
	isDuration bool
}

func (a amount) String() string {
	if a.isDuration {
		return time.Duration(a.n).String()
	}
	return strconv.FormatInt(a.n, 10)
}

var timeUnits = map[string]time.Duration{
	"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour,
}

// value computes a constant's value: whole numbers, durations, and names of
// other constants.
func (tr *tree) value(folder string, e ast.Expr) (amount, error) {
	switch e := e.(type) {
	case *ast.BasicLit:
		n, err := strconv.ParseInt(e.Value, 0, 64)
		return amount{n: n}, err
	case *ast.Ident:
		if c := tr.consts[folder][e.Name]; c != nil {
			return tr.value(folder, c.value)
		}
	case *ast.SelectorExpr:
		pkg, ok := e.X.(*ast.Ident)
		if !ok {
			break
		}
		if unit, ok := timeUnits[e.Sel.Name]; ok && pkg.Name == "time" {
			return amount{int64(unit), true}, nil
		}
		folder := filepath.Join("internal", pkg.Name)
		if c := tr.consts[folder][e.Sel.Name]; c != nil {
			return tr.value(folder, c.value)
		}
	case *ast.BinaryExpr:
		return tr.binary(folder, e)
	case *ast.CallExpr: // a conversion, or the length of a literal
		if len(e.Args) != 1 {
			break
		}
		if lit, ok := e.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			s, err := strconv.Unquote(lit.Value)
			return amount{n: int64(len(s))}, err
		}
		return tr.value(folder, e.Args[0])
	}
	return amount{}, fmt.Errorf("%T is more than this test understands", e)
}

func (tr *tree) binary(folder string, e *ast.BinaryExpr) (amount, error) {
	x, err := tr.value(folder, e.X)
	if err != nil {
		return x, err
	}
	y, err := tr.value(folder, e.Y)
	if err != nil {
		return y, err
	}
	is := x.isDuration || y.isDuration
	switch e.Op {
	case token.ADD:
		return amount{x.n + y.n, is}, nil
	case token.SUB:
		return amount{x.n - y.n, is}, nil
	case token.MUL:
		return amount{x.n * y.n, is}, nil
	case token.SHL:
		return amount{x.n << y.n, is}, nil
	}
	return amount{}, fmt.Errorf("operator %s is more than this test understands", e.Op)
}

// units are those of the page.
var units = map[string]amount{
	"": {1, false}, "KiB": {1 << 10, false}, "MiB": {1 << 20, false}, "GiB": {1 << 30, false},
	"ms": {int64(time.Millisecond), true}, "s": {int64(time.Second), true}, "min": {int64(time.Minute), true},
	"h": {int64(time.Hour), true}, "d": {int64(24 * time.Hour), true},
}

// written reads a value as the page has it: "10 s", "64 KiB", "4,096".
func written(s string) (amount, error) {
	digits, name, _ := strings.Cut(s, " ")
	unit, ok := units[name]
	if !ok {
		return amount{}, fmt.Errorf("unit %q is not known", name)
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(digits, ",", ""), 10, 64)
	return amount{n * unit.n, unit.isDuration}, err
}
