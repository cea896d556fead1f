package main

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
)

var server *dbtest.Server

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &server)) }

// tiny is everything, for as short as it can.
func tiny(only string) settings {
	return settings{instances: []int{3}, time: time.Second / 2, writers: 3, names: 1000, only: regexp.MustCompile(only)}
}

// Everything runs, and every table has what was added.
func TestEverything(t *testing.T) {
	if server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	t.Parallel()
	var out strings.Builder
	if err := tiny("").run(dbtest.Context(t), &out, server); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	rows := map[string]int{}
	for line := range strings.Lines(out.String()) {
		if f := strings.Fields(line); len(f) > 2 {
			rows[f[0]+" "+f[1]]++
		}
	}
	for _, row := range []string{"usagekit 3", "upsert 3"} { // instances, and writers
		if rows[row] != 2 {
			t.Errorf("%d rows of %s in\n%s", rows[row], row, out.String())
		}
	}
	for _, text := range []string{"times as many batches", "new names", "the same again", "what was added"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("%q is not in\n%s", text, out.String())
		}
	}
}

func TestSQLite(t *testing.T) {
	var out strings.Builder
	if err := tiny("sqlite").run(dbtest.Context(t), &out, nil); err != nil || !strings.Contains(out.String(), "new names") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// forgetful instances lose a call, now and then.
type forgetful struct{ upserts }

func (f *forgetful) open(ctx context.Context, pool *sqlx.DB) (instance, error) {
	in, err := f.upserts.open(ctx, pool)
	return &losing{instance: in}, err
}

type losing struct {
	instance
	calls int
}

func (l *losing) Add(name string, n int64) {
	if l.calls++; l.calls%100 != 0 {
		l.instance.Add(name, n)
	}
}

// A way that loses counts is found out.
func TestLostCountsAreAnError(t *testing.T) {
	if server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	t.Parallel()
	w := &forgetful{upserts{interval: 100 * time.Millisecond}}
	_, err := tiny("").fleet(dbtest.Context(t), server, w, 2)
	if err == nil || !strings.Contains(err.Error(), "plain is wrong under ") {
		t.Errorf("the error is %v", err)
	}
}

func TestDifferences(t *testing.T) {
	want := map[string]int64{"right": 1, "low": 2, "missing": 3}
	if err := differences("usage_metrics", want, want); err != nil {
		t.Error(err)
	}
	err := differences("usage_metrics", want, map[string]int64{"right": 1, "low": 1, "new": 4})
	const text = `usage_metrics is wrong under 3 of 4 names:
low: 2 were added, and 1 are there
missing: 3 were added, and 0 are there
new: 0 were added, and 4 are there`
	if err == nil || err.Error() != text {
		t.Errorf("the error is %v", err)
	}
}

func TestQuantile(t *testing.T) {
	var all []time.Duration
	for i := range 200 {
		all = append(all, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0.5: 100, 0.99: 198, 1: 200} {
		if got := quantile(all, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of none it is %d", got)
	}
}

func TestInstancesTable(t *testing.T) {
	var out strings.Builder
	table := newInstancesTable(&out)
	err := table.add(instancesRow{
		way: "usagekit", instances: 10, share: 1, adds: 11000,
		used: usage{seconds: 2, batches: 20, transactions: 100, undone: 1, server: 0.5, own: 0.1, all: 0.8},
		took: []time.Duration{time.Second, 3 * time.Second, 2 * time.Second}, unseen: 1,
		rows: []int64{0, 10, 20}, bytes: []int64{0, 10240, 20480},
		said: "1 logged; the first:\n    a line\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(out.String()) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"",
		"instances a pool adds/s batches/s p50 s p99 s max s waiting most KiB most B/batch db own others ms/batch tx/s undone deadlocks",
		"usagekit 10 1 5500 10 2 3 3 10 20 10 20 1024 0.25 0.05 0.10 30 50 1 0",
		"1 of 3 markers were not seen in the time that there was: they took longer",
		"1 logged; the first:",
		"a line",
	}
	if got := strings.Join(rows, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("the table is\n%s", got)
	}
}

func TestNumbers(t *testing.T) {
	if all, err := numbers("10,100"); err != nil || len(all) != 2 || all[1] != 100 {
		t.Errorf("%v, %v", all, err)
	}
	for _, list := range []string{"", "0", "10,", "ten"} {
		if _, err := numbers(list); err == nil {
			t.Errorf("%q is taken", list)
		}
	}
}

func TestLines(t *testing.T) {
	var l lines
	if got := l.String(); got != "" {
		t.Errorf("nothing is %q", got)
	}
	for _, text := range []string{"a\n", "b\n", "c\n", "d\n"} {
		_, _ = l.Write([]byte(text))
	}
	if got := l.String(); !strings.HasPrefix(got, "    4 lines of log") || strings.Contains(got, "d\n") {
		t.Errorf("it says %q", got)
	}
}
