package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/store"
)

const quarter = 15 * time.Minute

// Counts of every quarter hour around each change of the clock of 2026, in zones
// that are off by half and quarter hours, change by half an hour, or skip
// midnight, against a reference that knows only what local clocks show.
func zones(t *testing.T, b *bench) {
	names := []string{"UTC", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/New_York", "America/Santiago", "Africa/Cairo"}
	if b.d.Again {
		names = names[2:4]
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			zone, err := time.LoadLocation(name)
			if err != nil {
				t.Fatal(err)
			}
			aroundChanges(t, newBench(t, b.d), zone)
		})
	}
}

func aroundChanges(t *testing.T, b *bench, zone *time.Location) {
	cfg := b.config()
	cfg.Location = zone
	s := b.store(cfg)

	var quarters []time.Time
	around := func(change time.Time) {
		for at := change.Add(-13 * time.Hour); at.Before(change.Add(13 * time.Hour)); at = at.Add(quarter) {
			quarters = append(quarters, at)
		}
	}
	year := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).In(zone)
	for at := year; ; {
		_, change := at.ZoneBounds()
		if change.IsZero() || change.Year() > 2026 {
			break
		}
		around(change)
		at = change
	}
	around(time.Date(2026, 7, 31, 21, 0, 0, 0, time.UTC)) // a month's end, in all of them

	want := map[store.Step]map[time.Time]int64{store.Hour: {}, store.Day: {}, store.Month: {}}
	daily, monthly := map[time.Time]map[string]bool{}, map[time.Time]map[string]bool{}
	for i, at := range quarters {
		n := int64(i%7 + 1)
		user := strconv.Itoa(i % 11)
		b.batch(fmt.Sprintf("w%d", i%40), int64(i/40+1), at.Add(7*time.Minute),
			counter.Count{Name: "feature.a.used", N: n}, counter.Count{Name: "user." + user + ".requests", N: 1})
		for step := range want {
			want[step][shownSince(step, at, zone)] += n
		}
		for step, active := range map[store.Step]map[time.Time]map[string]bool{store.Day: daily, store.Month: monthly} {
			start := shownSince(step, at, zone)
			if active[start] == nil {
				active[start] = map[string]bool{}
			}
			active[start][user] = true
		}
	}
	b.fold(s)
	for b.number(`SELECT COUNT(*) FROM usage_inbox`) > 0 {
		b.fold(s)
	}

	history := func(q store.Query) map[time.Time]int64 {
		t.Helper()
		counts, err := s.History(b.ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		got := map[time.Time]int64{}
		for _, c := range counts {
			got[c.Start.UTC()] = c.N
		}
		return got
	}
	for step, w := range want {
		if got := history(store.Query{Name: "feature.a.used", Step: step}); !maps.Equal(got, w) {
			t.Errorf("by %v:\n got %v\nwant %v", step, got, w)
		}
	}
	for name, active := range map[string]map[time.Time]map[string]bool{"user.active.daily": daily, "user.active.monthly": monthly} {
		w := map[time.Time]int64{}
		for start, users := range active {
			w[start] = int64(len(users))
		}
		if got := history(store.Query{Name: name}); !maps.Equal(got, w) {
			t.Errorf("%s:\n got %v\nwant %v", name, got, w)
		}
	}
	// Each day as a range, and from each day to the end.
	days := slices.SortedFunc(maps.Keys(want[store.Day]), time.Time.Compare)
	rest := int64(0)
	for i := len(days) - 1; i >= 0; i-- {
		q := store.Query{Name: "feature.a.used", From: days[i], To: days[i].Add(time.Second)}
		q.Step = store.Day // widened to it
		rest += want[store.Day][days[i]]
		if got := b.totals(s, q)["feature.a.used"]; got != want[store.Day][days[i]] {
			t.Errorf("the day of %v: %d, want %d", days[i].In(zone), got, want[store.Day][days[i]])
		}
		if got := b.totals(s, store.Query{Name: "feature.a.used", From: days[i]})["feature.a.used"]; got != rest {
			t.Errorf("from %v on: %d, want %d", days[i].In(zone), got, rest)
		}
	}
	// Today begins at the local midnight.
	now := time.Now()
	midnight := shownSince(store.Day, now.Truncate(quarter), zone)
	b.batch("today", 1, midnight.Add(-time.Second), counter.Count{Name: "api.GET /x.requests", N: 5}, counter.Count{Name: "user.yesterday.requests", N: 1})
	b.batch("today", 2, midnight, counter.Count{Name: "api.GET /x.requests", N: 3}, counter.Count{Name: "user.today.requests", N: 1})
	b.fold(s)
	if shownSince(store.Day, time.Now().Truncate(quarter), zone).Equal(midnight) { // or it is tomorrow by now
		b.want(s, map[string]int64{"api.requests.today": 3, "user.active.daily": 1})
	}
}

// shownSince is the first quarter hour of those up to at on which a clock of zone
// shows the hour, day or month that it shows at at.
func shownSince(step store.Step, at time.Time, zone *time.Location) time.Time {
	shows := func(t time.Time) string {
		switch t = t.In(zone); step {
		case store.Hour:
			return t.Format("2006-01-02 15 Z07:00") // the hour that comes twice is two
		case store.Day:
			return t.Format("2006-01-02")
		}
		return t.Format("2006-01")
	}
	for shown := shows(at); shows(at.Add(-quarter)) == shown; {
		at = at.Add(-quarter)
	}
	return at.UTC()
}

// Zones are one when they would have every bucket begin at the same time, whatever
// their names: of what is kept, and of the year to come.
func zoneByAnotherName(t *testing.T, b *bench) {
	load := func(name string) *time.Location {
		t.Helper()
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		return zone
	}
	cfg := b.config()
	cfg.Retention = store.Retention{}
	b.store(cfg)
	open := func(zone string, offline bool) (*store.Store, error) {
		cfg := cfg
		cfg.Location, cfg.StartOffline = load(zone), offline
		return store.New(b.ctx, b.pool(nil), cfg)
	}
	for i, names := range [][2]string{
		{"America/Los_Angeles", "US/Pacific"}, {"US/Pacific", "America/Los_Angeles"}, {"Europe/Kiev", "Europe/Kyiv"},
		{"UTC", "Etc/UTC"}, {"Etc/UTC", "UTC"}, {"Asia/Calcutta", "Asia/Kolkata"}, {"Europe/Berlin", "Europe/Stockholm"},
	} {
		b.exec(`UPDATE usage_meta SET value = ? WHERE name = 'zone'`, names[0])
		for j, offline := range []bool{false, true} {
			s, err := open(names[1], offline)
			if err != nil {
				t.Errorf("%s, where the database has %s: %v", names[1], names[0], err)
				continue
			}
			s.Inc("feature.a.used")
			b.flush(s)
			b.want(s, map[string]int64{"feature.a.used": int64(2*i + j + 1)})
			if got := s.Location().String(); got != names[0] {
				t.Errorf("Location() = %s, want the database's, %s", got, names[0])
			}
			if err := errors.Join(s.Stats().Err, s.Shutdown(b.ctx)); err != nil {
				t.Errorf("%s for %s: %v", names[1], names[0], err)
			}
		}
	}
	// Those that agree today do not for that.
	for _, names := range [][2]string{{"America/Denver", "America/Phoenix"}, {"Europe/London", "Africa/Abidjan"}, {"UTC", "Europe/London"}} {
		b.exec(`UPDATE usage_meta SET value = ? WHERE name = 'zone'`, names[0])
		s, err := open(names[1], false)
		if err == nil {
			_ = s.Shutdown(b.ctx)
			t.Errorf("%s was taken for %s", names[1], names[0])
		} else if !strings.Contains(err.Error(), names[0]) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s for %s: %v", names[1], names[0], err)
		}
	}
}

// History that was written under other rules than a store knows, as those of an older
// image are, or of the zone that the database had before: each count is in one bucket
// of every answer whose range covers it, and no answer has it twice.
func otherRules(t *testing.T, b *bench) {
	pairs := [][2]string{
		{"Asia/Dhaka", "Asia/Tashkent"}, {"Asia/Tashkent", "Asia/Dhaka"}, // an hour less, or more, as Kazakhstan's in 2024
		{"Africa/Johannesburg", "Europe/Athens"}, {"Europe/Athens", "Africa/Johannesburg"}, // summer time begins, or ends for ever
		{"Asia/Kolkata", "Asia/Tashkent"}, {"UTC", "Asia/Kathmandu"}, // half and quarter hours
	}
	if b.d.Again {
		pairs = pairs[3:4]
	}
	for _, zones := range pairs {
		t.Run(zones[0]+" then "+zones[1], func(t *testing.T) {
			underOtherRules(t, newBench(t, b.d), zones)
		})
	}
}

func underOtherRules(t *testing.T, b *bench, zones [2]string) {
	after, err := time.LoadLocation(zones[1])
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	if cfg.Location, err = time.LoadLocation(zones[0]); err != nil {
		t.Fatal(err)
	}
	type count struct {
		at time.Time
		n  int64
	}
	var counts []count
	all := int64(0)
	end := time.Date(2026, 4, 3, 0, 0, 0, 0, time.UTC) // some days after the clocks of Athens
	first := end.AddDate(0, 0, -12)
	write := func(s *store.Store, writer string, from, to time.Time, step time.Duration) {
		for seq := int64(1); from.Before(to); seq++ {
			n := 1 + seq%7
			counts = append(counts, count{from, n})
			all += n
			b.batch(writer, seq, from, counter.Count{Name: "feature.a.used", N: n}, counter.Count{Name: "user.7.calls", N: n}, counter.Count{Name: "user.7.requests", N: n})
			from = from.Add(step)
		}
		b.fold(s)
		for b.number(`SELECT COUNT(*) FROM usage_inbox`) > 0 {
			b.fold(s)
		}
	}
	s := b.store(cfg)
	write(s, "before", first, end.AddDate(0, 0, -2), time.Hour)
	if err := s.Shutdown(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE usage_meta SET value = ? WHERE name = 'zone'`, zones[1])
	cfg.Location = nil
	s = b.store(cfg)
	write(s, "after", end.AddDate(0, 0, -5), end, time.Hour) // both wrote three of the days

	for _, step := range []store.Step{store.Hour, store.Day, store.Month} {
		for _, name := range []string{"feature.a.used", "user.7.requests", "user.7.calls"} {
			if step == store.Hour && name != "feature.a.used" {
				continue
			}
			q := store.Query{Name: name, Step: step}
			history, err := s.History(b.ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			var each []store.Count
			for c, err := range s.Each(b.ctx, q) {
				if err != nil {
					t.Fatal(err)
				}
				each = append(each, c)
			}
			if !slices.Equal(history, each) {
				t.Errorf("%s by %v: History has\n%v, Each has\n%v", name, step, history, each)
			}
			sum := int64(0)
			for i, c := range history {
				sum += c.N
				if want := shownSince(step, c.Start, after); !c.Start.Equal(want) {
					t.Errorf("%s by %v: a bucket begins at %v, want %v", name, step, c.Start, want.In(after))
				}
				if i > 0 && !c.Start.After(history[i-1].Start) {
					t.Errorf("%s by %v: %v comes twice", name, step, c.Start)
				}
				// Alone, it is what it is in the list.
				q := store.Query{Name: name, Step: step, From: c.Start, To: c.Start.Add(time.Second)}
				if h, err := s.History(b.ctx, q); err != nil || len(h) != 1 || h[0] != c {
					t.Errorf("%s by %v: the bucket of %v alone is %v, %v; want %v", name, step, c.Start, h, err, c)
				}
			}
			if sum != all {
				t.Errorf("%s by %v: %d in history, want %d", name, step, sum, all)
			}
		}
	}
	// Ranges that do not overlap and leave nothing out have each count once, wherever
	// they are cut; by whole hours, exactly what was counted then.
	whole := true
	for _, zone := range zones {
		loc, _ := time.LoadLocation(zone)
		_, offset := first.In(loc).Zone()
		whole = whole && offset%3600 == 0
	}
	total := func(q store.Query) int64 { return b.totals(s, q)[q.Name] }
	for cut := first.Add(-3 * time.Hour); cut.Before(end.Add(3 * time.Hour)); cut = cut.Add(7 * time.Hour) {
		q := store.Query{Name: "feature.a.used"}
		was, is := q, q
		was.To, is.From = cut, cut
		if x, y := total(was), total(is); x+y != all && whole {
			t.Errorf("cut at %v: %d before and %d after, want %d together", cut, x, y, all)
		}
		if !whole {
			continue
		}
		for _, to := range []time.Duration{5 * time.Hour, 31 * time.Hour, 100 * time.Hour} {
			is.To = cut.Add(to)
			want := int64(0)
			for _, c := range counts {
				if !c.at.Before(cut) && c.at.Before(is.To) {
					want += c.n
				}
			}
			if got := total(is); got != want {
				t.Errorf("%v from %v: %d, want %d", to, cut, got, want)
			}
		}
	}
	for day := shownSince(store.Day, first, after); day.Before(end); day = day.Add(26 * time.Hour) {
		cut := shownSince(store.Day, day, after)
		for _, name := range []string{"feature.a.used", "user.7.requests"} {
			x, y := total(store.Query{Name: name, Step: store.Day, To: cut}), total(store.Query{Name: name, Step: store.Day, From: cut})
			if x+y != all {
				t.Errorf("%s, days before %v have %d, those from then on %d, want %d together", name, cut.In(after), x, y, all)
			}
			if name != "feature.a.used" || !whole {
				continue
			}
			if x, y := total(store.Query{Name: name, To: cut}), total(store.Query{Name: name, From: cut}); x+y != all { // by hours
				t.Errorf("%s, hours before %v have %d, those from then on %d, want %d together", name, cut.In(after), x, y, all)
			}
		}
	}
	if err := s.Erase(b.ctx, "7"); err != nil {
		t.Fatal(err)
	}
	if n := b.number(`SELECT COUNT(*) FROM usage_history WHERE key LIKE 'user.7.%'`); n != 0 {
		t.Errorf("%d rows of a user that was erased", n)
	}
	// Today, of which an instance that knows nothing of this has begun a bucket as well.
	today := shownSince(store.Day, time.Now().Truncate(quarter), after)
	row := `INSERT INTO usage_history (step, bucket, key, value) VALUES (2, ?, 'api.requests.total', ?) ON CONFLICT (step, bucket, key) DO UPDATE SET value = excluded.value`
	b.exec(row, today.Unix(), 3)
	for n, want := range map[int64]int64{4: 7, counter.Max - 1: counter.Max} {
		b.exec(row, today.Add(-time.Hour).Unix(), n)
		got, err := s.Get(b.ctx, "api.requests.today")
		if err != nil {
			t.Fatal(err)
		}
		if got != want && shownSince(store.Day, time.Now().Truncate(quarter), after).Equal(today) { // or it is tomorrow by now
			t.Errorf("of 3 and %d today: api.requests.today = %d, want %d", n, got, want)
		}
	}
}

// fixed is a zone of this name whose clocks never change, whatever the system has under it.
func fixed(t *testing.T, name string, offset time.Duration) *time.Location {
	t.Helper()
	header := func(types, chars byte) []byte {
		h := append([]byte("TZif2"), make([]byte, 39)...)
		h[39], h[43] = types, chars
		return h
	}
	data := append(header(0, 0), header(1, 1)...)
	data = binary.BigEndian.AppendUint32(data, uint32(int32(offset/time.Second)))
	data = append(data, 0, 0, 0, '\n', '\n')
	zone, err := time.LoadLocationFromTZData(name, data)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

// twoRules are two of one zone, by both of which it is about noon: so today is today.
func twoRules(t *testing.T) (before, now *time.Location) {
	noon := 12 - time.Now().UTC().Hour()
	name := fmt.Sprintf("Etc/GMT%+d", -noon)
	if noon == 0 {
		name = "UTC"
	}
	return fixed(t, name, time.Duration(noon+1)*time.Hour), fixed(t, name, time.Duration(noon)*time.Hour)
}

// Instances that have other rules of the zone, as those of an older image do, write
// by one: days that have begun go on, nobody is active in one twice, no quota begins
// anew, and who has other rules says so.
func instancesOfOtherRules(t *testing.T, b *bench) {
	before, now := twoRules(t)
	name := now.String()
	instance := func(zone *time.Location) *store.Store {
		cfg := b.config()
		cfg.Location, cfg.Retention = zone, store.Retention{}
		return b.store(cfg)
	}
	taken := int64(0)
	count := func(s *store.Store) {
		t.Helper()
		s.Inc("feature.a.used")
		s.Inc("user.7.requests")
		b.flush(s)
		if _, err := s.AddNow(b.ctx, "feature.a.used", 1); err != nil {
			t.Error(err)
		}
		taken++
		if left, _, ok, err := s.Take(b.ctx, "quota.7.daily", 1, 100, store.Day); left != 100-taken || !ok || err != nil {
			t.Errorf("Take: %d are left, %v, %v; want %d", left, ok, err, 100-taken)
		}
		if left, _, ok, err := s.Take(b.ctx, "quota.7.monthly", 1, 100, store.Month); left != 100-taken || !ok || err != nil {
			t.Errorf("Take of a month: %d are left, %v, %v; want %d", left, ok, err, 100-taken)
		}
	}
	of := instance(before)
	count(of)
	if why := of.Stats().Degraded; why != "" {
		t.Errorf("alone: %s", why)
	}
	updated := instance(now)
	count(updated)
	count(of)
	count(updated)
	restarted := instance(before) // beside the new ones
	count(restarted)
	count(of)
	for i, s := range []*store.Store{of, updated, restarted} {
		if why := s.Stats().Degraded; strings.Contains(why, name) != (s != updated) {
			t.Errorf("instance %d: Degraded is %q", i, why)
		}
		b.want(s, map[string]int64{"user.active.daily": 1, "user.active.monthly": 1})
		for key, want := range map[string]int64{"feature.a.used": 2 * taken, "quota.7.daily": taken, "user.active.daily": 1} {
			h, err := s.History(b.ctx, store.Query{Name: key, Step: store.Day})
			if err != nil || len(h) != 1 || h[0].N != want || h[0].Start.In(now).Hour() != 0 {
				t.Errorf("instance %d: %s by day: %v, %v; want %d in one that begins at midnight", i, key, h, err, want)
			}
		}
	}
	if n := b.number(`SELECT COUNT(DISTINCT bucket) FROM usage_history WHERE step = 2`); n != 1 {
		t.Errorf("the day is %d", n)
	}
	// Of a zone that begins anew, every instance has the same.
	later := instance(now)
	if why := later.Stats().Degraded; why != "" {
		t.Errorf("another one with the new rules: %s", why)
	}
}

// An instance that was there before others brought other rules of the zone follows those
// with the first thing that it does, whatever that is.
func otherRulesAreFollowedAtOnce(t *testing.T, b *bench) {
	before, now := twoRules(t)
	instance := func(zone *time.Location) *store.Store {
		cfg := b.config()
		cfg.Location, cfg.Retention = zone, store.Retention{}
		return b.store(cfg)
	}
	day := func(s *store.Store) error {
		h, err := s.History(b.ctx, store.Query{Name: "feature.a.used", Step: store.Day})
		if err == nil && (len(h) != 1 || h[0].Start.In(now).Hour() != 0) {
			err = fmt.Errorf("by day: %v, want one that begins at midnight", h)
		}
		return err
	}
	ways := []struct {
		name string
		do   func(*store.Store) error
	}{
		{"History", day},
		{"AddNow", func(s *store.Store) error { _, err := s.AddNow(b.ctx, "feature.a.used", 1); return err }},
		{"Take", func(s *store.Store) error {
			_, _, _, err := s.Take(b.ctx, "quota.7.daily", 1, 100, store.Day)
			return err
		}},
		{"Flush", func(s *store.Store) error { s.Inc("feature.a.used"); return s.Flush(b.ctx) }},
	}
	var of []*store.Store
	for range ways {
		of = append(of, instance(before))
	}
	updated := instance(now)
	updated.Inc("feature.a.used")
	b.flush(updated)
	for i, way := range ways {
		if err := way.do(of[i]); err != nil {
			t.Errorf("%s: %v", way.name, err)
		}
		if n := b.number(`SELECT COUNT(DISTINCT bucket) FROM usage_history WHERE step = 2`); n != 1 {
			t.Errorf("after %s, the day is %d", way.name, n)
		}
	}
}
