package rooms

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/doc"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every name that the public packages export stands in testdata/api.txt, with its
// signature or its fields, so that none comes, goes or changes by accident; and none of
// these packages has more than can be learnt: names at the top and methods are counted.
func TestExportedNames(t *testing.T) {
	const module, file = "github.com/usagekit/usagekit", "testdata/api.txt"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{if ne .Name "main"}}{{.ImportPath}} {{.Dir}}{{range .GoFiles}} {{.}}{{end}}{{end}}`, module+"/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	var list strings.Builder
	packages := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || strings.Contains(fields[0]+"/", "/internal/") {
			continue
		}
		packages++
		path := strings.TrimPrefix(fields[0], module+"/")
		names, count, err := exported(fields[1], fields[2:])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "# %s: %d names\n\n%s\n", path, count, names)
		most := 8
		if path == "store" {
			most = 50
		}
		if count > most {
			t.Errorf("%s exports %d names, want %d at most", path, count, most)
		}
	}
	if packages < 8 {
		t.Errorf("%d public packages seen", packages)
	}
	if os.Getenv("USAGEKIT_API") == "write" {
		if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	was, is := slices.Collect(strings.Lines(string(golden))), slices.Collect(strings.Lines(list.String()))
	if slices.Equal(was, is) {
		return
	}
	for _, line := range was {
		if !slices.Contains(is, line) {
			t.Errorf("gone: %s", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			t.Errorf("new: %s", line)
		}
	}
	t.Errorf("%s is not what the packages export. If they are right: USAGEKIT_API=write go test ./internal/rooms -run TestExportedNames", file)
}

// exported prints what some files of a package export, as go doc -all does without the
// comments, and counts it: fields are no names.
func exported(dir string, names []string) (list string, count int, err error) {
	set := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		f, err := parser.ParseFile(set, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return "", 0, err
		}
		files = append(files, f)
	}
	pkg, err := doc.NewFromFiles(set, files, dir)
	if err != nil {
		return "", 0, err
	}
	var b bytes.Buffer
	columns := regexp.MustCompile(` +|\n+`) // gofmt's, in which one field moves all; and what is between fields
	add := func(names int, decl ast.Decl) {
		var text bytes.Buffer
		err = cmp.Or(err, format.Node(&text, set, decl))
		fmt.Fprintln(&b, columns.ReplaceAllStringFunc(text.String(), func(s string) string { return s[:1] }))
		count += names
	}
	values := func(groups ...[]*doc.Value) {
		for _, v := range slices.Concat(groups...) {
			add(len(v.Names), v.Decl)
		}
	}
	funcs := func(groups ...[]*doc.Func) {
		for _, f := range slices.Concat(groups...) {
			add(1, f.Decl)
		}
	}
	values(pkg.Consts, pkg.Vars)
	funcs(pkg.Funcs)
	for _, t := range pkg.Types {
		add(1, t.Decl)
		if of, ok := t.Decl.Specs[0].(*ast.TypeSpec).Type.(*ast.InterfaceType); ok {
			for _, m := range of.Methods.List {
				count += len(m.Names)
			}
		}
		values(t.Consts, t.Vars)
		funcs(t.Funcs, t.Methods)
	}
	return b.String(), count, err
}
