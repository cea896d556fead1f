package rooms

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
)

// What may import what, so that a user of one package does not get another's
// dependencies.
func TestImports(t *testing.T) {
	const module = "github.com/usagekit/usagekit"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, module+"/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	allowed := map[string][]string{
		"/internal/naming":            {},
		"/internal/naming/namingtest": {module + "/internal/naming"}, // only tests import this one
		"/internal/rooms":             {},
		"/internal/calendar":          {},
		"/internal/database":          {"github.com/jmoiron/sqlx", "golang.org/x/sys/unix"},
		"/internal/clock":             {module + "/internal/calendar", module + "/internal/database"},
		"/internal/read":              {module + "/internal/naming", module + "/internal/calendar", module + "/internal/clock", module + "/internal/database"},
		"/middleware":                 {module + "/internal/naming"},
		"/middleware/quota":           {module + "/internal/naming", module + "/store", "github.com/dunglas/httpsfv"},
		"/internal/counter":           {module + "/internal/naming", "golang.org/x/sys/unix"},
		"/internal/crossing":          {module + "/internal/naming", module + "/internal/calendar", module + "/internal/clock", module + "/internal/database"},
		"/internal/fold":              {module + "/internal/naming", module + "/internal/calendar", module + "/internal/clock", module + "/internal/counter", module + "/internal/crossing", module + "/internal/database"},
		"/internal/outbox":            {module + "/internal/calendar", module + "/internal/clock", module + "/internal/counter", module + "/internal/database"},
		"/internal/upkeep":            {module + "/internal/calendar", module + "/internal/clock", module + "/internal/counter", module + "/internal/crossing", module + "/internal/database", module + "/internal/naming"},
		"/store":                      {module + "/internal/upkeep", module + "/internal/outbox", module + "/internal/fold", module + "/internal/crossing", module + "/internal/clock", module + "/internal/naming", module + "/internal/calendar", module + "/internal/database", module + "/internal/counter", module + "/internal/read", "github.com/jmoiron/sqlx"},
		"/store/postgres":             {"github.com/jmoiron/sqlx", "github.com/lib/pq"},
		"/store/sqlite":               {"github.com/jmoiron/sqlx", "modernc.org/sqlite"},
		"/store/llm":                  {module + "/internal/naming", module + "/internal/counter"},
		"/store/storetest":            {module + "/store", module + "/store/sqlite"},
		"/dashboard":                  {module + "/internal/naming", module + "/store"},
		// internal/counter for -demo alone, which makes batches of a month that never was.
		"/example":              {module + "/internal/naming", module + "/internal/counter", module + "/middleware", module + "/middleware/quota", module + "/dashboard", module + "/store", module + "/store/llm", module + "/store/postgres", module + "/store/sqlite", "github.com/jmoiron/sqlx"},
		"/internal/dbtest":      {"github.com/lib/pq"}, // only tests import these four
		"/internal/memdisk":     {module + "/internal/counter"},
		"/internal/faults":      {module + "/internal/dbtest", module + "/store", module + "/store/postgres", module + "/store/sqlite", "github.com/jmoiron/sqlx"},
		"/internal/conformance": {module + "/internal/naming", module + "/internal/counter", module + "/internal/dbtest", module + "/store", module + "/store/llm", module + "/store/postgres", module + "/store/sqlite", "github.com/jmoiron/sqlx", "github.com/lib/pq"},
	}
	seen := 0
	for line := range bytes.Lines(out) {
		fields := strings.Fields(string(line))
		pkg := strings.TrimPrefix(fields[0], module)
		want, ok := allowed[pkg]
		if !ok {
			t.Errorf("%s is not in the list: what may it import?", fields[0])
			continue
		}
		seen++
		for _, imported := range fields[1:] {
			if strings.Contains(imported, ".") && !slices.Contains(want, imported) {
				t.Errorf("%s imports %s", fields[0], imported)
			}
		}
	}
	if seen != len(allowed) {
		t.Errorf("%d packages seen, %d in the list", seen, len(allowed))
	}
}

// The page computes quantiles and reads measures by itself: its bounds and names are
// those of internal/naming.
func TestThePagesScriptsHaveTheMeasures(t *testing.T) {
	script := func(file string) string {
		text, err := os.ReadFile(filepath.Join("..", "..", "dashboard", file))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	found := regexp.MustCompile(`export const bounds = (\[[^]]*\]); // ms`).FindStringSubmatch(script("format.js"))
	if found == nil {
		t.Fatal("format.js has no bounds")
	}
	var bounds []time.Duration
	if err := json.Unmarshal([]byte(found[1]), &bounds); err != nil {
		t.Fatal(err)
	}
	for i := range bounds {
		bounds[i] *= time.Millisecond
	}
	if want := naming.Bounds(); !slices.Equal(bounds, want[:]) {
		t.Errorf("format.js has %v, want %v", bounds, want)
	}
	known := map[string]bool{naming.RequestsTotal: true, naming.RequestsToday: true, naming.ActiveDaily: true, naming.ActiveMonthly: true}
	for i := range naming.Measures {
		known[naming.Measure(i)] = true
	}
	scripts, err := filepath.Glob(filepath.Join("..", "..", "dashboard", "*.js"))
	if err != nil || len(scripts) < 5 {
		t.Fatalf("%v, %v", scripts, err)
	}
	seen := 0
	for _, file := range scripts {
		text := script(filepath.Base(file))
		for _, name := range regexp.MustCompile(`"((?:status|latency)_\w+|api\.requests\.\w+|user\.active\.\w+)"`).FindAllStringSubmatch(text, -1) {
			seen++
			if !known[name[1]] {
				t.Errorf("%s: nothing is counted under %s", filepath.Base(file), name[1])
			}
		}
	}
	if seen < 5 {
		t.Errorf("%d names seen", seen)
	}
}
