package main

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// Everything runs, for as short as it can, and everybody counts every call.
func TestEverybodyCountsEveryCall(t *testing.T) {
	var out strings.Builder
	s := settings{rounds: 1, cell: time.Millisecond, names: 1000, only: regexp.MustCompile("")}
	if err := s.run(&out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, row := range []string{ours, "usagekit, spool, across seals", "otelhttp", "was counted, once"} {
		if !strings.Contains(out.String(), row) {
			t.Errorf("%q is not in\n%s", row, out.String())
		}
	}
}

// A candidate that counts too little, or too much, is told from one that is fast.
func TestMissedCallsAreAnError(t *testing.T) {
	g := &group{title: "a group", contestants: []*contestant{{
		name:    "a candidate",
		workers: func(n int) ([]func() int, error) { return make([]func() int, 0, n), nil },
		close:   func() (int64, error) { return 9, nil },
		calls:   10,
	}}}
	if _, err := g.close(); err == nil || err.Error() != "a group: a candidate counted 9 of 10 calls" {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	of := func(ns ...float64) (all []cost) {
		for _, v := range ns {
			all = append(all, cost{ns: v, bytes: 48, allocs: 2})
		}
		return all
	}
	var out strings.Builder
	table := newTable(&out)
	table.add(&group{title: "a group", contestants: []*contestant{{name: bare}, {name: ours}, {name: "theirs"}}}, costs{
		1: {bare: of(100, 120, 110), ours: of(300, 330, 310), "theirs": of(1100, 1170, 1210)},
	})
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(out.String()) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"cores ns/op min–max net of bare B/op allocs/op ratio min–max candidate",
		"",
		"a group",
		"1 110 100–120 48.0 2.00 " + bare,
		"1 310 300–330 200 0 0 1.00 1.00–1.00 " + ours,
		"1 1,170 1,100–1,210 1,050 0 0 5.00 5.00–5.50 theirs",
	}
	if got := strings.Join(rows, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("the table is\n%s", got)
	}
}
