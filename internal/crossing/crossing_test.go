package crossing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

var server *dbtest.Server

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &server)) }

// onEach runs test on an empty database of each kind.
func onEach(t *testing.T, test func(v *service)) {
	t.Run("sqlite", func(t *testing.T) {
		pool, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		test(&service{T: t, pool: pool, db: opened(t, pool)})
	})
	t.Run("postgres", func(t *testing.T) {
		if server == nil {
			t.Skip("PostgreSQL was not tried: make test does")
		}
		pool, err := postgres.Open(server.NewDatabase(t))
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		test(&service{T: t, pool: pool, db: opened(t, pool)})
	})
}

// service is instances on one SQLite file, in virtual time, which tell.
type service struct {
	*testing.T
	pool *sqlx.DB
	db   *database.DB
	logs buffer
}

type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func inVirtualTime(t *testing.T, f func(v *service)) {
	path := filepath.Join(t.TempDir(), "usage.db")
	synctest.Test(t, func(t *testing.T) {
		v := &service{T: t}
		pool, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		v.pool, v.db = pool, opened(t, pool)
		f(v)
	})
}

// opened is a database with its tables.
func opened(t *testing.T, pool *sqlx.DB) *database.DB {
	t.Helper()
	db, err := database.Open(pool, database.Config{
		Log:    slog.New(slog.DiscardHandler),
		Settle: func(context.Context, *database.Tx, string) (func(), error) { return func() {}, nil },
	})
	if err == nil {
		_, err = db.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func utc() calendar.Calendar { return calendar.In(time.UTC) }

// instance starts one, and returns what ends it.
func (v *service) instance(receivers map[string]Receiver) (n *Notifier, end func()) {
	run, cancel := context.WithCancel(context.Background())
	n = NewNotifier(run, v.db, slog.New(slog.NewTextHandler(&v.logs, nil)), utc, receivers, true)
	for _, loop := range n.Loops() {
		go loop()
	}
	return n, func() { cancel(); synctest.Wait() }
}

// crossed has counters cross 5, as a fold does of an instance with these receivers.
func (v *service) crossed(receivers []string, names ...string) {
	v.Helper()
	v.crossedAt(time.Now(), receivers, names...)
}

func (v *service) crossedAt(now time.Time, receivers []string, names ...string) {
	v.Helper()
	w := Watch{Thresholds: []Threshold{{Value: 5}}, Receivers: receivers}
	var list []Crossing
	for _, name := range names {
		list = w.Crossed(list, 0, 0, name, 2, 6)
	}
	v.write(func(ctx context.Context, tx *database.Tx) error {
		if n, err := w.Record(ctx, tx, list, now); n != len(names) || err != nil {
			return fmt.Errorf("%d recorded of %d, %w", n, len(names), err)
		}
		n, err := w.Record(ctx, tx, list, now)
		if n != 0 {
			v.Errorf("%d were recorded again", n)
		}
		return err
	})
}

func (v *service) write(f func(context.Context, *database.Tx) error) {
	v.Helper()
	if err := v.db.Write(context.Background(), time.Minute, f); err != nil {
		v.Fatal(err)
	}
}

// words are how many are still to be told.
func (v *service) words() (n int) {
	v.Helper()
	if err := v.pool.Get(&n, `SELECT COUNT(*) FROM usage_notices`); err != nil {
		v.Fatal(err)
	}
	return n
}

// told is how often each receiver was told of each counter.
type told struct {
	mu    sync.Mutex
	times map[string]int
}

func (m *told) receiver(name string, then Receiver) Receiver {
	return func(ctx context.Context, c Crossing) error {
		m.mu.Lock()
		m.times[name+" "+c.Name]++
		m.mu.Unlock()
		if c.N != 6 || c.Value != 5 || c.Time.IsZero() {
			return fmt.Errorf("told of %+v", c)
		}
		if then != nil {
			return then(ctx, c)
		}
		return nil
	}
}

func (v *service) want(what string, got *told, want map[string]int) {
	v.Helper()
	synctest.Wait()
	got.mu.Lock()
	defer got.mu.Unlock()
	if !maps.Equal(got.times, want) {
		v.Errorf("%s: told %v, want %v", what, got.times, want)
	}
}

// One receiver that fails, and one that never returns, keep no other from being told; and
// none is told again because another one failed.
func TestReceiversDoNotWaitForEachOther(t *testing.T) {
	inVirtualTime(t, func(v *service) {
		got := &told{times: map[string]int{}}
		release := make(chan struct{})
		fails := 3
		receivers := map[string]Receiver{
			"mail": got.receiver("mail", nil),
			"pager": got.receiver("pager", func(context.Context, Crossing) error {
				if fails--; fails >= 0 {
					return errors.New("not now")
				}
				return nil
			}),
			"a/b ü%": got.receiver("hook", func(context.Context, Crossing) error { <-release; return nil }),
		}
		n, end := v.instance(receivers)
		v.crossed(n.Receivers(), "feature.a.used", "feature.b.used")
		n.Look()
		time.Sleep(time.Minute)
		v.want("after a minute", got, map[string]int{"mail feature.a.used": 1, "mail feature.b.used": 1, "pager feature.a.used": 3, "pager feature.b.used": 2, "hook feature.a.used": 1})
		if words := v.words(); words != 2 {
			t.Errorf("%d are to be told, want the two of the one that hangs", words)
		}
		close(release)
		time.Sleep(20 * time.Minute)
		v.want("in the end", got, map[string]int{"mail feature.a.used": 1, "mail feature.b.used": 1, "pager feature.a.used": 3, "pager feature.b.used": 2, "hook feature.a.used": 2, "hook feature.b.used": 1})
		if words := v.words(); words != 0 {
			t.Errorf("%d are to be told in the end", words)
		}
		end()
	})
}

// What is for a receiver that an instance lacks is left to one that has it.
func TestWordIsLeftToThoseThatHaveItsReceiver(t *testing.T) {
	inVirtualTime(t, func(v *service) {
		got := &told{times: map[string]int{}}
		_, end := v.instance(map[string]Receiver{"mail": got.receiver("mail", nil)})
		v.crossed([]string{"mail", "pager"}, "feature.a.used")
		time.Sleep(time.Hour)
		v.want("an instance that lacks one", got, map[string]int{"mail feature.a.used": 1})
		end()
		_, end = v.instance(map[string]Receiver{"mail": got.receiver("mail", nil), "pager": got.receiver("pager", nil)})
		time.Sleep(time.Hour)
		v.want("one that has both", got, map[string]int{"mail feature.a.used": 1, "pager feature.a.used": 1})
		end()
		if words := v.words(); words != 0 {
			t.Errorf("%d are to be told in the end", words)
		}
	})
}

// What is for nobody in particular, as an earlier release leaves it, is told to all
// receivers of who finds it, once; that which somebody has claimed, when the claim ends.
func TestWordForNobodyIsForAll(t *testing.T) {
	inVirtualTime(t, func(v *service) {
		got := &told{times: map[string]int{}}
		v.crossed(nil, "feature.a.used", "feature.b.used")
		v.pool.MustExec(`UPDATE usage_notices SET claimed = ?, tries = 1 WHERE receiver = '' AND key = 'feature.b.used'`, time.Now().Add(50*time.Second).UnixMilli())
		receivers := map[string]Receiver{"mail": got.receiver("mail", nil), "pager": got.receiver("pager", nil)}
		_, end := v.instance(receivers)
		_, endOther := v.instance(receivers) // which shares them out at the same time
		time.Sleep(10 * time.Second)
		v.want("while one is claimed", got, map[string]int{"mail feature.a.used": 1, "pager feature.a.used": 1})
		time.Sleep(time.Hour)
		v.want("in the end", got, map[string]int{"mail feature.a.used": 1, "pager feature.a.used": 1, "mail feature.b.used": 1, "pager feature.b.used": 1})
		end()
		endOther()
		if words := v.words(); words != 0 {
			t.Errorf("%d are to be told in the end", words)
		}
	})
}

// Of two that find a word for nobody at once, one shares it out: not again what it has told
// meanwhile.
func TestOneSharesAWordOut(t *testing.T) {
	onEach(t, func(v *service) {
		v.crossed(nil, "feature.a.used", "feature.b.used")
		var found []word
		v.write(func(ctx context.Context, tx *database.Tx) (err error) {
			found, err = words(ctx, tx, "", word{}, piece)
			return err
		})
		for i, want := range []int{2, 0} {
			v.write(func(ctx context.Context, tx *database.Tx) error {
				n, err := share(ctx, tx, found, []string{"mail", "pager"})
				if n != want {
					v.Errorf("time %d: %d were shared out, want %d", i+1, n, want)
				}
				return err
			})
			if n := v.words(); n != 2*want {
				v.Errorf("time %d: %d are to be told, want %d", i+1, n, 2*want)
			}
			v.pool.MustExec(`DELETE FROM usage_notices WHERE receiver <> ''`) // told
		}
	})
}

// Where there are no receivers, a crossing is a line in the log.
func TestWithoutReceiversTheLogIsTold(t *testing.T) {
	inVirtualTime(t, func(v *service) {
		n, end := v.instance(nil)
		v.crossed(n.Receivers(), "feature.a.used")
		n.Look()
		time.Sleep(time.Second)
		end()
		if log := v.logs.String(); strings.Count(log, "a threshold was crossed") != 1 || !strings.Contains(log, "name=feature.a.used") || v.words() != 0 {
			t.Errorf("%d to be told, and the log says %s", v.words(), log)
		}
	})
}

// A receiver that no instance has had for a week is gone, and what is for it is dropped;
// not what this instance has a receiver for, which may hang, nor what another one was
// telling within that week.
func TestWordForAReceiverThatIsGoneIsDropped(t *testing.T) {
	inVirtualTime(t, func(v *service) {
		const day = 24 * time.Hour
		now := time.Now()
		v.crossedAt(now.Add(-8*day), []string{"gone", "hangs", "fails"}, "feature.a.used")
		v.crossedAt(now.Add(-8*day), nil, "feature.b.used")
		v.crossedAt(now.Add(-6*day), []string{"gone"}, "feature.c.used")
		v.pool.MustExec(`UPDATE usage_notices SET claimed = ?, tries = 900 WHERE receiver = 'fails'`, now.Add(-6*day).UnixMilli())
		hangs := NewNotifier(v.Context(), v.db, slog.New(slog.NewTextHandler(&v.logs, nil)), utc, map[string]Receiver{"hangs": nil}, true)
		plain := NewNotifier(v.Context(), v.db, slog.New(slog.DiscardHandler), utc, nil, false)
		left := func() (left []string) {
			t.Helper()
			if err := v.pool.Select(&left, `SELECT CASE receiver WHEN '' THEN 'all' ELSE receiver END || ' ' || key FROM usage_notices ORDER BY 1`); err != nil {
				t.Fatal(err)
			}
			return left
		}
		for _, c := range []struct {
			n    *Notifier
			at   time.Time
			want []string
		}{
			{hangs, now, []string{"all feature.b.used", "fails feature.a.used", "gone feature.c.used", "hangs feature.a.used"}},
			{hangs, now, []string{"all feature.b.used", "fails feature.a.used", "gone feature.c.used", "hangs feature.a.used"}},
			{hangs, now.Add(25 * time.Hour), []string{"all feature.b.used", "hangs feature.a.used"}},
			{plain, now, nil}, // which has none at all
		} {
			if err := c.n.DropUnclaimed(v.Context(), c.at); err != nil {
				t.Error(err)
			}
			if got := left(); !slices.Equal(got, c.want) {
				t.Errorf("%q are left, want %q", got, c.want)
			}
		}
		if log := v.logs.String(); strings.Count(log, "told to nobody") != 3 || strings.Count(log, "receiver=gone") != 2 {
			t.Errorf("the log says %s", log)
		}
	})
}

// A user's crossings, and word of them, go with the user; others stay, as those do that
// are younger than what is kept.
func TestEraseAndPrune(t *testing.T) {
	onEach(t, func(v *service) {
		day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
		w := Watch{Thresholds: []Threshold{{Value: 5}, {Value: 5, Step: calendar.Day}}, Receivers: []string{"mail", "a/b"}}
		var list []Crossing
		for i := range 2*page + 10 {
			list = w.Crossed(list, 0, 0, fmt.Sprintf("user.%d.requests", i), 5, 5)
		}
		for i := range 10 {
			list = w.Crossed(list, calendar.Day, day.AddDate(0, 0, i).Unix(), "user.7.requests", 5, 5)
			list = w.Crossed(list, calendar.Day, day.AddDate(0, 0, i).Unix(), "user.8.requests", 5, 5)
		}
		v.write(func(ctx context.Context, tx *database.Tx) error {
			_, err := w.Record(ctx, tx, list, day)
			if err == nil {
				_, err = Watch{Thresholds: w.Thresholds}.Record(ctx, tx, w.Crossed(nil, 0, 0, "user.7.calls", 5, 5), day)
			}
			return err
		})
		left := func(where string) (n int) {
			v.Helper()
			if err := v.pool.Get(&n, `SELECT COUNT(*) FROM (SELECT key, step, 'recorded' AS what FROM usage_crossings UNION ALL SELECT key, step, 'to be told' FROM usage_notices) AS x WHERE `+where); err != nil {
				v.Fatal(err)
			}
			return n
		}
		pages := func(f func(ctx context.Context, tx *database.Tx, after Cursor) (Cursor, bool, error)) {
			v.Helper()
			for after, more, n := (Cursor{}), true, 0; more; n++ {
				v.write(func(ctx context.Context, tx *database.Tx) (err error) {
					after, more, err = f(ctx, tx, after)
					return err
				})
				if n > 100 {
					v.Fatal("it does not end")
				}
			}
		}
		all := left("true")
		pages(func(ctx context.Context, tx *database.Tx, after Cursor) (Cursor, bool, error) {
			return Erase(ctx, tx, after, func(name string) bool { return strings.HasPrefix(name, "user.7.") })
		})
		if n, want := all-left("true"), 3*(1+10)+2; n != want || left("key LIKE 'user.7.%'") != 0 {
			v.Errorf("%d were erased, want %d; %d of the user are left", n, want, left("key LIKE 'user.7.%'"))
		}
		pages(func(ctx context.Context, tx *database.Tx, after Cursor) (Cursor, bool, error) {
			return Prune(ctx, tx, utc(), after, func(c Crossing) bool { return c.Start.Before(day.AddDate(0, 0, 4)) })
		})
		if n := left("what = 'recorded' AND step = 2"); n != 6 {
			v.Errorf("%d records of days are left, want 6", n)
		}
		if n := left("what = 'recorded' AND step = 0"); n != 2*page+9 {
			v.Errorf("%d records of all time are left, want %d", n, 2*page+9)
		}
		if n := left("what = 'to be told'"); n != 2*(2*page+9+10) {
			v.Errorf("%d are still to be told, want %d", n, 2*(2*page+9+10))
		}
		v.write(func(ctx context.Context, tx *database.Tx) error {
			return Reset(ctx, tx, []string{"user.8.requests"})
		})
		if n := left("what = 'recorded' AND step = 0 AND key = 'user.8.requests'"); n != 0 || left("what = 'recorded' AND step = 2 AND key = 'user.8.requests'") != 6 {
			v.Errorf("after Reset: %d records of all time", n)
		}
	})
}

// A word that is claimed for longer than anybody claims one is told; one that is not,
// and one that is to be told again later, are left.
func TestAClaimOfTheFutureIsNone(t *testing.T) {
	const ahead = 6 * time.Hour
	onEach(t, func(v *service) {
		var told []string
		n := NewNotifier(v.Context(), v.db, slog.New(slog.DiscardHandler), utc, map[string]Receiver{"mail": func(_ context.Context, c Crossing) error {
			told = append(told, c.Name)
			return nil
		}}, true)
		at := time.Now().Add(ahead).UnixMilli() // one, so that they are told in the order of their names
		for name, claimed := range map[string]time.Duration{"a.hours": ahead, "b.minutes": 10 * time.Minute, "c.claimed": 50 * time.Second, "d.later": maxPause, "e.free": 0} {
			for _, to := range []string{"mail", ""} {
				v.pool.MustExec(v.pool.Rebind(`INSERT INTO usage_notices VALUES (?, ?, 0, 0, 5, ?, 5, ?, 1)`), to, at, name+to, time.Now().Add(claimed).UnixMilli())
			}
		}
		n.tellers[0].look()
		if got := strings.Join(told, " "); got != "a.hours a.hoursmail b.minutes b.minutesmail e.free e.freemail" {
			v.Errorf("told of %s", got)
		}
	})
}

// What a receiver is called, and a counter, may be anything.
func TestWordsOfReceivers(t *testing.T) {
	onEach(t, func(v *service) {
		for _, receiver := range []string{"mail", "a/b", "ü%2F", "\u2028 \"'?", strings.Repeat("x", 64), "/"} {
			w := Watch{Thresholds: []Threshold{{Value: 5, Step: calendar.Day}}, Receivers: []string{receiver}}
			start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
			var list []word
			v.write(func(ctx context.Context, tx *database.Tx) error {
				name := "user.a/" + receiver + ".requests"
				_, err := w.Record(ctx, tx, w.Crossed(nil, calendar.Day, start.Unix(), name, 5, 7), time.UnixMilli(123))
				if err == nil {
					list, err = words(ctx, tx, receiver, word{}, 10)
				}
				if want := (Crossing{Name: name, Step: calendar.Day, Start: start, Value: 5, N: 7, Time: time.UnixMilli(123).UTC()}); err == nil && (len(list) != 1 || list[0].crossing(utc()) != want) {
					v.Errorf("%q: %+v, want %+v", receiver, list, want)
				}
				return err
			})
		}
	})
}
