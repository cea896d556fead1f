package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// What later commits put beside it, in usage_meta as well, stays in force: the rules of the
// zone, when history was removed last, and what is still to be told.
func testUpgradeSince(t *testing.T, kind string, create func(t *testing.T) (*sqlx.DB, error)) {
	ctx := dbtest.Context(t)
	db, err := create(t)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, recorded(t, kind+".sql")); err != nil {
		t.Fatal(err)
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	// An image with newer zones than this one's counts here, too: Berlin is to have another
	// offset.
	now := time.Now()
	own := calendar.Rules(berlin)
	theirs := strings.Join(slices.DeleteFunc(strings.Fields(own), func(field string) bool {
		_, at, _ := strings.Cut(field, "@")
		var unix int64
		_, err := fmt.Sscan(at, &unix)
		return err == nil && unix > now.Unix()
	}), " ") + fmt.Sprintf(" %d@%d", 5*3600, now.AddDate(0, 0, 60).Unix())
	const removed = 1711929600000 // 2024-04-01T00:00:00Z
	for name, value := range map[string]string{
		"rules":                           calendar.Which(theirs),
		"rules/" + calendar.Which(own):    fmt.Sprintf("%d %s", removed, own),
		"rules/" + calendar.Which(theirs): fmt.Sprintf("%d %s", now.UnixMilli(), theirs),
		"pruned":                          fmt.Sprintf("%d 0 0 0", removed),
		"notify/1730160000000/0/0/10/x":   "0 0 12",
		"notify/1730160000000/2/1709074800/20/user.7.requests": "1730160000000 3 21",
		"crossing/0/0/10/x":                        "12 1730160000000",
		"crossing/2/1709074800/20/user.7.requests": "21 1730160000000",
	} {
		if _, err := db.ExecContext(ctx, db.Rebind(`INSERT INTO usage_meta (name, value) VALUES (?, ?)`), name, value); err != nil {
			t.Fatal(err)
		}
	}

	mail, other := make(chan Crossing, 100), make(chan Crossing, 100)
	tell := func(heard chan Crossing) func(context.Context, Crossing) error {
		return func(_ context.Context, c Crossing) error {
			heard <- c
			return nil
		}
	}
	cfg := quietly()
	cfg.Notify = map[string]func(context.Context, Crossing) error{"mail": tell(mail), "a/b": tell(other)}
	s, err := New(ctx, db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()

	// What was not removed may still be counted: in hours back to 35 days before history
	// was removed last, whatever the time is.
	w := &deadWriter{s: s}
	w.leave(t, "2024-03-20T12:00:00Z", "feature.outline.generated 5")
	w.leave(t, "2024-02-20T12:00:00Z", "feature.outline.generated 3")
	foldAll(t, s)
	keeper := cfg
	keeper.Retention = Retention{-1, -1, -1}
	reader, err := open(ctx, db, keeper)
	if err != nil {
		t.Fatal(err)
	}
	for month, want := range map[time.Month]int{time.February: 0, time.March: 1} {
		hour := time.Date(2024, month, 20, 13, 0, 0, 0, berlin)
		counts, err := reader.History(ctx, Query{Prefix: "feature.outline.", Step: Hour, From: hour, To: hour.Add(time.Hour)})
		if err != nil || len(counts) != want {
			t.Errorf("of an hour in %v there are %v, %v; want %d", month, counts, err, want)
		}
	}

	later := now.AddDate(0, 0, 90).UTC()
	day := time.Date(later.Year(), later.Month(), later.Day(), 0, 0, 0, 0, time.FixedZone("", 5*3600))
	if starts := s.Buckets(Day, day, day.Add(time.Second)); len(starts) != 1 || !starts[0].Equal(day) {
		t.Errorf("a day begins at %v, want %v: the rules in force are not those that were", starts, day)
	}

	for receiver, heard := range map[string]chan Crossing{"mail": mail, "a/b": other} {
		want := []string{
			"x\tvalue 10\tn 12\tat 2024-10-29T01:00:00+01:00",
			"user.7.requests\tvalue 20\tn 21\tday 2024-02-28T00:00:00+01:00\tat 2024-10-29T01:00:00+01:00",
		}
		for line := range strings.Lines(recorded(t, "told.txt")) {
			if strings.Contains(line, "\tat ") { // it was left to be told
				want = append(want, strings.TrimSuffix(line, "\n"))
			}
		}
		n := 0
		differ(t, receiver+" is told", lines(want), lines(listen(t, heard, func(string) bool { n++; return n == len(want) })))
	}
}
