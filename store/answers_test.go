package store

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// answersOf are the answers to questions of every kind, as text.
func answersOf(t *testing.T, s *Store) string {
	t.Helper()
	ctx, berlin := dbtest.Context(t), s.Location()
	var text strings.Builder
	check := func(question string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", question, err)
		}
	}
	write := func(question string, c Count) {
		fmt.Fprintf(&text, "%s\t%s", question, c.Name)
		if !c.Start.IsZero() {
			text.WriteString("\t" + c.Start.Format(time.RFC3339))
		}
		fmt.Fprintf(&text, "\t%d\n", c.N)
	}
	for _, name := range []string{
		"api.requests.total", "api.requests.status_5xx", "api.requests.today", "api.requests.novels", "user.active.daily", "user.active.monthly",
		"user.42.requests", "user.42.7.requests", "feature.(other).used", "usagekit.counts.dropped", "quota.42.daily", "nothing", "bare",
	} {
		n, err := s.Get(ctx, name)
		check(name, err)
		write("Get", Count{Name: name, N: n})
	}
	date := func(month time.Month, day, hour int) time.Time {
		return time.Date(2024, month, day, hour, 0, 0, 0, berlin)
	}
	winter, spring := date(2, 1, 0), date(4, 1, 0)
	for i, q := range []Query{
		{},
		{Measure: "requests", Limit: 4},
		{Contains: "NOVEL", Except: []string{"api.requests."}},
		{Names: []string{"feature.outline.generated", "user.42.requests", "nothing"}},
		{Prefix: "user.", From: winter, To: spring},
		{Prefix: "api.", From: date(3, 30, 23), To: date(3, 31, 4)},
		{From: spring},
	} {
		counts, err := s.Totals(ctx, q)
		check("Totals", err)
		for _, c := range counts {
			write(fmt.Sprint("Totals ", i), c)
		}
	}
	for i, q := range []Query{
		{Prefix: "api."},
		{Prefix: "user.", Measure: "requests", Limit: 2},
		{Prefix: "llm.", From: winter, To: spring},
		{Prefix: "quota.", From: winter},
		{Prefix: "error.", From: spring, Step: Hour},
	} {
		rows, err := s.Rows(ctx, q)
		check("Rows", err)
		for _, r := range rows {
			fmt.Fprintf(&text, "Rows %d\t%s\t%s\t%v\tmedian %v\n", i, r.Group, r.Subject, r.Counts, r.Quantile(0.5))
		}
	}
	for i, q := range []Query{
		{Prefix: "api.GET", Measure: "requests"},
		{Name: "api.requests.total", Step: Day},
		{Name: "api.requests.total", Step: Month},
		{Name: "user.active.daily"},
		{Name: "user.active.monthly"},
		{Prefix: "user.", Measure: "requests", Step: Day, From: winter, To: spring},
		{Prefix: "user.", Measure: "requests", Step: Month},
		{Prefix: "quota.", Step: Hour, Measure: "hourly", From: winter},
		{Prefix: "quota.", Step: Day, From: winter},
		{Prefix: "feature.", Step: Hour, From: date(10, 27, 0), To: date(10, 28, 0)},
	} {
		counts, err := s.History(ctx, q)
		check("History", err)
		for _, c := range counts {
			write(fmt.Sprint("History ", i), c)
		}
	}
	for i, q := range []Query{
		{Prefix: "feature."},
		{Step: Month, Prefix: "user."},
		{Step: Day, Except: []string{"api."}, From: date(3, 30, 0)},
		{Step: Hour, Except: []string{"user."}, From: date(3, 30, 0), To: spring, Limit: 30},
	} {
		for c, err := range s.Each(ctx, q) {
			check("Each", err)
			write(fmt.Sprint("Each ", i), c)
		}
	}
	return text.String()
}
