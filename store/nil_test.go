package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"
)

// A program that counts only where it is told to needs no "if usage != nil": a nil
// Store is one that is off.
func TestANilStoreCountsNothingAndReadsZero(t *testing.T) {
	ctx := t.Context()
	var s *Store
	s.Add("feature.a.used", 1)
	s.Inc("feature.a.used")
	s.Counter("feature.a.used")(1)
	if n, err := s.AddNow(ctx, "feature.a.used", 1); n != 0 || err != nil {
		t.Errorf("AddNow: %d, %v", n, err)
	}
	left, until, ok, err := s.Take(ctx, "quota.42.daily", 3, 10, Day)
	if left != 10 || !ok || err != nil || time.Until(until) > 24*time.Hour || time.Until(until) < -time.Minute {
		t.Errorf("Take: %d left until %v, %v, %v", left, until, ok, err)
	}
	if n, err := s.Get(ctx, "feature.a.used"); n != 0 || err != nil {
		t.Errorf("Get: %d, %v", n, err)
	}
	totals, err1 := s.Totals(ctx, Query{})
	rows, err2 := s.Rows(ctx, Query{})
	history, err3 := s.History(ctx, Query{})
	if len(totals)+len(rows)+len(history) > 0 || errors.Join(err1, err2, err3) != nil {
		t.Errorf("reads: %v, %v, %v, %v", totals, rows, history, errors.Join(err1, err2, err3))
	}
	for c, err := range s.Each(ctx, Query{}) {
		t.Errorf("Each: %v, %v", c, err)
	}
	now := time.Now()
	if got := s.Buckets(Hour, now.Add(-time.Hour), now); len(got) == 0 {
		t.Error("Buckets of a range: none")
	}
	if s.Location() != time.UTC {
		t.Errorf("Location: %v", s.Location())
	}
	if got := s.Stats(); !reflect.DeepEqual(got, Stats{}) {
		t.Errorf("Stats: %+v", got)
	}
	for name, err := range map[string]error{
		"Read": s.Read(ctx, readsZero), "Reset": s.Reset(ctx, "feature.a.used"), "Erase": s.Erase(ctx, "42"), "Flush": s.Flush(ctx), "Shutdown": s.Shutdown(ctx),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// readsZero reads of a store that is off.
func readsZero(ctx context.Context, r *Reading) error {
	n, err1 := r.Get(ctx, "feature.a.used")
	totals, err2 := r.Totals(ctx, Query{})
	rows, err3 := r.Rows(ctx, Query{})
	history, err4 := r.History(ctx, Query{})
	_, bad := r.Totals(ctx, Query{Limit: -1})
	if n != 0 || len(totals)+len(rows)+len(history) > 0 || time.Since(r.Now).Abs() > time.Minute || !r.FoldedThrough.IsZero() || !errors.As(bad, new(QueryError)) {
		return fmt.Errorf("%d, %v, %v, %v of %+v, and %v", n, totals, rows, history, r, bad)
	}
	return errors.Join(err1, err2, err3, err4)
}

// No method of a Store was left out above: each one answers for a nil one.
func TestEveryMethodAnswersForANilStore(t *testing.T) {
	var s *Store
	v := reflect.ValueOf(s)
	for i := range v.NumMethod() {
		method, name := v.Method(i), v.Type().Method(i).Name
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := recover(); p != nil {
					t.Error(p)
				}
			}()
			var in []reflect.Value
			for j := range method.Type().NumIn() {
				if method.Type().IsVariadic() && j == method.Type().NumIn()-1 {
					break
				}
				arg := reflect.Zero(method.Type().In(j))
				switch method.Type().In(j).Kind() {
				case reflect.Interface:
					arg = reflect.ValueOf(t.Context())
				case reflect.Func: // of Read
					arg = reflect.ValueOf(readsZero)
				}
				in = append(in, arg)
			}
			method.Call(in)
		})
	}
}
