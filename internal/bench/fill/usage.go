package main

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/store"
)

const (
	days     = 395 // 13 months
	userDays = 90  // of them, the last, on which users came
	routes   = 500

	allUsers    = 1_000_000 // at scale 1
	allRequests = 300_000   // a day, at scale 1
)

// The names that a fold derives.
const (
	sumsOfRoutes  = "api.requests." // and the measure; "total" of requests
	activeDaily   = "user.active.daily"
	activeMonthly = "user.active.monthly"
)

const density = `Filled as if used for 13 months: of 500 routes, the r-th has 1/r² of the requests, 300,000
a day at scale 1. A name has a row in each hour in which one of it is expected, else in its
share of the hours. Of the users, 4 % come every day, 10 % every 3rd, 13 % every 7th, all
others once in 90 days, the last: 100,000 a day at scale 1. Rows lie in the order of their
first counts, as folds insert them; those of months in none.
`

// usage is what is filled in: what the folds of 13 months, up to the hour that
// begins at last, would have left. It is the same in every run at the same hour.
type usage struct {
	last   time.Time // UTC
	series []series
	users  []user
	seen   []counted // in the order of their first counts
	random *rand.Rand
}

type counted struct {
	key   string
	total *int64
}

// series is a name that is counted all day long.
type series struct {
	key          string
	hourly       float64 // how often, on average
	each         int64   // how much at a time
	month, total int64
}

// user comes every so many days.
type user struct {
	key          string
	every, phase int
	month, total int64
}

// row is one of usage_history; without a step, of usage_metrics.
type row struct {
	step   store.Step
	bucket int64
	key    string
	n      int64
	first  float64 // when it was first counted, in hours of its day
}

func newUsage(scale float64, last time.Time) *usage {
	u := &usage{last: last.UTC().Truncate(time.Hour), random: rand.New(rand.NewPCG(1, 2))}
	add := func(hourly float64, each int64, format string, args ...any) {
		u.series = append(u.series, series{key: fmt.Sprintf(format, args...), hourly: hourly * scale, each: each})
	}
	squares := 0.0 // Σ 1/r²
	for r := 1; r <= routes; r++ {
		squares += 1 / float64(r*r)
	}
	for r := 1; r <= routes; r++ {
		requests := allRequests / 24. / squares / float64(r*r)
		for _, m := range measures() {
			add(requests*m.share, 1, "api.%s.%s", route(r), m.name)
		}
	}
	for i := 1; i <= 10; i++ {
		add(allRequests/240., 1, "api.requests.area%d", i)
	}
	for i := 1; i <= 40; i++ {
		add(400/float64(i*i), 1, "feature.f%d.used", i)
	}
	for i := 1; i <= 20; i++ {
		add(50/float64(i*i), 1, "error.service%d.timeout", i)
	}
	for i := 1; i <= 5; i++ {
		calls := 200 / float64(i*i)
		add(calls, 1, "llm.model-%d.calls", i)
		add(calls, 800, "llm.model-%d.tokens", i)
		add(calls, 600, "llm.model-%d.input_tokens", i)
		add(calls, 200, "llm.model-%d.output_tokens", i)
	}
	add(100, 1, "mail.sent")
	add(400, 1, "user.registrations")
	for _, m := range measures() { // after all that they are the sums of
		add(0, 1, "%s", sumOf(m.name))
	}

	u.users = make([]user, int(allUsers*scale))
	for i := range u.users {
		one := &u.users[i]
		one.key, one.phase = fmt.Sprintf("user.%d.requests", i), i/100
		switch class := i % 100; {
		case class < 4:
			one.every = 1
		case class < 14:
			one.every = 3
		case class < 27:
			one.every = 7
		default:
			one.every = userDays
		}
	}
	return u
}

// measure is one of a route's, of so many of its requests.
type measure struct {
	name  string
	share float64
}

func measures() []measure {
	return []measure{
		{"requests", 1}, {"status_2xx", 0.95}, {"status_4xx", 0.04}, {"status_5xx", 0.01},
		{"latency_5ms", 0.3}, {"latency_25ms", 0.4}, {"latency_100ms", 0.2}, {"latency_500ms", 0.08}, {"latency_2500ms", 0.02},
	}
}

// sumOf is the name of what all routes have of a measure.
func sumOf(measure string) string {
	if measure == "requests" {
		measure = "total"
	}
	return sumsOfRoutes + measure
}

func route(r int) string { return fmt.Sprintf("GET /collection%d/{id}/items", r) }

// rows hands over all rows, a day's or a month's at a time: the totals last.
func (u *usage) rows(take func([]row) error) error {
	today := u.last.Truncate(24 * time.Hour)
	for day := today.AddDate(0, 0, 1-days); !day.After(today); day = day.AddDate(0, 0, 1) {
		users := !day.Before(today.AddDate(0, 0, 1-userDays))
		if err := take(u.day(day, users)); err != nil {
			return err
		}
		if next := day.AddDate(0, 0, 1); next.Day() == 1 || day.Equal(today) {
			if err := take(u.month(day.AddDate(0, 0, 1-day.Day()))); err != nil {
				return err
			}
		}
	}
	return take(u.totals())
}

// day returns the rows of a day and its hours.
func (u *usage) day(day time.Time, users bool) []row {
	var all []row
	sums := make([]int64, len(u.series))
	for at := day; at.Before(day.AddDate(0, 0, 1)) && !at.After(u.last); at = at.Add(time.Hour) {
		ofRoutes := map[string]int64{} // by the name of their sum
		for i := range u.series {
			s := &u.series[i]
			n := s.count(u.random)
			if s.hourly == 0 {
				n = ofRoutes[s.key]
			}
			if n == 0 {
				continue
			}
			sums[i] += n
			if group, subject, m := store.SplitName(s.key); group == "api" && subject != "requests" {
				ofRoutes[sumOf(m)] += n
			}
			if !strings.HasPrefix(s.key, "user.") {
				all = append(all, row{store.Hour, at.Unix(), s.key, n, at.Sub(day).Hours() + u.earliest(n)})
			}
		}
	}
	before, active := len(u.seen), int64(0)
	for i, n := range sums {
		if n > 0 {
			s := &u.series[i]
			u.see(s.key, &s.total)
			s.month, s.total = s.month+n, s.total+n
			all = append(all, row{store.Day, day.Unix(), s.key, n, 24 * u.earliest(n)})
		}
	}
	number := int(day.Unix() / (24 * 3600))
	for i := range u.users {
		if one := &u.users[i]; users && (number+one.phase)%one.every == 0 {
			n := 1 + u.random.Int64N(5)
			u.see(one.key, &one.total)
			one.month, one.total = one.month+n, one.total+n
			all = append(all, row{store.Day, day.Unix(), one.key, n, 24 * u.earliest(n)})
			active++
		}
	}
	if active > 0 {
		all = append(all, row{store.Day, day.Unix(), activeDaily, active, 0})
	}
	slices.SortFunc(all, func(a, b row) int { return cmp.Compare(a.first, b.first) })
	shuffle(u.random, u.seen[before:]) // near enough
	return all
}

// earliest is the least of n random numbers from 0 to 1.
func (u *usage) earliest(n int64) float64 {
	return 1 - math.Pow(u.random.Float64(), 1/float64(n))
}

// count returns how much is counted in an hour: around the average, or one at a time.
func (s *series) count(random *rand.Rand) int64 {
	switch {
	case s.hourly >= 1:
		return s.each * max(1, int64(s.hourly*(0.5+random.Float64())))
	case random.Float64() < s.hourly:
		return s.each
	}
	return 0
}

// month returns the rows of the month that begins at first, and ends it: only the
// group user has any.
func (u *usage) month(first time.Time) []row {
	var all []row
	add := func(key string, n *int64) {
		if *n > 0 {
			all = append(all, row{step: store.Month, bucket: first.Unix(), key: key, n: *n})
		}
		*n = 0
	}
	for i := range u.users {
		add(u.users[i].key, &u.users[i].month)
	}
	active := int64(len(all))
	add(activeMonthly, &active)
	for i := range u.series {
		if s := &u.series[i]; strings.HasPrefix(s.key, "user.") {
			add(s.key, &s.month)
		}
	}
	shuffle(u.random, all)
	return all
}

// see notes that key is counted now, whose total is that.
func (u *usage) see(key string, total *int64) {
	if *total == 0 {
		u.seen = append(u.seen, counted{key, total})
	}
}

func (u *usage) totals() []row {
	var all []row
	for _, c := range u.seen {
		all = append(all, row{key: c.key, n: *c.total})
	}
	return all
}

func shuffle[T any](random *rand.Rand, list []T) {
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}
