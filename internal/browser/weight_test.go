package browser

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// What the first visit transfers, and that the second transfers none of it.
func TestWeight(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	// weigh returns the bytes that came for the page's own files since the last time,
	// and says of each.
	weigh := func() (files, bytes float64) {
		t.Helper()
		for _, r := range p.sent() {
			if strings.Contains(r.url.Path, "/api/") {
				continue
			}
			how := fmt.Sprintf("%v bytes", r.bytes)
			if r.cached {
				how = "from the cache"
			}
			t.Logf("%d %s %s (%v)", r.status, r.url.Path, how, r.header["Content-Encoding"])
			if !r.cached {
				files, bytes = files+1, bytes+r.bytes
			}
			if !r.cached && r.status == http.StatusOK && r.bytes > 2000 && r.header["Content-Encoding"] != "gzip" {
				t.Errorf("%s came as it is, %v bytes", r.url.Path, r.bytes)
			}
			if r.url.Path != "/usage/" && r.url.Path != "/usage/theme" && !strings.Contains(fmt.Sprint(r.header["Cache-Control"]), "immutable") {
				t.Errorf("%s may be kept as %v", r.url.Path, r.header["Cache-Control"])
			}
		}
		return files, bytes
	}
	p.show(s.url)
	files, bytes := weigh()
	t.Logf("first visit: %v files, %.1f kB", files, bytes/1000)
	if bytes > 120_000 || bytes < 10_000 {
		t.Errorf("the first paint weighs %v bytes", bytes)
	}
	p.visit("about:blank")
	p.show(s.url)
	files, bytes = weigh()
	t.Logf("second visit: %v files, %.1f kB", files, bytes/1000)
	if files > 1 || bytes > 1000 { // the page itself is asked for, and has not changed
		t.Errorf("the second visit transferred %v files, %v bytes", files, bytes)
	}
	p.do(chromedp.Reload())
	p.settle()
	if files, bytes = weigh(); files > 1 {
		t.Errorf("a reload transferred %v files, %v bytes", files, bytes)
	}
}
