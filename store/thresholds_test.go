package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

// Word of each crossing gets through, whatever Notify does meanwhile.
func TestNotify(t *testing.T) {
	open := func(t *testing.T, notify func(context.Context, store.Crossing) error) (*store.Store, *sqlx.DB) {
		t.Parallel()
		db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := store.New(t.Context(), db, store.Config{
			Interval: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Thresholds: []store.Threshold{{Prefix: "feature.", Measure: "used", Value: 3}}, Notify: map[string]func(context.Context, store.Crossing) error{"mail": notify},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), dbtest.Limit)
			defer cancel()
			if err := errors.Join(s.Shutdown(ctx), db.Close()); err != nil {
				t.Error(err)
			}
		})
		return s, db
	}
	count := func(t *testing.T, s *store.Store, names ...string) {
		t.Helper()
		for _, name := range names {
			s.Add(name, 5)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// settled waits until no word is left to be sent.
	settled := func(t *testing.T, db *sqlx.DB) {
		t.Helper()
		for until := time.Now().Add(dbtest.Limit); time.Now().Before(until); {
			var n int
			if err := db.Get(&n, `SELECT COUNT(*) FROM usage_notices`); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error("a word is not sent")
	}

	t.Run("ResetDuringIt", func(t *testing.T) { // both crossings are told
		in, out := make(chan struct{}), make(chan struct{})
		var told atomic.Int64
		s, db := open(t, func(context.Context, store.Crossing) error {
			if told.Add(1) == 1 {
				close(in)
				<-out
			}
			return nil
		})
		count(t, s, "feature.a.used")
		<-in
		if err := s.Reset(t.Context(), "feature.a.used"); err != nil {
			t.Fatal(err)
		}
		count(t, s, "feature.a.used")
		close(out)
		settled(t, db)
		if n := told.Load(); n != 2 {
			t.Errorf("told %d times, want 2", n)
		}
	})
	t.Run("ResetBeforeIt", func(t *testing.T) { // the crossing is told still
		failed := make(chan struct{}, 1)
		var told atomic.Int64
		var works atomic.Bool
		s, db := open(t, func(_ context.Context, c store.Crossing) error {
			if !works.Load() {
				select {
				case failed <- struct{}{}:
				default:
				}
				return errors.New("the mail server is away")
			}
			told.Add(c.N)
			return nil
		})
		count(t, s, "feature.a.used")
		<-failed
		if err := s.Reset(t.Context(), "feature.a.used"); err != nil {
			t.Fatal(err)
		}
		works.Store(true)
		settled(t, db)
		if n := told.Load(); n != 5 {
			t.Errorf("told of %d, want 5", n)
		}
	})
	t.Run("ManyFail", func(t *testing.T) { // and keep no other from being told
		good := make(chan struct{})
		s, _ := open(t, func(_ context.Context, c store.Crossing) error {
			if c.Name == "feature.z.used" {
				close(good)
				return nil
			}
			return errors.New("there is no such customer")
		})
		var names []string
		for i := range 150 {
			names = append(names, fmt.Sprintf("feature.a%d.used", i))
		}
		count(t, s, append(names, "feature.z.used")...)
		select {
		case <-good:
		case <-time.After(dbtest.Limit):
			t.Error("the one that would work is not told")
		}
	})
	t.Run("AnotherInstanceHasTheReceiver", func(t *testing.T) { // and tells what this one leaves to it
		var mailed, paged atomic.Int64
		notify := func(told *atomic.Int64) func(context.Context, store.Crossing) error {
			return func(_ context.Context, c store.Crossing) error { told.Add(c.N); return nil }
		}
		s, db := open(t, notify(&mailed))
		other, err := store.New(t.Context(), db, store.Config{
			Interval: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
			Thresholds: []store.Threshold{{Prefix: "feature.", Measure: "used", Value: 3}},
			Notify:     map[string]func(context.Context, store.Crossing) error{"pager": notify(&paged)},
		})
		if err != nil {
			t.Fatal(err)
		}
		db.MustExec(`INSERT INTO usage_notices VALUES ('pager', 1, 0, 0, 3, 'feature.b.used', 7, 0, 0)`)
		if _, err := other.AddNow(t.Context(), "feature.c.used", 4); err != nil { // it is awake, and looks
			t.Fatal(err)
		}
		count(t, s, "feature.a.used")
		settled(t, db)
		if err := other.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if mail, page := mailed.Load(), paged.Load(); page < 11 || mail+page != 16 {
			t.Errorf("the two were told of %d and %d, want 16 in all, 11 of them by the one that has its receiver", mail, page)
		}
	})
	t.Run("Goexit", func(t *testing.T) { // as t.FailNow does
		var calls atomic.Int64
		s, db := open(t, func(context.Context, store.Crossing) error {
			if calls.Add(1) == 1 {
				runtime.Goexit()
			}
			return nil
		})
		count(t, s, "feature.a.used")
		settled(t, db)
		if n := calls.Load(); n != 2 {
			t.Errorf("called %d times, want 2", n)
		}
	})
}

// A threshold that can never be crossed is refused.
func TestThresholdConfig(t *testing.T) {
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for want, c := range map[string]store.Threshold{
		"Value":          {Prefix: "a."},
		"2^53":           {Prefix: "a.", Value: 1 << 53},
		"Step is 4":      {Prefix: "a.", Value: 1, Step: 4},
		"for users":      {Prefix: "user.", Value: 1, Step: store.Hour},
		"users alone":    {Prefix: "api.", Value: 1, Step: store.Month},
		"last dot":       {Prefix: "api.", Measure: "a.b", Value: 1},
		"UTF-8":          {Prefix: "\xff", Value: 1},
		"requests.total": {Prefix: "api.requests.today", Value: 1},
		"one day":        {Prefix: "user.active.daily", Value: 1},
		"refused":        {Prefix: "quota.42.daily", Value: 1},
	} {
		s, err := store.New(t.Context(), db, store.Config{Thresholds: []store.Threshold{{Prefix: "b.", Value: 1}, c}})
		if err == nil {
			_ = s.Shutdown(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), "Config.Thresholds[1]") || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	for want, cfg := range map[string]store.Config{
		"Retention.Daily": {Retention: store.Retention{Daily: time.Hour}},
		"Hourly is":       {Retention: store.Retention{Hourly: -1}},
		`Caps["a.b"]`:     {Caps: map[string]int{"a.b": 1}},
		`Caps["api"]`:     {Caps: map[string]int{"api": -1}},
		`Notify[""]`:      {Notify: map[string]func(context.Context, store.Crossing) error{"": func(context.Context, store.Crossing) error { return nil }}},
		`Notify["\xff"]`:  {Notify: map[string]func(context.Context, store.Crossing) error{"\xff": func(context.Context, store.Crossing) error { return nil }}},
		"mail\"] is nil":  {Notify: map[string]func(context.Context, store.Crossing) error{"mail": nil}},
	} {
		if s, err := store.New(t.Context(), db, cfg); err == nil || !strings.Contains(err.Error(), want) {
			if err == nil {
				_ = s.Shutdown(t.Context())
			}
			t.Errorf("%v, want %q", err, want)
		}
	}
}
