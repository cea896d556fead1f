package fold

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

// What was not counted for a month has no place under a cap any more when something
// new wants one. Its total stays, and so does its history; when it comes again it is
// new. History is the witness. What a clock says is not enough: to one that has jumped
// ahead everything is old. So a month is one before the last removal of history, which
// believes no clock alone; what was counted since then counts as well, and nothing is old
// where that removal is a month ago itself. Nor is it where no other day of that month
// has counts, nor while the two clocks differ or history is kept for less than a month.

const (
	idleAfter   = 31 * 24 * time.Hour
	idleChunk   = 500       // subjects that are looked up at a time,
	idleChunks  = 4         // in one fold, which must not wait for all of a million
	idleAgain   = time.Hour // after all were
	idleWitness = 2         // days before today that have counts

	// Both look up each on its own: as a join, all rows of those days might be read.
	sqlDaysCounted = `SELECT COUNT(*) FROM {v} WHERE (SELECT 1 FROM usage_history h WHERE h.step = 2 AND h.bucket = v.day LIMIT 1) IS NOT NULL`
	sqlIdle        = `SELECT v.first FROM {v} WHERE (SELECT 1 FROM usage_history h WHERE h.step = 2 AND {in h.bucket} AND h.key >= v.first AND h.key <= v.last LIMIT 1) IS NULL`
)

// lookup is how far the subjects of a budget were looked through for idle ones.
type lookup struct {
	last  string    // that was looked up; "": the next is the first one
	again time.Time // when the next round may begin, by the database's clock
}

// makeRoom takes idle subjects of a budget out of next until there is room for one at
// least, or it has looked enough.
func (c *caps) makeRoom(ctx context.Context, tx *database.Tx, sums *sums, next *subjects, budget string) error {
	round, now := next.round[budget], sums.now
	if wait := round.again.Sub(now); round.last == "" && wait > 0 && wait <= idleAgain { // no longer, whatever the clock did
		return nil
	}
	defer func() { next.round[budget] = round }()
	round.again = now.Add(idleAgain)
	today := sums.calendar.Start(calendar.Day, now)
	from := sums.calendar.Start(calendar.Day, sums.sure.Add(-idleAfter))
	if now.Sub(sums.sure) > idleAfter || time.Since(now).Abs() > clock.MaxSkew || sums.horizon.Of(calendar.Day, naming.Personal(budget+".x.y")) > from.Unix() {
		return nil
	}
	before := sums.calendar.Buckets(calendar.Day, from, today)
	var days int
	if err := tx.Get(ctx, &days, sqlDaysCounted, database.List{{Name: "day", Numbers: before}}); err != nil || days < idleWitness {
		return err
	}
	month := append(before, today.Unix())
	counted := map[string]bool{} // by this very fold
	for name := range sums.names {
		_, subject := subjectOf(name)
		counted[subject] = true
	}
	rest := next.after(budget, round.last)
	for range idleChunks {
		if len(rest) == 0 || next.count[budget] < c.places(budget) {
			break
		}
		piece := rest[:min(idleChunk, len(rest))]
		rest = rest[len(piece):]
		round.last = piece[len(piece)-1]
		last := make([]string, len(piece))
		for i, subject := range piece {
			last[i] = subject
			if strings.HasSuffix(subject, ".") { // a stem: of all its measures
				last[i] = naming.After(subject)
			}
		}
		var idle []string
		if err := tx.Select(ctx, &idle, sqlIdle, database.List{{Name: "first", Texts: piece}, {Name: "last", Texts: last}}, month); err != nil {
			return err
		}
		for _, subject := range idle {
			if !counted[subject] {
				delete(next.known, subject)
				next.count[budget]--
			}
		}
	}
	if len(rest) == 0 {
		round.last = ""
	}
	return nil
}

// after returns the subjects that take a place of a budget and come after last, in
// order.
func (k *subjects) after(budget, last string) (list []string) {
	for subject := range k.known {
		_, of, measure := naming.Split(subject)
		own := of == naming.Other || naming.Reserved(of) || naming.Derived(subject) || of == "requests" && measure == naming.Other
		if subject > last && budgetOf(subject) == budget && !own {
			list = append(list, subject)
		}
	}
	slices.Sort(list)
	return list
}
