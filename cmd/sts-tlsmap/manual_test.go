package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
)

// packaged reads a file of packaging/.
func packaged(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../packaging", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// programFlags are the names of all flags, sorted.
func programFlags() []string {
	names := []string{"help"} // package flag's own
	for _, m := range modes {
		names = append(names, m.name)
	}
	for _, o := range options {
		names = append(names, o.name)
	}
	slices.Sort(names)
	return names
}

func TestEveryFlagIsWhereFlagsAreListedAndNoOther(t *testing.T) {
	for _, c := range []struct {
		name, text, mention string
		without             []string
	}{
		{"-help", usage(), `(?m)^  -([\w-]+)`, []string{"help"}},
		{"sts-tlsmap(8)", packaged(t, "man/sts-tlsmap.8"), `(?m)^\.It Fl ([\w-]+)`, nil},
		{"bash", strings.Split(packaged(t, "completion/sts-tlsmap.bash"), "esac")[1], `[' ]-(\w[\w-]*)`, []string{"t", "W", "F"}},
		{"zsh", packaged(t, "completion/_sts-tlsmap"), `(?m)^\s(?:"\(\$modes\)|')-([\w-]+)\[`, nil},
		{"fish", packaged(t, "completion/sts-tlsmap.fish"), ` -o ([\w-]+)`, nil},
	} {
		var got []string
		for _, m := range regexp.MustCompile(c.mention).FindAllStringSubmatch(c.text, -1) {
			got = append(got, m[1])
		}
		want := slices.DeleteFunc(programFlags(), func(f string) bool { return slices.Contains(c.without, f) })
		got = slices.DeleteFunc(got, func(f string) bool { return slices.Contains(c.without, f) })
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s lists %q\nthe program has %q", c.name, got, want)
		}
	}
}

func TestNoLineOfTheUsageIsWiderThanATerminalOf80Columns(t *testing.T) {
	for line := range strings.Lines(usage()) {
		if line = strings.TrimSuffix(line, "\n"); len(line) > 79 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

// A flag's value that the program knows by heart is offered by the shells, and
// named where the flag is described.
func TestTheValuesOfFlagsAreWhereTheyAreListedAndNoOthers(t *testing.T) {
	var builtIn []string
	for _, m := range config.Default().Maps {
		builtIn = append(builtIn, m.Name)
	}
	mtas := slices.Sorted(maps.Keys(recipes))
	slices.Sort(builtIn)
	bash, zsh, fish := packaged(t, "completion/sts-tlsmap.bash"), packaged(t, "completion/_sts-tlsmap"), packaged(t, "completion/sts-tlsmap.fish")
	man := packaged(t, "man/sts-tlsmap.8")
	for _, c := range []struct {
		name, text, mention string
		want                []string
	}{
		{"-help", usage(), `(?m)^  -recipe (\S+)`, mtas},
		{"bash", bash, `-recipe\)\n.*compgen -W '([^']*)'`, mtas},
		{"zsh", zsh, `-recipe\[.*\]:relay:\((.*?)\)`, mtas},
		{"fish", fish, `-o recipe -x -a '([^']*)'`, mtas},
		{"sts-tlsmap(8), SYNOPSIS", man, `(?m)^\.Fl recipe Cm (.+)$`, mtas},
		{"sts-tlsmap(8), Modes", man, `(?m)^\.It Fl recipe Cm (.+)$`, mtas},
		{"bash", bash, `-map\)\n.*compgen -W '([^']*)'`, builtIn},
		{"zsh", zsh, `-map\[.*\]:map:\((.*?)\)`, builtIn},
		{"fish", fish, `-o map -x -a '([^']*)'`, builtIn},
	} {
		m := regexp.MustCompile(c.mention).FindStringSubmatch(c.text)
		if m == nil {
			t.Errorf("%s does not have %s", c.name, c.mention)
			continue
		}
		got := strings.FieldsFunc(m[1], func(r rune) bool { return r == ' ' || r == '|' })
		got = slices.DeleteFunc(got, func(word string) bool { return strings.ContainsAny(word, "$'\"_") }) // of the shell: what the configuration adds
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s lists %q\nthe program has %q", c.name, got, c.want)
		}
	}
}

func TestTheREADMEListsEveryFlagAndNoOther(t *testing.T) {
	_, rest, _ := strings.Cut(packaged(t, "../README.md"), "## Command line\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	got := []string{"help"} // not worth a row
	for _, m := range regexp.MustCompile("[`[ ]-([\\w-]+)").FindAllStringSubmatch(section, -1) {
		got = append(got, m[1])
	}
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, programFlags()) {
		t.Errorf("README.md lists %q\nthe program has %q", got, programFlags())
	}
}

// manualKeys are the keys in sts-tlsmap.toml(5) in their order, with their
// defaults in TOML. A key without one has "".
func manualKeys(t *testing.T) (keys []string, values map[string]string) {
	t.Helper()
	values = map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\.It Ic (\S+)(?: No = (.+))?$`).FindAllStringSubmatch(packaged(t, "man/sts-tlsmap.toml.5"), -1) {
		keys = append(keys, m[1])
		values[m[1]] = fromMdoc(m[2])
	}
	return keys, values
}

// fromMdoc undoes mdoc's brackets and quotes.
func fromMdoc(value string) string {
	word, rest, _ := strings.Cut(value, " ")
	switch word {
	case "Bq":
		return "[" + fromMdoc(rest) + "]"
	case "Qq":
		return `"` + rest + `"`
	}
	return value
}

func TestEveryKeyIsInTheManualAndNoOther(t *testing.T) {
	keys, _ := manualKeys(t)
	slices.Sort(keys)
	if want := config.Keys(); !slices.Equal(keys, want) {
		t.Errorf("sts-tlsmap.toml(5) has %q\nthe program has   %q", keys, want)
	}
}

func TestTheDefaultsInTheManualAreTheProgrammes(t *testing.T) {
	keys, values := manualKeys(t)
	sections := map[string]string{}
	for _, k := range keys {
		if values[k] == "" {
			continue
		}
		section, name := "", k
		if i := strings.LastIndexByte(k, '.'); i >= 0 {
			section, name = k[:i], k[i+1:]
		}
		sections[section] += name + " = " + values[k] + "\n"
	}
	text := sections[""]
	delete(sections, "")
	for section, lines := range sections {
		text += "[" + section + "]\n" + lines
	}
	got, err := config.Parse("/etc/manual.toml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want, err := config.Parse("/etc/manual.toml", []byte("dns.servers = []\nexempt.domains = []\ntlsrpt.skip = []\n[map.NAME]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("with the defaults of the manual:\n%+v\nwithout:\n%+v", got, want)
	}
}

// manualText returns what sts-tlsmap.toml(5) says of a key, a line's macros and
// words as they stand in the source.
func manualText(t *testing.T, key string) string {
	t.Helper()
	_, text, found := strings.Cut(packaged(t, "man/sts-tlsmap.toml.5"), "\n.It Ic "+key+" ")
	if !found {
		_, text, found = strings.Cut(packaged(t, "man/sts-tlsmap.toml.5"), "\n.It Ic "+key+"\n")
	}
	if !found {
		t.Fatalf("%s is not in the manual", key)
	}
	end := regexp.MustCompile(`\n\.(?:It|El)\b`).FindStringIndex(text)
	return text[:end[0]]
}

// complaint is what the program says of a value that a key does not take.
func complaint(t *testing.T, key, value string) string {
	t.Helper()
	_, err := config.Parse("f", []byte(key+" = "+value+"\n"))
	if err == nil {
		t.Fatalf("%s takes %.40s", key, value)
	}
	_, expected, _ := strings.Cut(err.Error(), "; expected ")
	return expected
}

// What a key takes stands in the manual as the program says it itself when it
// is given something else. A date is what no key takes.
func TestTheRangesInTheManualAreTheProgrammes(t *testing.T) {
	const date = "2026-01-01"
	ranged := regexp.MustCompile(`^a (?:whole number|duration|size|list) (?:from|of) (?:\S+ to|at most) [^\s,]+`)
	words := regexp.MustCompile(`"([a-z]+)"`)
	free := map[string]bool{} // neither a range nor a choice: a path, an endpoint, a mode
	for _, key := range config.Keys() {
		text, takes := manualText(t, key), complaint(t, key, date)
		var want []string
		switch {
		case ranged.MatchString(takes):
			want = []string{"A" + strings.TrimPrefix(ranged.FindString(takes), "a")}
		case strings.HasPrefix(takes, "true or false"):
			want = []string{".Cm true\n", ".Cm false"}
		case words.MatchString(takes):
			for _, m := range words.FindAllStringSubmatch(takes, -1) {
				want = append(want, ".Ql "+m[1])
			}
		default:
			free[key] = true
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q is not in the manual, which has\n%s", key, w, text)
			}
		}
	}
	// These the program does not put into words that the manual could repeat.
	for key, c := range map[string]struct{ says, last, beyond string }{
		"socket.mode":   {".Ql 0777 ", `"0777"`, `"1000"`},
		"control":       {".Ql unix:/PATH ", `"unix:/c"`, `"inet:127.0.0.1:1"`},
		"metrics":       {".Ql inet:ADDRESS:PORT ", `"inet:127.0.0.1:1"`, `"unix:/m"`},
		"cache.path":    {"A path;", `"/c"`, `""`},
		"fetch.ca_file": {"A path to a file that has at least one; empty:", `""`, `"/nowhere/ca.pem"`},
		"exempt.file":   {fmt.Sprintf("A path to a file that exists, of at most %d MiB; empty:", config.MaxExemptFile>>20), `""`, `"/nowhere/list"`},

		"tlsrpt.organization":   {"The name of", `""`, `7`},
		"tlsrpt.contact":        {"The mail address", `""`, `7`},
		"tlsrpt.sender":         {"The mail address", `""`, `7`},
		"tlsrpt.postfix_socket": {".Ql unix:/PATH .", `"unix:/r"`, `"inet:127.0.0.1:1"`},
		"tlsrpt.exim_socket":    {".Ql unix:/PATH ,", `""`, `"inet:127.0.0.1:1"`},
		"tlsrpt.path":           {"A path;", `"/r"`, `""`},
		"tlsrpt.submit":         {".Ql smtp:HOST:PORT ,", `"sendmail:/s"`, `"lmtp:/s"`},
		"tlsrpt.dkim_key":       {"A file with", `""`, `7`},
		"tlsrpt.dkim_selector":  {"The selector", `""`, `7`},

		"fleet.url":           {".Ql valkey://USER@HOST:6379 ,", `"clusters://a,b:1"`, `"http://a"`},
		"fleet.password_file": {"A file with", `""`, `7`},
		"fleet.key_file":      {"a file with", `""`, `7`},
		"fleet.ca_file":       {"Certificates in PEM form", `""`, `7`},
		"fleet.prefix":        {"The beginning", `"x"`, `7`},
		"fleet.name":          {"The name", `""`, `7`},
	} {
		if text := manualText(t, key); !strings.Contains(text, c.says) {
			t.Errorf("%s: %q is not in the manual, which has\n%s", key, c.says, text)
		}
		if _, err := config.Parse("/etc/f", []byte(key+" = "+c.last+"\n")); err != nil {
			t.Error(err)
		}
		if _, err := config.Parse("/etc/f", []byte(key+" = "+c.beyond+"\n")); err == nil {
			t.Errorf("%s takes %s", key, c.beyond)
		}
		delete(free, key)
	}
	for key := range free {
		t.Errorf("%s: nothing compares what it takes with the manual", key)
	}
}

// The file that the packages install changes nothing, and what it shows as
// defaults are the defaults.
func TestThePackagedConfigurationIsTheDefault(t *testing.T) {
	file := packaged(t, "etc/sts-tlsmap.toml")
	uncommented := regexp.MustCompile(`(?m)^#(\w+ = )`).ReplaceAllString(file, "$1")
	if uncommented == file {
		t.Error("the file shows no defaults")
	}
	want, err := config.Parse("/etc/x.toml", []byte("dns.servers = []\nexempt.domains = []\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse("/etc/x.toml", []byte(uncommented))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("with what it shows:\n%+v\nthe defaults:\n%+v", got, want)
	}
	plain, err := config.Parse("/etc/x.toml", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if empty, _ := config.Parse("/etc/x.toml", nil); !reflect.DeepEqual(plain, empty) {
		t.Errorf("as it is installed:\n%+v\nthe defaults:\n%+v", plain, empty)
	}
}
