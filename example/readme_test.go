package main

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

// testFiles returns the test files below a directory, as text.
func testFiles(t *testing.T, dir string) (texts []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, "_test.go") || strings.Contains(path, filepath.Join("internal", "conformance")) && strings.HasSuffix(path, ".go") {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			texts = append(texts, string(text))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// dedent takes the indentation of the first line from every line.
func dedent(text string) string {
	first := text[:len(text)-len(strings.TrimLeft(text, "\t"))]
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, first)
	}
	return strings.Join(lines, "\n")
}

// Every piece of Go in README stands, character by character, in a test or an
// example; the first is a whole one's body.
func TestReadmeIsTested(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests []string
	for _, text := range testFiles(t, "..") {
		for _, indent := range []string{"\t", "\t\t", "\t\t\t"} {
			tests = append(tests, strings.ReplaceAll(text, "\n"+indent, "\n"))
		}
	}
	snippets := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(snippets) < 8 {
		t.Fatalf("%d snippets found", len(snippets))
	}
	for _, s := range snippets {
		if !slices.ContainsFunc(tests, func(text string) bool { return strings.Contains(text, "\n"+s[1]) }) {
			t.Errorf("in no test:\n%s", s[1])
		}
	}
	example, err := os.ReadFile("../store/example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, found := strings.Cut(string(example), "func Example() {\n")
	body, _, ended := strings.Cut(body, "\n}\n")
	if !found || !ended || dedent(body)+"\n" != snippets[0][1] {
		t.Error("README's program is not the body of store's Example")
	}
}

// Every test that README names, by its whole name or by its case (…/Case), is
// there.
func TestReadmeNamesItsTests(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(testFiles(t, ".."), "\n")
	names := regexp.MustCompile("`(Test\\w+|…)(?:/(\\w+))?`").FindAllStringSubmatch(string(readme), -1)
	if len(names) < 15 {
		t.Fatalf("%d names found", len(names))
	}
	for _, n := range names {
		if n[1] != "…" && !strings.Contains(all, "func "+n[1]+"(t *testing.T)") {
			t.Errorf("README names %s, which is not there", n[1])
		}
		if n[2] != "" && !strings.Contains(all, `{"`+n[2]+`", `) {
			t.Errorf("README names the case %s, which is not there", n[2])
		}
	}
	for _, section := range []string{"Promises", "Coming from a table of counters"} {
		text := regexp.MustCompile(`(?s)\n## ` + section + `\n.*?\n## `).Find(readme)
		if text == nil {
			t.Errorf("there is no section %q", section)
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "|") && !strings.Contains(line, "|---") && !strings.Contains(line, "shown by") && !strings.Contains(line, "`Test") && !strings.Contains(line, "`…/") {
				t.Errorf("a promise without a test: %s", line)
			}
		}
	}
}

// A store takes the pool that it is given: who has SQLite or pgx gets no lib/pq, and
// no driver that registers itself.
func TestAStoreBringsNoDriver(t *testing.T) {
	const module = "github.com/usagekit/usagekit"
	for _, c := range []struct {
		pkg    string
		absent []string
	}{
		{"/store", []string{"github.com/lib/pq", "modernc.org/sqlite"}},
		{"/dashboard", []string{"github.com/lib/pq", "modernc.org/sqlite"}},
		{"/middleware", []string{"github.com/lib/pq", "modernc.org/sqlite", "github.com/jmoiron/sqlx"}},
		{"/middleware/quota", []string{"github.com/lib/pq", "modernc.org/sqlite"}},
		{"/store/sqlite", []string{"github.com/lib/pq"}},
		{"/store/storetest", []string{"github.com/lib/pq"}},
		{"/store/postgres", []string{"modernc.org/sqlite"}},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+c.pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("go list: %v\n%s", err, out)
		}
		deps := strings.Fields(string(out))
		if !slices.Contains(deps, module+c.pkg) {
			t.Fatalf("go list says %s", out)
		}
		for _, absent := range c.absent {
			if slices.Contains(deps, absent) {
				t.Errorf("%s brings %s", c.pkg, absent)
			}
		}
	}
}
