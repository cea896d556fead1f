package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/storetest"
)

// Each route, by what it answers and all that it counts.
func TestService(t *testing.T) {
	const (
		novels, novel, site = "api.POST /novels", "api.GET /novels/{id}", " /site/{path...}"
		unmatched           = "api.(unmatched)"
		complete            = "api.POST /llm/complete"
	)
	usage := storetest.New(t)
	count := middleware.New(usage, middleware.Config{
		User: userOf,
		Area: area,
	})
	handler := count(newService(usage, 5).routes())
	var before tally
	for _, c := range []struct {
		request, body string
		status        int
		answer        string // is in the body
		route, area   string
		adds          tally // besides what each request adds
	}{
		{"GET /novels/1", "", 404, "no such novel", novel, "novels", nil},
		{"POST /novels", "", 201, `{"id":1}`, novels, "novels", tally{"feature.novel.started": 1}},
		{"POST /novels", "", 201, `{"id":2}`, novels, "novels", tally{"feature.novel.started": 1}},
		{"GET /novels/2", "", 200, `"title":"Novel 2"`, novel, "novels", nil},
		{"HEAD /novels/2", "", 200, "", novel, "novels", nil},
		{"GET /novels/3", "", 404, "no such novel", novel, "novels", nil},
		{"GET /novels/two", "", 404, "no such novel", novel, "novels", nil},
		{"DELETE /novels/2", "", 405, "", unmatched, "", nil},
		{"POST /writer/chapters", "Chapter one.", 201, "saved", "api.POST /writer/chapters", "writer", tally{"feature.chapter.written": 1}},
		{"POST /writer/outlines", "", 201, "saved", "api.POST /writer/outlines", "writer", tally{"feature.outline.generated": 1}},
		{"POST /users", "", 201, "welcome", "api.POST /users", "users", tally{"user.registrations": 1}},
		{"POST /llm/complete", "Tell me more.", 200, "It was a dark and stormy night", complete, "llm", tally{
			"llm.storyteller-1.calls": 1, "llm.storyteller-1.input_tokens": 4, "llm.storyteller-1.output_tokens": 12, "llm.storyteller-1.tokens": 16,
		}},
		{"POST /llm/complete?fail=timeout", "Tell me more.", 504, "did not answer in time", complete, "llm", tally{
			"llm.storyteller-1.calls": 1, "llm.storyteller-1.failed": 1, "error.llm.timeout": 1,
		}},
		{"POST /llm/complete?model=quill-mini&sentences=2", "More.", 200, "night; the rain fell in torrents. It was", complete, "llm", tally{
			"llm.quill-mini.calls": 1, "llm.quill-mini.input_tokens": 2, "llm.quill-mini.output_tokens": 24, "llm.quill-mini.tokens": 26,
		}},
		{"POST /llm/complete?model=nobody", "More.", 400, "no such model", complete, "llm", nil},
		{"POST /llm/complete", strings.Repeat("more ", 20_000), 413, "too long", complete, "llm", nil},
		{"POST /llm/complete", "Tell me more.", 429, "quota-exceeded", complete, "llm", tally{"quota.ann.refused": 1}},
		{"GET /me", "", 200, `"requests":`, "api.GET /me", "me", nil},
		{"GET /site/", "", 200, "A page", "api.GET" + site, "", nil},
		{"HEAD /site/blog/1", "", 200, "", "api.HEAD" + site, "blog", nil},
		{"PUT /site/style.css", "", 200, "A page", "api.PUT" + site, "style_css", nil},
		{"DELETE /site/blog", "", 200, "A page", "api.DELETE" + site, "blog", nil},
		{"BREW /site/blog", "", 200, "A page", "api.OTHER" + site, "blog", nil},
		// Redirects of net/http count for the route that they lead to.
		{"GET /site", "", 307, "", "api.GET" + site, "", nil},
		{"POST /site/blog//1", "", 307, "", "api.POST" + site, "blog", nil},
		{"GET /site/a/../blog", "", 307, "", "api.GET" + site, "a", nil},
		{"GET /site/../novels/1", "", 307, "", novel, "__", nil},
		{"GET /site/..", "", 307, "", unmatched, "", nil},
		{"GET /elsewhere", "", 404, "", unmatched, "", nil},
		{"GET /", "", 404, "", unmatched, "", nil},
	} {
		method, target, _ := strings.Cut(c.request, " ")
		r := httptest.NewRequest(method, target, strings.NewReader(c.body))
		r.Header.Set("X-User", "ann")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.answer) {
			t.Errorf("%s: %d %q, want %d with %q", c.request, w.Code, w.Body, c.status, c.answer)
		}
		want := tally{
			"api.requests.total": 1, c.route + ".requests": 1, c.route + ".latency": 1,
			fmt.Sprintf("%s.status_%dxx", c.route, c.status/100): 1, "user.ann.requests": 1,
		}
		if c.area != "" {
			want["api.requests."+c.area] = 1
		}
		maps.Copy(want, c.adds)
		now := totals(t, usage)
		if got := now.since(before); !maps.Equal(got, want) {
			t.Errorf("%s adds\n%v, want\n%v", c.request, got, want)
		}
		before = now
	}

	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/site/", nil))
	for name := range totals(t, usage).since(before) {
		if strings.HasPrefix(name, "user.") {
			t.Errorf("a request of nobody adds to %s", name)
		}
	}

	before = totals(t, usage)
	gone, cancel := context.WithCancel(t.Context())
	cancel() // so its query fails
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "/me", nil).WithContext(gone))
	if n := totals(t, usage).since(before)["error.db.connection"]; w.Code != 503 || n != 1 {
		t.Errorf("without a database: %d, %d errors counted", w.Code, n)
	}
}

// totals are all counters, but for those of today and this month, which midnight
// changes, and those of all routes together; those of a route's latency are one.
func totals(t *testing.T, usage *store.Store) tally {
	t.Helper()
	if err := usage.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	counts, err := usage.Totals(t.Context(), store.Query{})
	if err != nil {
		t.Fatal(err)
	}
	all := tally{}
	for _, c := range counts {
		if ofAllRoutes(c.Name) {
			continue
		}
		if route, _, ok := strings.Cut(c.Name, ".latency_"); ok {
			all[route+".latency"] += c.N
		} else if !current[c.Name] {
			all[c.Name] = c.N
		}
	}
	return all
}

func (c tally) since(before tally) tally {
	d := tally{}
	for name, n := range c {
		if n != before[name] {
			d[name] = n - before[name]
		}
	}
	return d
}

func TestDemo(t *testing.T) {
	began := time.Now()
	e := start(t, "-demo", "-flush", "1s")
	var stats struct {
		Total                             int64 `json:"total_requests"`
		API, Features, Users, LLM, Errors tally
	}
	eventually(t, limit, func() string {
		if err := e.read("stats", &stats); err != nil {
			return err.Error()
		}
		for name, group := range map[string]tally{
			"api": stats.API, "features": stats.Features, "users": stats.Users, "llm": stats.LLM, "errors": stats.Errors,
		} {
			var sum int64
			for name, n := range group {
				if !current[name] {
					sum += n
				}
			}
			if sum == 0 {
				return name + " has no count"
			}
		}
		return ""
	})
	t.Logf("each group has a count %v after the start", time.Since(began).Round(10*time.Millisecond))
	if status, page := e.get("", "/usage/tables.html"); status != http.StatusOK || !strings.Contains(string(page), ">GET /novels/{id}<") {
		t.Errorf("the page: %d, without a row GET /novels/{id}:\n%s", status, page)
	}
	first := stats.Total
	eventually(t, limit, func() string {
		if err := e.read("stats", &stats); err != nil || stats.Total <= first {
			return fmt.Sprintf("total_requests stays at %d, %v", first, err)
		}
		return ""
	})
	seen := time.Now() // on a busy machine, the history is still being folded
	eventually(t, limit, func() string {
		var read struct {
			CompleteThrough time.Time `json:"complete_through"`
		}
		if err := e.read("totals?limit=1", &read); err != nil || !read.CompleteThrough.After(seen) {
			return fmt.Sprintf("complete through %v, %v", read.CompleteThrough, err)
		}
		return ""
	})
	if n := e.stop(syscall.SIGTERM); n < stats.Total {
		t.Errorf("%d requests counted, but %d were shown", n, stats.Total)
	}
}
