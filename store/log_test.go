package store

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/usagekit/usagekit/internal/counter"
)

// logger is a slog.Handler that does what it is for every line.
type logger func()

func (l logger) Handle(context.Context, slog.Record) error { l(); return nil }
func (l logger) Enabled(context.Context, slog.Level) bool  { return true }
func (l logger) WithAttrs([]slog.Attr) slog.Handler        { return l }
func (l logger) WithGroup(string) slog.Handler             { return l }

// A Logger that hangs or panics does so to nobody who counts what there is a line about.
func TestCountingWaitsForNoLogger(t *testing.T) {
	for name, panics := range map[string]bool{"it hangs": false, "it panics": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lines atomic.Int64
				goesOn := make(chan struct{})
				s := &Store{cfg: Config{Logger: slog.New(logger(func() {
					if lines.Add(1); panics {
						panic("a Logger's")
					}
					<-goesOn
				}))}}
				s.live = counter.New(10, s.refused, nil)
				s.Add("llm.m.input_tokens", 0)
				s.Add("mail.sent", -1)
				synctest.Wait()
				if lines.Load() != 0 {
					t.Errorf("%d lines of numbers that nobody may have mapped wrongly", lines.Load())
				}
				for range 3 {
					s.Inc("api.requests.total")
					s.Add("llm.m.input_tokens", -1)
				}
				synctest.Wait()
				want := int64(2)
				if panics {
					want *= 2 // survives says so
				}
				if lines.Load() != want || s.live.Invalid() != 8 {
					t.Errorf("%d lines of %d numbers that were refused, want %d of 8", lines.Load(), s.live.Invalid(), want)
				}
				close(goesOn)
			})
		})
	}
}
