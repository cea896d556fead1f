package store

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// logStart says where counts go, and for how long they are kept.
func (s *Store) logStart(database string) {
	spool := s.cfg.Spool
	if spool == "" {
		spool = "none: counts are in memory until they are delivered"
	}
	kept := s.clock.Kept()
	s.cfg.Logger.Info("usagekit: counting", "version", version(), "database", database, "zone", s.clock.Calendar().Zone().String(), "spool", spool,
		slog.Group("kept", "hours", keptFor(kept.Hours), "days", keptFor(kept.Days), "users", keptFor(kept.Users)))
}

// logStop says what became of the last counts, after a Shutdown that returned err.
func (s *Store) logStop(err error) {
	undelivered := 0
	if u := new(UndeliveredError); errors.As(err, &u) {
		undelivered = len(u.Counts)
	}
	s.cfg.Logger.Info("usagekit: stopped", "undelivered", undelivered, "spooled", s.outbox.Spooled())
}

// keptFor is a Retention's duration, in days.
func keptFor(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "for ever"
	case d%day == 0:
		return fmt.Sprintf("%d days", d/day)
	}
	return d.String()
}

// version is usagekit's own, as the program was built: "(devel)" in a checkout,
// "unknown" in a program without modules.
func version() string {
	const module = "github.com/usagekit/usagekit"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == module && m.Version != "" {
			return m.Version
		}
	}
	return "unknown"
}
