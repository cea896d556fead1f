package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
)

// partOf is one answer of a batch.
type partOf struct {
	Status int
	ETag   string
	Body   json.RawMessage
}

// askBatch asks for several answers at once.
func askBatch(t *testing.T, h http.Handler, tags string, queries ...string) (code int, tag string, parts []partOf) {
	t.Helper()
	var header []string
	if tags != "" {
		header = []string{"If-None-Match", tags}
	}
	w := getWith(h, "GET", "/usage/api/batch?"+url.Values{"q": queries}.Encode(), header...)
	if w.Code == 200 {
		var a struct{ Answers []partOf }
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || len(a.Answers) != len(queries) {
			t.Fatalf("%v: %s", err, w.Body)
		}
		parts = a.Answers
	}
	return w.Code, w.Header().Get("ETag"), parts
}

// Each answer in a batch is the one that its own address has.
func TestBatchHasTheAnswersOfItsParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(&fake{counts: []store.Count{{Name: "feature.a.b", Start: time.Now(), N: 3}}, state: store.Stats{Degraded: "the disk is full"}})
		queries := []string{"totals?name=a&name=b%26c", "rows?limit=3", "stats", "series?range=24h", "history", "health", "series", "totals?limt=1", "export?of=rows", "openapi.json", "batch?q=stats", "", "nope", "../stats", "totals?%zz"}
		_, _, parts := askBatch(t, h, "", slices.DeleteFunc(slices.Clone(queries), func(q string) bool { return q == "" })...)
		queries = slices.DeleteFunc(queries, func(q string) bool { return q == "" })
		for i, q := range queries {
			alone := get(h, "/usage/api/"+q)
			want := alone.Code
			if path, _, _ := strings.Cut(q, "?"); !slices.Contains([]string{"stats", "totals", "rows", "history", "series", "health"}, path) {
				want = 404
			}
			got := parts[i]
			if got.Status != want {
				t.Errorf("%s: %d, want %d", q, got.Status, want)
			}
			if want != 404 && string(got.Body)+"\n" != alone.Body.String() {
				t.Errorf("%s: %s, alone %s", q, got.Body, alone.Body)
			}
			if tag := alone.Header().Get("ETag"); want == 200 && tag != "" && got.ETag != tag {
				t.Errorf("%s: tag %s, alone %s", q, got.ETag, tag)
			}
		}
	})
}

// What takes long is left to be asked for alone, and the others come without it.
func TestBatchDoesNotWaitForASlowPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		f := &fake{}
		f.before = func(_ context.Context, what string) error {
			if what == "History" {
				reads.Add(1)
				time.Sleep(3 * time.Second)
			}
			return nil
		}
		h := open(f)
		for range 3 { // the first time, and later, when there is a last answer
			reads.Store(0)
			began := time.Now()
			_, _, parts := askBatch(t, h, "", "history", "totals", "series?range=1h", "rows")
			if took := time.Since(began); took > time.Second {
				t.Errorf("it took %v", took)
			}
			for i, want := range []int{202, 200, 202, 200} {
				if parts[i].Status != want {
					t.Errorf("part %d: %d %s, want %d", i, parts[i].Status, parts[i].Body, want)
				}
			}
			if w := get(h, "/usage/api/history"); w.Code != 200 || strings.Contains(w.Body.String(), `"stale":true`) || time.Since(began) > 3*time.Second {
				t.Errorf("alone: %d after %v: %s", w.Code, time.Since(began), w.Body)
			}
			if n := reads.Load(); n != 2 { // one for each of the two
				t.Errorf("%d reads", n)
			}
			time.Sleep(5 * time.Second)
		}
		f.before = func(_ context.Context, what string) error {
			if what == "History" {
				return fmt.Errorf("read: %w", store.ErrUnavailable)
			}
			return nil
		}
		time.Sleep(2 * time.Second)
		_, _, parts := askBatch(t, h, "", "history?limit=7", "history", "totals", "rows")
		for i, want := range []int{503, 200, 200, 200} {
			if parts[i].Status != want || strings.Contains(string(parts[i].Body), `"stale":true`) != (i == 1) {
				t.Errorf("part %d: %d %s, want %d", i, parts[i].Status, parts[i].Body, want)
			}
		}
	})
}

// Of what somebody has nothing is sent again.
func TestBatchSendsNothingTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := int64(1)
		f := &fake{state: store.Stats{FoldedThrough: time.Now()}}
		f.before = func(_ context.Context, what string) error {
			if what == "Totals" {
				f.counts = []store.Count{{Name: "feature.a.b", N: n}}
			}
			return nil
		}
		h := open(f)
		queries := []string{"totals", "rows", "health"}
		_, whole, parts := askBatch(t, h, "", queries...)
		var tags []string
		for _, p := range parts {
			tags = append(tags, p.ETag)
		}
		for _, have := range []string{strings.Join(tags, ", "), whole} {
			if code, tag, _ := askBatch(t, h, have, queries...); code != 304 || tag != whole {
				t.Errorf("of what there is already: %d %s, want 304 %s", code, tag, whole)
			}
		}
		n++
		time.Sleep(2 * time.Second)
		f.state.FoldedThrough = time.Now()
		code, tag, parts := askBatch(t, h, strings.Join(tags, ", "), queries...)
		if code != 200 || tag == whole || parts[0].Status != 200 || parts[1].Status != 304 || len(parts[1].Body) > 0 || parts[1].ETag != tags[1] || parts[2].Status != 304 {
			t.Errorf("with one that is new: %d %s %+v", code, tag, parts)
		}
		w := getWith(h, "HEAD", "/usage/api/batch?q=totals")
		if w.Code != 200 || w.Body.Len() > 0 || w.Header().Get("ETag") == "" {
			t.Errorf("HEAD: %d %v", w.Code, w.Header())
		}
	})
}

// A batch is no way to more than its answers could be.
func TestBatchHasLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // or they are still being read when a busy machine gives up
		large := make([]store.Count, 10_000)
		for i := range large {
			large[i] = store.Count{Name: strings.Repeat("x", 500), N: int64(i)}
		}
		h := open(&fake{counts: large})
		for query, code := range map[string]int{
			"": 400, "q=": 400, "x=1": 400, "q=stats&x=1": 400, "q=" + strings.Repeat("a", 20_000): 400, "q=a%00": 400, "q=%ff": 400,
			strings.Repeat("q=health&", maxParts): 200, strings.Repeat("q=health&", maxParts+1): 400,
		} {
			if w := get(h, "/usage/api/batch?"+query); w.Code != code {
				t.Errorf("%.60s: %d %.200s, want %d", query, w.Code, w.Body, code)
			}
		}
		_, _, parts := askBatch(t, h, "", "totals?limit=10000", "totals?limit=9999", "health")
		if parts[0].Status+parts[1].Status != 413+413 || parts[2].Status != 200 {
			t.Errorf("of two that are large: %d and %d, and health %d", parts[0].Status, parts[1].Status, parts[2].Status)
		}
	})
}
