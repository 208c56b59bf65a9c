package recipe_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
)

func TestVersions(t *testing.T) {
	for s, want := range map[string]recipe.Version{
		"3.7.11": {3, 7, 11}, "3.10.13": {3, 10, 13}, "3.11-20250315": {3, 11, 0}, "3.10.0-RC1": {3, 10, 0}, "4.0": {4, 0, 0},
	} {
		if got, err := recipe.ParseVersion(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "3", "3.", "three.four"} {
		if got, err := recipe.ParseVersion(s); err == nil {
			t.Errorf("%q is taken for %v", s, got)
		}
	}
	if v := (recipe.Version{3, 10, 4}); v.AtLeast(3, 10, 5) || !v.AtLeast(3, 10, 4) || !v.AtLeast(3, 9, 9) || v.AtLeast(4, 0, 0) {
		t.Error("versions are not compared part by part")
	}
}

func TestPostconfsOutputIsRead(t *testing.T) {
	p, err := recipe.ParsePostconf(
		"mail_version = 3.7.11\nempty =\nlist = a, b = c\nno assignment\ncompatibility_level = 3.6\n",
		"relay/unix/syslog_name = postfix/relay\nunix:a/b/unix/smtp_tls_CAfile =\nbroken = x\n",
		"smtp       inet  n       -       y       -       -       smtpd\n"+
			"smtp       unix  -       -       y       -       -       smtp\n"+
			"relay      unix  -       -       -       -       -       smtp -o syslog_name=x\n"+
			"slow       unix  -       -       n       -       -       smtp\n"+
			"short line\n")
	if err != nil {
		t.Fatal(err)
	}
	if p.Version != (recipe.Version{3, 7, 11}) || p.Settings["list"] != "a, b = c" || len(p.Settings) != 4 {
		t.Errorf("%+v", p)
	}
	if want := []recipe.Override{{"relay/unix", "syslog_name", "postfix/relay"}, {"unix:a/b/unix", "smtp_tls_CAfile", ""}}; !slices.Equal(p.Overrides, want) {
		t.Errorf("overrides %+v", p.Overrides)
	}
	if !p.Chroot {
		t.Error("the chroot of smtp/unix is not seen")
	}
	old, err := recipe.ParsePostconf("mail_version = 3.4.0\ncompatibility_level = 0\n", "", "smtp unix - - - - - smtp\n")
	if err != nil || !old.Chroot {
		t.Errorf("compatibility level 0: %+v, %v", old, err)
	}
	if _, err := recipe.ParsePostconf("x = y\n", "", ""); err == nil {
		t.Error("no version, and no error")
	}
}

// fakeMTA writes a program that runs a script.
func fakeMTA(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "postconf")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPostconfIsRunAndOnlyAsked(t *testing.T) {
	asked := filepath.Join(t.TempDir(), "asked")
	path := fakeMTA(t, fmt.Sprintf(`echo "$@" >>%s
echo "a complaint" >&2
case $1 in
-x) echo mail_version = 3.7.11;;
-Px) echo relay/unix/syslog_name = x;;
-M) echo smtp unix - - y - - smtp;;
esac
`, asked))
	p, err := recipe.ReadPostconf(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	if p.Version != (recipe.Version{3, 7, 11}) || len(p.Overrides) != 1 || !p.Chroot {
		t.Errorf("%+v", p)
	}
	got, err := os.ReadFile(asked)
	if err != nil || string(got) != "-x\n-Px\n-M\n" {
		t.Errorf("run with %q, %v", got, err)
	}
}

func TestAPostconfThatMisbehavesIsAnError(t *testing.T) {
	for _, tt := range []struct{ name, script, want string }{
		{"it fails", "echo 'fatal: open /etc/postfix/main.cf' >&2; exit 1", "main.cf"},
		{"it fails without a word", "exit 3", "exit status 3"},
		{"it is another program", "echo hello", "mail_version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := recipe.ReadPostconf(context.Background(), fakeMTA(t, tt.script))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := recipe.ReadPostconf(context.Background(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no such program, and no error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := recipe.ReadPostconf(ctx, fakeMTA(t, "echo mail_version = 3.7.11")); err == nil {
		t.Error("a context that has ended, and no error")
	}
}

func TestPostconfIsFoundInThePath(t *testing.T) {
	path := fakeMTA(t, "exit 0")
	t.Setenv("PATH", filepath.Dir(path))
	if got, err := recipe.FindPostconf(); err != nil || got != path {
		t.Errorf("%s, %v", got, err)
	}
}
