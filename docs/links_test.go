package docs

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// shipped are the files that packaging/build puts into /usr/share/doc/sts-tlsmap.
func shipped(t *testing.T) (files []string) {
	t.Helper()
	build, err := os.ReadFile("../packaging/build")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^cp (.*) "\$stage/doc.*"$`).FindAllStringSubmatch(string(build), -1) {
		for _, pattern := range strings.Fields(m[1]) {
			found, err := filepath.Glob("../" + pattern)
			if err != nil || len(found) == 0 {
				t.Fatalf("packaging/build copies %s: %q, %v", pattern, found, err)
			}
			for _, f := range found {
				files = append(files, strings.TrimPrefix(filepath.ToSlash(f), "../"))
			}
		}
	}
	return files
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	code    = regexp.MustCompile("(?m)^    .*$")
)

// anchors returns the names that links to headings of a page use.
func anchors(page string) (names []string) {
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		name := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

func TestEveryRelativeLinkLeadsToAFileInThePackageToo(t *testing.T) {
	files := shipped(t)
	if len(files) < 15 || !slices.Contains(files, "README.md") || !slices.Contains(files, "docs/mail-waits.md") {
		t.Fatalf("shipped: %q", files)
	}
	links := 0
	for _, file := range files {
		if path.Ext(file) != ".md" {
			continue
		}
		page, err := os.ReadFile("../" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(string(page), ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			to := file
			if target != "" {
				to = path.Join(path.Dir(file), target)
			}
			if !slices.Contains(files, to) {
				t.Errorf("%s: (%s) leads to no file of the package", file, m[1])
				continue
			}
			if anchor == "" {
				continue
			}
			there, err := os.ReadFile("../" + to)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(anchors(string(there)), anchor) {
				t.Errorf("%s: (%s) leads to no heading", file, m[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("%d links found", links)
	}
}

// named are paths of documents in texts that the program and the package show.
var named = regexp.MustCompile(`[\w/.-]*docs/[\w-]+\.md`)

func TestShownTextsNameDocumentsWhereThePackageHasThem(t *testing.T) {
	files := shipped(t)
	shownIn, err := filepath.Glob("../packaging/*/*")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../packaging/exim/conf.d/*/*")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range append(append(shownIn, more...), "../internal/recipe/exim.go") {
		text, err := os.ReadFile(name)
		if err != nil || path.Ext(name) == ".go" && !strings.Contains(name, "recipe") {
			continue // a folder, or a comment for developers
		}
		for _, m := range named.FindAllString(string(text), -1) {
			found++
			if rest, ok := strings.CutPrefix(m, "/usr/share/doc/sts-tlsmap/"); !ok || !slices.Contains(files, rest) {
				t.Errorf("%s names %s, which is nowhere on a machine with the package", name, m)
			}
		}
	}
	if found < 5 {
		t.Errorf("%d names found", found)
	}
}
