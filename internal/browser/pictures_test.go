package browser

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/usagekit/usagekit/dashboard"
)

// story is what a service for writers may have counted in two months: more by day than
// by night, less at weekends, a little more every week, and one bad afternoon.
func (s *site) story() {
	s.Helper()
	random := rand.New(rand.NewPCG(1, 2)) // the same in every picture
	var all []batch
	now := time.Now().UTC()
	for h := 62 * 24; h >= 0; h-- {
		if h > 31*24 && h%4 > 0 {
			continue // what is that old is shown by the day
		}
		at := now.Add(-time.Duration(h) * time.Hour).Truncate(time.Hour)
		scale := (0.35 + math.Pow(math.Sin(math.Pi*(float64(at.Hour())-3)/24), 2)) * (1 + 0.008*float64(62*24-h)/24) * (0.9 + 0.2*random.Float64())
		if at.Weekday() == time.Saturday || at.Weekday() == time.Sunday {
			scale *= 0.6
		}
		if h == 0 {
			at, scale = now, scale*float64(now.Minute()+1)/60
		}
		if h > 31*24 {
			scale *= 4
		}
		bad := 1.0
		if d := now.Sub(at).Hours() / 24; d > 8.6 && d < 8.8 {
			bad = 40
		}
		all = append(all, batch{at, storyHour(random, scale, bad)})
	}
	s.past(all...)
}

func storyHour(random *rand.Rand, scale, bad float64) map[string]int64 {
	c := map[string]int64{}
	for _, r := range []struct {
		name         string
		hourly       float64
		failed, slow float64
	}{
		{"GET /novels/{id}", 1400, 0.001, 0.02}, {"GET /site/", 620, 0.0005, 0.005}, {"GET /site/blog/{slug}", 410, 0.0005, 0.008}, {"POST /writer/chapters", 310, 0.004, 0.10},
		{"POST /llm/complete", 240, 0.012, 0.95}, {"GET /novels", 190, 0.001, 0.04}, {"POST /writer/outlines", 95, 0.003, 0.12}, {"GET /me", 80, 0.0005, 0.01}, {"POST /novels", 42, 0.002, 0.08}, {"POST /users", 9, 0.002, 0.3}, {"(unmatched)", 14, 0, 0},
	} {
		n := int64(r.hourly * scale * (0.85 + 0.3*random.Float64()))
		if n == 0 {
			continue
		}
		name := "api." + r.name + "."
		if _, path, ok := strings.Cut(r.name, " /"); ok {
			area, _, _ := strings.Cut(path, "/")
			c["api.requests."+area] += n
		}
		failed := min(int64(float64(n)*r.failed*bad+random.Float64()), n/3)
		refused := min(int64(float64(n)*0.015+random.Float64()), n-failed)
		if r.name == "(unmatched)" {
			refused = n
		}
		slow := min(int64(float64(n)*r.slow*math.Sqrt(bad)+random.Float64()), n)
		for measure, count := range map[string]int64{
			"requests": n, "status_5xx": failed, "status_4xx": refused, "status_2xx": n - failed - refused,
			"latency_5ms": (n - slow) * 6 / 10, "latency_10ms": (n - slow) - (n-slow)*6/10 - (n-slow)/10, "latency_25ms": (n - slow) / 10,
			"latency_100ms": slow - slow/2 - slow/5 - slow/20, "latency_250ms": slow / 2, "latency_750ms": slow / 5, "latency_2500ms": slow / 20,
		} {
			if count > 0 {
				c[name+measure] += count
			}
		}
	}
	for range int(60 * scale) { // some write much, most of them little
		c[fmt.Sprintf("user.writer-%d.requests", int(math.Pow(3000, random.Float64())))] += 1 + random.Int64N(40)
	}
	add := func(name string, hourly float64) {
		if n := int64(hourly*scale*(0.8+0.4*random.Float64()) + random.Float64()); n > 0 {
			c[name] += n
		}
	}
	add("feature.chapter.written", 290)
	add("feature.outline.generated", 91)
	add("feature.novel.exported", 33)
	add("feature.cover.drawn", 21)
	add("feature.reader.invited", 7)
	add("user.registrations", 6)
	add("error.llm.timeout", 1.4*bad)
	add("error.db.connection", 0.2*bad)
	add("error.mail.bounced", 0.5)
	add("mail.sent", 64)
	add("export.pdf.pages", 410)
	for _, m := range []struct {
		name          string
		calls, tokens float64
	}{{"gpt-5", 120, 1900}, {"claude-opus", 80, 2400}, {"local-7b", 40, 700}} {
		calls := int64(m.calls * scale * (0.8 + 0.4*random.Float64()))
		if calls == 0 {
			continue
		}
		c["llm."+m.name+".calls"] += calls
		in, out := int64(float64(calls)*m.tokens*0.7), int64(float64(calls)*m.tokens*0.3)
		c["llm."+m.name+".input_tokens"], c["llm."+m.name+".output_tokens"], c["llm."+m.name+".tokens"] = in, out, in+out
		add("llm."+m.name+".failed", 0.6*bad)
	}
	return c
}

// writers names some users.
func writers(_ context.Context, ids []string) (map[string]string, error) {
	known := map[string]string{
		"writer-1": "Ada Lovelace", "writer-2": "Jorge Luis Borges", "writer-3": "Ursula K. Le Guin", "writer-4": "Italo Calvino", "writer-5": "Mary Shelley",
		"writer-6": "Stanisław Lem", "writer-7": "Gabriel García Márquez", "writer-8": "Octavia Butler", "writer-9": "Umberto Eco", "writer-10": "Tove Jansson",
	}
	for id := range known {
		if !slices.Contains(ids, id) {
			delete(known, id)
		}
	}
	return known, nil
}

// TestPictures writes what the page looks like to $USAGEKIT_SCREENSHOTS, or beside
// what else the tests leave with -artifacts.
func TestPictures(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.story()
	url := s.mount("/usage/", dashboard.New(s.store, dashboard.Config{Auth: dashboard.Public, Users: writers})) + "/usage/?range=30d"
	dir := os.Getenv("USAGEKIT_SCREENSHOTS")
	if dir == "" {
		dir = t.ArtifactDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, picture := range []struct {
		name, colors  string
		width, height int64
		options       []chromedp.EmulateViewportOption
	}{
		{"light", "light", 1280, 1440, nil},
		{"dark", "dark", 1280, 1000, nil},
		{"phone", "light", 360, 800, []chromedp.EmulateViewportOption{chromedp.EmulateMobile, chromedp.EmulateScale(2)}},
	} {
		p := open(t)
		p.prefers(picture.colors)
		p.do(chromedp.EmulateViewport(picture.width, 4000, picture.options...))
		p.show(url)
		p.until("all of it", `[...document.querySelectorAll('[data-chart]')].filter(c => c.checkVisibility()).every(c => c.querySelector('canvas'))`)
		p.do(chromedp.EmulateViewport(picture.width, picture.height, picture.options...))
		p.fits()
		p.settle()
		eval[chromedp.Void](p, `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))`)
		image, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, picture.name+".png")
		if err := os.WriteFile(file, image, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d x %d, %d kB", file, picture.width, picture.height, len(image)/1000)
	}
}
