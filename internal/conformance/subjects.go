package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

// ids are those of users who would like to see each other's usage.
func ids() []string {
	long := strings.Repeat("long", 200)
	return []string{
		"42", "42.7", "42.7.8", "4", "427", "42/", "42-", "42.requests", "42.", ".42", ".", "..", "a b", "%", "_", "é", "\U0010FFFF", "\U0010FFFFx",
		"(other)", "((other)", "(", "(invalid)", "active", "active.daily", "requests", "a\x01b", "a\x02b", "a\ufffdb", "\xff", "\x00",
		long, long + ".7", long + "x", long[:490], long[:480] + "(x", long[:500], "42~0123456789abcdef", naming.Of("user", long, "x")[len("user."):],
	}
}

// A user sees what was counted under their id, however that looks, and nothing of anybody
// else's.
func subjects(t *testing.T, b *bench) {
	s := b.store(b.config())
	measures := []string{"requests", "tokens", "a_measure_whose_name_takes_more_room_than_that_of_another_one_does"[:naming.MaxPart]}
	of := map[string]map[string]int64{} // by id and name
	for i, id := range ids() {
		of[id] = map[string]int64{}
		for j, m := range measures {
			name := "user." + naming.Escape(id) + "." + m // as package middleware does it
			n := int64(1000*i + j + 1)
			s.Add(name, n)
			of[id][naming.Clean(name)] = n
		}
		s.Add("feature."+naming.Escape(id)+".used", 7)
	}
	for _, name := range []string{"user.(other).requests", "user.registrations", "user.x", "x.42.requests", "42.requests"} {
		s.Add(name, 9)
	}
	b.flush(s)
	if n := len(b.totals(s, store.Query{Prefix: "user."})); n != len(ids())*len(measures)+5 { // two of active users
		t.Fatalf("%d names of users", n)
	}
	sum := func(counts []store.Count) map[string]int64 {
		sums := map[string]int64{}
		for _, c := range counts {
			sums[c.Name] += c.N
		}
		return sums
	}
	for id, want := range of {
		for _, q := range []store.Query{{}, {From: time.Now().Add(-24 * time.Hour)}, {To: time.Now().Add(24 * time.Hour)}} {
			q.Prefix, q.Subject = "user.", id
			said := fmt.Sprintf("%.40q, from %v to %v", id, q.From, q.To)
			totals, err := s.Totals(b.ctx, q)
			if got := sum(totals); err != nil || !maps.Equal(got, want) {
				t.Errorf("Totals of %s: %v, %v; want %v", said, got, err, want)
			}
			largest := q
			largest.Limit = 1
			if totals, err := s.Totals(b.ctx, largest); err != nil || len(totals) != 1 || totals[0].N != want[totals[0].Name] {
				t.Errorf("the largest of %s: %v, %v", said, totals, err)
			}
			for _, step := range []store.Step{0, store.Day, store.Month} {
				q := q
				q.Step = step
				history, err := s.History(b.ctx, q)
				if got := sum(history); err != nil || !maps.Equal(got, want) {
					t.Errorf("History of %s by %v: %v, %v; want %v", said, step, got, err, want)
				}
				var all []store.Count
				for c, err := range s.Each(b.ctx, q) {
					if err != nil {
						t.Error(err)
					}
					all = append(all, c)
				}
				if got := sum(all); !maps.Equal(got, want) {
					t.Errorf("Each of %s by %v: %v; want %v", said, step, got, want)
				}
			}
			rows, err := s.Rows(b.ctx, q)
			got := map[string]int64{}
			for _, r := range rows {
				for m, n := range r.Counts {
					got[r.Group+"."+r.Subject+"."+m] = n
				}
			}
			if err != nil || !maps.Equal(got, want) {
				t.Errorf("Rows of %s: %v, %v; want %v", said, rows, err, want)
			}
		}
	}

	// With other conditions.
	for _, c := range []struct {
		q    store.Query
		want string
	}{
		{store.Query{Prefix: "user.", Subject: "42", Measure: "requests"}, "user.42.requests"},
		{store.Query{Prefix: "user.", Subject: "42", Measure: "tokens", Contains: "42.T"}, "user.42.tokens"},
		{store.Query{Prefix: "user.", Subject: "42", Except: []string{"user.42.requests", "user.42.a"}}, "user.42.tokens"},
		{store.Query{Prefix: "user.", Subject: "42", Except: []string{"user."}}, ""},
		{store.Query{Prefix: "user.42.r", Subject: "42"}, "user.42.requests"},
		{store.Query{Prefix: "user.42.7.r", Subject: "42"}, ""},
		{store.Query{Prefix: "feature.", Subject: "42"}, "feature.42.used"},
		{store.Query{Prefix: "feature.", Subject: "nobody"}, ""},
		{store.Query{Name: "user.42.requests", Subject: "42"}, "user.42.requests"},
		{store.Query{Name: "user.42.7.requests", Subject: "42"}, ""},
		{store.Query{Name: "x", Subject: "42"}, ""},
		{store.Query{Names: []string{"user.42.requests", "user.42.7.requests", "feature.42.used", "user.registrations", "42.requests"}, Subject: "42"}, "feature.42.used user.42.requests"},
		{store.Query{Names: []string{"user.42.requests", "feature.42.used"}, Prefix: "user.", Subject: "42"}, "user.42.requests"},
		{store.Query{Names: []string{"user.42.7.requests", "feature.42.7.used"}, Subject: "42"}, ""},
		{store.Query{Name: naming.ActiveDaily, Subject: "active"}, ""},
	} {
		var names []string
		counts, err := s.Totals(b.ctx, c.q)
		for _, n := range counts {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%+v: %q, %v; want %q", c.q, got, err, c.want)
		}
	}
	for _, q := range []store.Query{{Subject: "42"}, {Prefix: "user", Subject: "42"}, {Measure: "requests", Subject: "42"}} {
		for _, err := range []error{second(s.Totals(b.ctx, q)), second(s.Rows(b.ctx, q)), second(s.History(b.ctx, q))} {
			if !invalid(err, `Subject without its group: want that in Prefix, as in "user."`) {
				t.Errorf("%+v: %v", q, err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

// What several questions of one Reading say is of one moment, whatever is counted
// meanwhile; and it says which.
func readings(t *testing.T, b *bench) {
	s := b.store(b.config())
	s.Add("feature.a.used", 1)
	s.Add("user.42.requests", 1)
	b.flush(s)
	err := s.Read(b.ctx, func(ctx context.Context, r *store.Reading) error {
		look := func() string {
			n, err1 := r.Get(ctx, "feature.a.used")
			totals, err2 := r.Totals(ctx, store.Query{})
			rows, err3 := r.Rows(ctx, store.Query{From: r.Now.Add(-time.Hour)})
			history, err4 := r.History(ctx, store.Query{Step: store.Day})
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				t.Error(err)
			}
			return fmt.Sprint(n, totals, rows, history, r.Now, r.FoldedThrough)
		}
		was := look()
		for range 3 {
			s.Add("feature.a.used", 1)
			s.Add("feature.b.used", 1)
			s.Add("user.43.requests", 1)
			if !b.d.Turns {
				b.flush(s)
			}
			if is := look(); is != was {
				t.Errorf("after a fold:\n%s, was\n%s", is, was)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	b.flush(s)
	var now, through time.Time
	err = s.Read(b.ctx, func(ctx context.Context, r *store.Reading) error {
		n, err := r.Get(ctx, "feature.a.used")
		if now, through = r.Now, r.FoldedThrough; n != 4 {
			t.Errorf("%d of 4", n)
		}
		return err
	})
	if err != nil || time.Since(now).Abs() > time.Minute || !through.Equal(now) || !s.Stats().FoldedThrough.Equal(through) {
		t.Errorf("as of %v, complete through %v, %v; Stats: %v", now, through, err, s.Stats().FoldedThrough)
	}

	// What goes wrong in the middle is said as anywhere else.
	mine := errors.New("mine")
	for what, c := range map[string]struct {
		f    func(ctx context.Context, r *store.Reading) error
		want func(err error) bool
	}{
		"an error of the caller's": {func(context.Context, *store.Reading) error { return mine }, func(err error) bool { return err == mine }},
		"a bad query": {func(ctx context.Context, r *store.Reading) error {
			return second(r.Totals(ctx, store.Query{Limit: -1}))
		}, func(err error) bool { return invalid(err, "Limit") && err.Error()[:12] == "store: Query" }},
		"a bad query that does not matter": {func(ctx context.Context, r *store.Reading) error {
			if err := second(r.History(ctx, store.Query{Step: 9})); !invalid(err, "Step") {
				t.Error(err)
			}
			return second(r.Get(ctx, "feature.a.used"))
		}, func(err error) bool { return err == nil }},
		"a context that ended": {func(ctx context.Context, r *store.Reading) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return second(r.Totals(ctx, store.Query{}))
		}, func(err error) bool {
			return errors.Is(err, store.ErrUnavailable) && strings.HasPrefix(err.Error(), "store: read: ")
		}},
		"a panic": {func(context.Context, *store.Reading) error { panic("mine") }, func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "panic: mine")
		}},
		"the end of its goroutine, as of a test that failed": {func(context.Context, *store.Reading) error { runtime.Goexit(); return nil }, func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "Goexit") && !errors.Is(err, store.ErrUnavailable)
		}},
	} {
		if err := s.Read(b.ctx, c.f); !c.want(err) {
			t.Errorf("%s: %v", what, err)
		}
		if n, err := s.Get(b.ctx, "feature.a.used"); n != 4 || err != nil {
			t.Errorf("after %s: %d, %v", what, n, err)
		}
	}
}
