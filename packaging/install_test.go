// Package packaging has no code: its tests hold the descriptions of the packages
// against each other.
package packaging

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The two packages for Debian, nfpm's and the source package's, have the same files.
func TestInstallAndNfpmInstallTheSameFiles(t *testing.T) {
	root := t.TempDir()
	t.Setenv("PROGRAM", "LICENSE") // any file does
	if out, err := exec.Command("./install", root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	installed := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			installed[strings.TrimPrefix(path, root)] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// debhelper compresses, and installs these.
	for _, page := range []string{"man8/sts-tlsmap.8", "man5/sts-tlsmap.toml.5"} {
		delete(installed, "/usr/share/man/"+page)
		installed["/usr/share/man/"+page+".gz"] = true
	}
	for _, path := range []string{"/usr/share/doc/sts-tlsmap/changelog.gz", "/usr/share/doc/sts-tlsmap/copyright", "/usr/share/lintian/overrides/sts-tlsmap"} {
		installed[path] = true
	}
	nfpm := debFiles(t)
	for path := range nfpm {
		// Of the source package, the copyright file has these licences.
		if !installed[path] && path != "/usr/share/doc/sts-tlsmap/third-party.txt" {
			t.Errorf("only nfpm.yaml installs %s", path)
		}
	}
	for path := range installed {
		if !nfpm[path] {
			t.Errorf("only packaging/install installs %s", path)
		}
	}
}

// debFiles returns the files of the .deb in nfpm.yaml.
func debFiles(t *testing.T) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	_, contents, _ := strings.Cut(read(t, "nfpm.yaml"), "\ncontents:\n")
	contents, _, _ = strings.Cut(contents, "\noverrides:\n")
	for entry := range strings.SplitSeq(contents, "\n  - ") {
		keys := map[string]string{}
		for line := range strings.Lines(entry) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && !strings.HasPrefix(key, "#") {
				keys[key] = value
			}
		}
		switch {
		case keys["packager"] != "" && keys["packager"] != "deb", keys["type"] == "dir", keys["dst"] == "":
		case keys["type"] == "tree": // packaging/build copies README and docs
			files[keys["dst"]+"/README.md"] = true
			for _, kind := range []string{"md", "png", "svg"} {
				found, err := filepath.Glob("../docs/*." + kind)
				if err != nil {
					t.Fatal(err)
				}
				for _, path := range found {
					files[keys["dst"]+"/docs/"+filepath.Base(path)] = true
				}
			}
		default:
			files[keys["dst"]] = true
		}
	}
	return files
}

func TestTheChangelogsHaveTheSameVersion(t *testing.T) {
	nfpm := regexp.MustCompile(`(?m)^- semver: (.*)$`).FindStringSubmatch(read(t, "changelog.yaml"))
	debian := regexp.MustCompile(`^sts-tlsmap \((.*)-1\) `).FindStringSubmatch(read(t, "debian/changelog"))
	if nfpm == nil || debian == nil || nfpm[1] != debian[1] {
		t.Errorf("changelog.yaml begins with %q, debian/changelog with %q", nfpm, debian)
	}
}

// The source package has the libraries.
func TestTheCopyrightFileCoversEachModule(t *testing.T) {
	covered := regexp.MustCompile(`(?m)^(?:Files:)? vendor/(.*)/\*$`).FindAllStringSubmatch(read(t, "debian/copyright"), -1)
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v`).FindAllStringSubmatch(read(t, "../go.mod"), -1) {
		if !slices.ContainsFunc(covered, func(c []string) bool { return strings.HasPrefix(m[1]+"/", c[1]+"/") }) {
			t.Errorf("no files of vendor/%s", m[1])
		}
	}
}

func TestDebianBuildsWithTheGoOfTheModule(t *testing.T) {
	want := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))[1]
	if !strings.Contains(read(t, "debian/control"), " golang-"+want+"-go,") || !strings.Contains(read(t, "debian/rules"), "/usr/lib/go-"+want+"/bin") {
		t.Errorf("debian/control or debian/rules does not name Go %s", want)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
