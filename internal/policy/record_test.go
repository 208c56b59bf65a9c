package policy_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestRFC8461_3_1_Record(t *testing.T) {
	id32 := strings.Repeat("a1", 16)
	for _, tt := range []struct {
		name, txt, id string // id empty: broken
	}{
		{"the example of the standard", "v=STSv1; id=20160831085700Z;", "20160831085700Z"},
		{"no white space", "v=STSv1;id=1", "1"},
		{"white space around the semicolons", "v=STSv1; \t id=1 \t ; a=b", "1"},
		{"white space after the last semicolon", "v=STSv1; id=1; \t", "1"},
		{"white space at the end without a semicolon", "v=STSv1; id=1 ", ""},
		{"an id of 32 characters", "v=STSv1; id=" + id32, id32},
		{"an id of 33 characters", "v=STSv1; id=" + id32 + "x", ""},
		{"an empty id", "v=STSv1; id=;", ""},
		{"an id with a hyphen", "v=STSv1; id=2016-08", ""},
		{"no id", "v=STSv1; a=b", ""},
		{"no field", "v=STSv1;", ""},
		{"no field, white space", "v=STSv1; ", ""},
		{"an id in upper case is an extension", "v=STSv1; ID=1", ""},
		{"a version in lower case", "v=stsv1; id=1", ""},
		{"another version", "v=STSv2; id=1", ""},
		{"the version not at the start", " v=STSv1; id=1", ""},
		{"white space before the first semicolon", "v=STSv1 \t; id=1", "1"},
		{"the version last", "id=1; v=STSv1;", ""},
		{"an empty field", "v=STSv1;; id=1", ""},
		{"two semicolons at the end", "v=STSv1; id=1;;", ""},
		{"white space around the equals sign", "v=STSv1; id = 1", ""},
		{"a field without a value", "v=STSv1; id=1; a", ""},
		{"an extension before the id", "v=STSv1; a=b; id=1", "1"},
		{"an extension's name of 32 characters", "v=STSv1; id=1; " + id32 + "=x", "1"},
		{"an extension's name of 33 characters", "v=STSv1; id=1; " + id32 + "x=x", ""},
		{"an extension's name with marks", "v=STSv1; id=1; 0_-.=x", "1"},
		{"an extension's name that begins with a mark", "v=STSv1; id=1; _a=x", ""},
		{"an extension's value of all visible characters", "v=STSv1; id=1; a=!\"#$%&'()*+,-./:<>?@[\\]^_`{|}~", "1"},
		{"an extension's value with an equals sign", "v=STSv1; id=1; a=b=c", ""},
		{"an extension's value with a space", "v=STSv1; id=1; a=b c", ""},
		{"an extension's value with a control", "v=STSv1; id=1; a=b\x01", ""},
		{"an extension's value that is not ASCII", "v=STSv1; id=1; a=\u00e4", ""},
		{"an empty extension's value", "v=STSv1; id=1; a=", ""},
		{"a line feed", "v=STSv1; id=1;\n", ""},
		{"a NUL", "v=STSv1; id=1\x00", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := policy.ParseRecord(tt.txt)
			if tt.id == "" {
				if !errors.Is(err, policy.ErrRecordInvalid) {
					t.Fatalf("got %+v, %v; want ErrRecordInvalid", r, err)
				}
				return
			}
			if err != nil || r.ID != tt.id {
				t.Fatalf("got %+v, %v; want id %s", r, err, tt.id)
			}
		})
	}
}

func TestRFC8461_3_2_OfARecordsFieldGivenTwiceTheFirstCounts(t *testing.T) {
	r, err := policy.ParseRecord("v=STSv1; id=first; id=second; v=STSv9; id=not-an-id")
	if err != nil || r.ID != "first" {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := policy.ParseRecord("v=STSv1; id=not-an-id; id=good"); !errors.Is(err, policy.ErrRecordInvalid) {
		t.Errorf("a bad first id: got %v", err)
	}
}

func TestRFC8461_3_1_ExactlyOneRecordMustRemain(t *testing.T) {
	const good = "v=STSv1; id=1"
	for _, tt := range []struct {
		name string
		txts []string
		want error // nil: the id is 1
	}{
		{"no TXT record", nil, policy.ErrNoRecord},
		{"others only", []string{"v=spf1 -all", "", "hello"}, policy.ErrNoRecord},
		{"one", []string{good}, nil},
		{"one among others", []string{"v=spf1 -all", good, "v=STSv2; id=2", "v=stsv1; id=2", "v=STSv1", "v=STSv10; id=2"}, nil},
		{"two", []string{good, "v=STSv1; id=2"}, policy.ErrManyRecords},
		{"the same twice", []string{good, good}, policy.ErrManyRecords},
		{"a good and a broken one", []string{good, "v=STSv1;"}, policy.ErrManyRecords},
		{"a broken one", []string{"v=STSv1; id"}, policy.ErrRecordInvalid},
		{"two, one with white space before the semicolon", []string{"v=STSv1 ; id=2", good}, policy.ErrManyRecords},
		{"one with white space before the semicolon", []string{"v=STSv1 ; id=1"}, nil},
		{"one without a semicolon", []string{"v=STSv1"}, policy.ErrNoRecord},
		{"only one in another case", []string{"V=STSV1; id=1"}, policy.ErrNoRecord},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := policy.FindRecord(tt.txts)
			if !errors.Is(err, tt.want) || tt.want == nil && r.ID != "1" {
				t.Errorf("got %+v, %v; want %v", r, err, tt.want)
			}
		})
	}
}

func TestABrokenRecordIsExplained(t *testing.T) {
	for txt, words := range map[string]string{
		"v=STSv1;":              "it has no id",
		"v=STSv1; ":             "it has no id",
		"v=STSv1; a=b":          "it has no id",
		"v=STSv1; ID=1":         `it has no id (names are case-sensitive: "ID" is another field)`,
		"v=STSv1; id=2026-11":   `its id "2026-11" is not 1 to 32 letters or digits`,
		"v=STSv1; id":           `"id" is not of the form name=value`,
		"v=STSv1 id=1":          `"v=STSv1 id=1" does not begin with exactly "v=STSv1;"`,
		"V=STSV1; id=1":         `"V=STSV1; id=1" does not begin with exactly "v=STSv1;"`,
		"some other TXT record": "none of the TXT records (1) begins with",
	} {
		if _, err := policy.FindRecord([]string{txt}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: got %v; want %s", txt, err, words)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, s := range []string{"", "v=STSv1; id=20160831085700Z;", "v=STSv1;id=1;a=b;id=2; ", "v=STSv1 ; id=1", "v=STSv1;; id=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, txt string) {
		r, err := policy.ParseRecord(txt)
		one, oneErr := policy.FindRecord([]string{txt})
		if err != nil {
			if !errors.Is(err, policy.ErrRecordInvalid) || oneErr == nil {
				t.Fatalf("%q: %v, and as the only one %+v, %v", txt, err, one, oneErr)
			}
			if len(err.Error()) > 1000 {
				t.Fatalf("%q: an error of %d bytes", txt, len(err.Error()))
			}
			return
		}
		if oneErr != nil || one != r {
			t.Fatalf("%q: %+v, but as the only one %+v, %v", txt, r, one, oneErr)
		}
		for i := range len(txt) {
			if c := txt[i]; (c < ' ' || c > '~') && c != '\t' {
				t.Fatalf("%q was accepted", txt)
			}
		}
		if !regexp.MustCompile(`^[A-Za-z0-9]{1,32}$`).MatchString(r.ID) || !strings.Contains(txt, "id="+r.ID) {
			t.Fatalf("%q: id %q", txt, r.ID)
		}
		again, err := policy.ParseRecord("v=STSv1; id=" + r.ID + ";")
		if err != nil || again != r {
			t.Fatalf("%q: rendered again it is %+v, %v", txt, again, err)
		}
		// The grammar is closed under one more field.
		if more, err := policy.ParseRecord(strings.TrimRight(txt, " \t;") + "; x=y"); err != nil || more != r {
			t.Fatalf("%q: with one more field it is %+v, %v", txt, more, err)
		}
	})
}
