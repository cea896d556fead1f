package browser

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
)

// download clicks on a link and returns the file that comes, and its name.
func (p *tab) download(selector string) (name string, content []byte) {
	p.Helper()
	dir := p.TempDir()
	c := chromedp.FromContext(p.ctx)
	if _, err := chromedp.CallBrowser(p.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, BrowserContextID: c.BrowserContextID, DownloadPath: dir,
	}); err != nil {
		p.Fatal(err)
	}
	p.click(selector)
	p.untilGo("a file", func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(files) != 1 || strings.HasSuffix(files[0], ".crdownload") || strings.HasPrefix(filepath.Base(files[0]), ".") {
			return false
		}
		name = filepath.Base(files[0])
		content, err = os.ReadFile(files[0])
		return err == nil
	})
	return name, content
}

func TestExport(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	s.add(map[string]int64{"feature.=1+1": 77, "api.GET /a, \"b\".requests": 5})
	p := open(t)
	p.tall()
	p.show(s.url + "?range=7d")

	// read reads a file that is for a spreadsheet: Excel wants it to begin so.
	read := func(content []byte) ([][]string, error) {
		text, marked := strings.CutPrefix(string(content), "\ufeff")
		if !marked {
			t.Errorf("no byte order mark: %.40q", text)
		}
		return csv.NewReader(strings.NewReader(text)).ReadAll()
	}
	name, content := p.download(`[data-table="routes"] a[data-export=csv]`)
	lines, err := read(content)
	if err != nil || !strings.HasSuffix(name, ".csv") {
		t.Fatalf("%s: %v: %s", name, err, content)
	}
	want := map[string]int64{}
	for _, r := range ask[rows](s, "rows?prefix=api.&measure=requests&except=api.requests.&range=7d").Rows {
		want[r.Subject] = r.Counts["requests"]
	}
	subject, count := at(t, lines[0], "subject"), at(t, lines[0], "requests")
	for _, line := range lines[1:] {
		if n, err := strconv.ParseInt(line[count], 10, 64); err != nil || n != want[line[subject]] || n == 0 {
			t.Errorf("%q has %s requests, want %d", line[subject], line[count], want[line[subject]])
		}
		delete(want, line[subject])
	}
	if len(want) > 0 {
		t.Errorf("not exported: %v", want)
	}

	// What is searched is what is exported.
	p.write(`[data-table="features"] input[type=search]`, "=1")
	p.until("found", `document.querySelectorAll('[data-table="features"] tbody tr[data-name]').length === 1`)
	_, content = p.download(`[data-table="features"] a[data-export=csv]`)
	if lines, err = read(content); err != nil || len(lines) != 2 {
		t.Fatalf("%v: %s", err, content)
	}
	if got := lines[1][at(t, lines[0], "n")]; got != "77" {
		t.Errorf("=1+1 is there %s times", got)
	}
	for _, cell := range lines[1] {
		if strings.HasPrefix(cell, "=") {
			t.Errorf("%q is a formula", cell)
		}
	}

	name, content = p.download(`[data-table="models"] a[data-export=json]`)
	var models rows
	if err := json.Unmarshal(content, &models); err != nil || len(models.Rows) != 2 || models.Rows[0].Counts["tokens"] == 0 {
		t.Errorf("%s: %v: %s", name, err, content)
	}
	_, content = p.download(`footer a[href*="format=csv"]`)
	if lines, err = read(content); err != nil || len(lines) < 40 {
		t.Errorf("of everything %d lines, %v", len(lines), err)
	}
}

func at(t *testing.T, header []string, column string) int {
	t.Helper()
	for i, h := range header {
		if h == column {
			return i
		}
	}
	t.Fatalf("no column %s in %q", column, header)
	return 0
}
