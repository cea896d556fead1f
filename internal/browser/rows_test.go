package browser

import (
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/usagekit/usagekit/store"
)

// Whatever stands in a table, a click on it shows its history, with numbers in it.
func TestEveryRowOpensItsHistory(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{
		"api.GET /a:b/{id}.requests": 7, "api.GET /a:b/{id}.status_2xx": 7, "api.(unmatched).requests": 1, "api.requests.novels": 4, "api.requests.(other)": 2,
		"user.ada.requests": 3, "user.a:b.requests": 2, "user.(other).requests": 2,
		"feature.outline.generated": 5, "feature.x": 1, "llm.gpt-4.calls": 2, "llm.gpt-4.tokens": 300, "llm.tokens": 12, "llm.calls": 1,
		"error.llm.timeout": 1, "mail.sent": 9, "plain": 4, "quota.42.refused": 3,
	})
	for name, step := range map[string]store.Step{"quota.42.daily": store.Day, "quota.42.hourly": store.Hour} {
		if _, _, ok, err := s.store.Take(t.Context(), name, 5, 10, step); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	p := open(t)
	p.tall()
	p.show(s.url + "?range=24h")
	tables := eval[[]string](p, `[...document.querySelectorAll('[data-table]')].filter(e => e.checkVisibility()).map(e => e.dataset.table)`)
	if len(tables) < 7 || !slices.Contains(tables, "areas") {
		t.Errorf("there are the tables %q", tables)
	}
	for _, table := range tables {
		names := p.rows(table)
		if len(names) == 0 {
			t.Errorf("%s has no rows", table)
		}
		for _, name := range names {
			row := `[data-table="` + table + `"] tbody tr[data-name=` + js(name) + `]`
			label := eval[string](p, `document.querySelector(`+js(row+` button.name`)+`).innerText`)
			p.click(row + ` td:last-child`)
			p.until("its history: "+table+" "+name, `document.querySelector('dialog#detail').open && document.querySelector('dialog#detail [data-chart="detail"] canvas')`)
			if text := eval[string](p, `document.querySelector('dialog#detail').innerText`); !strings.Contains(text, label) {
				t.Errorf("the history of %q says %q", label, text)
			}
			p.press(kb.Escape)
			p.until("closed", `!document.querySelector('dialog#detail').open`)
		}
	}
}
