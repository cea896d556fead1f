package crossing

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

// crossing/<step>/<bucket>/<value>/<name> is the record: "<n> <time>". A word that it is
// still to be told is tell/<receiver>/<time>/<the same>, or notify/<time>/<the same> where
// it is not said whom: "<until> <tries> <n>", claimed until then. Times are Unix
// milliseconds, the database's, and buckets seconds.
const (
	sqlRecord = `INSERT INTO usage_meta (name, value) %s ON CONFLICT DO NOTHING RETURNING name`
	sqlLeave  = `INSERT INTO usage_meta (name, value) %s ON CONFLICT DO NOTHING`
	sqlFind   = `SELECT name, value, %s AS now FROM usage_meta WHERE name > ? AND name < ? ORDER BY name LIMIT ?`
	sqlClaim  = `UPDATE usage_meta SET value = ? WHERE name = ? AND value = ?`
	sqlSettle = `DELETE FROM usage_meta WHERE name = ? AND value = ?`
	sqlForget = `DELETE FROM usage_meta WHERE `
)

const (
	recorded = "crossing/"
	toAll    = "notify/"
	toOne    = "tell/"

	chunk = 5_000 // rows of one statement
	page  = 2_000 // that are looked through in one transaction
)

// wordsTo begins what is stored of the words to a receiver; "": to all.
func wordsTo(receiver string) string {
	if receiver == "" {
		return toAll
	}
	return toOne + url.PathEscape(receiver) + "/"
}

// end is what comes after all that begins with a prefix that ends in a slash.
func end(prefix string) string { return strings.TrimSuffix(prefix, "/") + "0" }

func (c Crossing) key() string {
	bucket := int64(0)
	if c.Step != 0 {
		bucket = c.Start.Unix()
	}
	return fmt.Sprintf("%d/%d/%d/%s", c.Step, bucket, c.Value, c.Name)
}

// parse is the inverse of key. A bucket is where the calendar has it.
func parse(cal calendar.Calendar, key string) (Crossing, error) {
	parts := strings.SplitN(key, "/", 4)
	if len(parts) < 4 {
		return Crossing{}, database.Fault("usage_meta: " + strconv.Quote(key) + " is no crossing")
	}
	var n [3]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(parts[i], 10, 64); err != nil {
			return Crossing{}, database.Fault("usage_meta: " + strconv.Quote(key) + " is no crossing")
		}
	}
	c := Crossing{Step: calendar.Step(n[0]), Value: n[2], Name: parts[3]}
	if c.Step >= calendar.Hour && c.Step <= calendar.Month {
		c.Start = time.Unix(cal.Place(c.Step, n[1]), 0).In(cal.Zone())
	}
	return c, nil
}

// Record records what is new of the crossings, and that word is to be sent: with what was
// counted, or not at all. It returns how many those are.
func (w Watch) Record(ctx context.Context, tx *database.Tx, crossed []Crossing, now time.Time) (int, error) {
	n := 0
	slices.SortFunc(crossed, func(a, b Crossing) int { return strings.Compare(a.key(), b.key()) }) // as every other transaction does
	crossed = slices.CompactFunc(crossed, func(a, b Crossing) bool { return a.key() == b.key() })
	for list := range slices.Chunk(crossed, chunk) {
		var names, values []string
		counts := map[string]int64{}
		for _, c := range list {
			name := recorded + c.key()
			names, values = append(names, name), append(values, fmt.Sprintf("%d %d", c.N, now.UnixMilli()))
			counts[name] = c.N
		}
		rows, args := tx.Rows(database.Column{Name: "name", Texts: names}, database.Column{Name: "value", Texts: values})
		var fresh []string
		if err := tx.Select(ctx, &fresh, strings.Replace(sqlRecord, "%s", rows, 1), args...); err != nil {
			return 0, err
		}
		slices.Sort(fresh)
		left := make([]word, len(fresh))
		for i, name := range fresh {
			left[i] = word{key: fmt.Sprintf("%013d/", now.UnixMilli()) + strings.TrimPrefix(name, recorded), Crossing: Crossing{N: counts[name]}}
		}
		receivers := w.Receivers
		if len(receivers) == 0 {
			receivers = []string{""}
		}
		if err := leave(ctx, tx, left, receivers); err != nil {
			return 0, err
		}
		n += len(fresh)
	}
	return n, nil
}

// leave leaves a word of each crossing for each receiver, which nobody has claimed.
func leave(ctx context.Context, tx *database.Tx, list []word, receivers []string) error {
	if len(list) == 0 {
		return nil
	}
	for _, receiver := range receivers {
		names, values := make([]string, len(list)), make([]string, len(list))
		for i, w := range list {
			names[i], values[i] = wordsTo(receiver)+w.key, fmt.Sprintf("0 0 %d", w.N)
		}
		if err := tx.ExecRows(ctx, sqlLeave, database.Column{Name: "name", Texts: names}, database.Column{Name: "value", Texts: values}); err != nil {
			return err
		}
	}
	return nil
}

// word is a crossing that is to be told, as it is stored.
type word struct {
	Crossing
	receiver    string
	key         string // what its name has behind wordsTo(receiver)
	name, value string
	until       int64 // Unix ms; 0: nobody has claimed it yet
	tries       int
	now         int64 // when it was read
	err         error // it cannot be read
}

// words reads a page of those to a receiver, the oldest first: those behind the name after.
func words(ctx context.Context, tx *database.Tx, cal calendar.Calendar, receiver, after string, limit int) ([]word, error) {
	prefix := wordsTo(receiver)
	return wordsBetween(ctx, tx, cal, max(after, prefix), end(prefix), limit)
}

func wordsBetween(ctx context.Context, tx *database.Tx, cal calendar.Calendar, after, before string, limit int) ([]word, error) {
	var rows []struct {
		Name, Value string
		Now         int64
	}
	if err := tx.Select(ctx, &rows, strings.Replace(sqlFind, "%s", tx.Clock(), 1), after, before, limit); err != nil {
		return nil, err
	}
	list := make([]word, len(rows))
	for i, r := range rows {
		list[i] = parseWord(cal, r.Name, r.Value)
		list[i].now = r.Now
	}
	return list, nil
}

func parseWord(cal calendar.Calendar, name, value string) (w word) {
	w.name, w.value = name, value
	w.key = strings.TrimPrefix(name, toAll)
	if to, ok := strings.CutPrefix(name, toOne); ok {
		to, w.key, _ = strings.Cut(to, "/")
		w.receiver, w.err = url.PathUnescape(to)
	}
	at, key, _ := strings.Cut(w.key, "/")
	var ms int64
	if w.err == nil {
		ms, w.err = strconv.ParseInt(at, 10, 64)
	}
	if w.err == nil {
		w.Crossing, w.err = parse(cal, key)
	}
	if w.err == nil {
		_, w.err = fmt.Sscan(value, &w.until, &w.tries, &w.N)
	}
	w.Time = time.UnixMilli(ms).In(cal.Zone())
	return w
}

// settle changes a word, or removes it, unless somebody else has meanwhile: errClaimed.
func settle(ctx context.Context, tx *database.Tx, query string, args ...any) error {
	n, err := tx.Exec(ctx, query, args...)
	if err == nil && n == 0 {
		err = errClaimed
	}
	return err
}

// errClaimed says that another instance tells it.
const errClaimed = database.Fault("store: another instance has claimed the crossing")

// share has each of the words, which are to all, be one to each receiver instead; but for
// those that somebody else has taken. It returns how many.
func share(ctx context.Context, tx *database.Tx, list []word, receivers []string) (int, error) {
	var mine []word
	for _, w := range list {
		switch err := settle(ctx, tx, sqlSettle, w.name, w.value); err {
		case nil:
			mine = append(mine, w)
		case errClaimed:
		default:
			return 0, err
		}
	}
	return len(mine), leave(ctx, tx, mine, receivers)
}

// Reset forgets what counters have crossed of all time: they may cross it again.
func Reset(ctx context.Context, tx *database.Tx, names []string) error {
	var found []string
	err := tx.Select(ctx, &found, `SELECT name FROM usage_meta WHERE name >= 'crossing/0/' AND name < 'crossing/00'`)
	if err != nil {
		return err
	}
	return forget(ctx, tx, found, func(c Crossing) bool { return slices.Contains(names, c.Name) })
}

// Prune forgets crossings of buckets that are gone, among a page of them: those behind
// after, "" for the first. It returns where the next page begins; "": that was the last.
func Prune(ctx context.Context, tx *database.Tx, cal calendar.Calendar, after string, gone func(Crossing) bool) (next string, err error) {
	names, next, err := stored(ctx, tx, max(after, recorded+"1"), end(recorded)) // those of all time stay
	if err != nil {
		return "", err
	}
	return next, forgetIn(ctx, tx, cal, names, gone)
}

// Erase removes crossings, and word of them, of counters that are to be forgotten, among a
// page of them: see Prune.
func Erase(ctx context.Context, tx *database.Tx, after string, gone func(name string) bool) (next string, err error) {
	kinds := []string{recorded, toAll, toOne} // in the order of their names
	for i, kind := range kinds {
		if after >= end(kind) {
			continue
		}
		names, next, err := stored(ctx, tx, max(after, kind), end(kind))
		if err != nil {
			return "", err
		}
		if next == "" && i+1 < len(kinds) {
			next = kinds[i+1]
		}
		return next, forget(ctx, tx, names, func(c Crossing) bool { return gone(c.Name) })
	}
	return "", nil
}

// stored reads a page of names.
func stored(ctx context.Context, tx *database.Tx, after, before string) (names []string, next string, err error) {
	err = tx.Select(ctx, &names, `SELECT name FROM usage_meta WHERE name > ? AND name < ? ORDER BY name LIMIT ?`, after, before, page)
	if len(names) == page {
		next = names[page-1]
	}
	return names, next, err
}

// forget removes those of the names of which gone says so.
func forget(ctx context.Context, tx *database.Tx, names []string, gone func(Crossing) bool) error {
	return forgetIn(ctx, tx, calendar.In(time.UTC), names, gone)
}

func forgetIn(ctx context.Context, tx *database.Tx, cal calendar.Calendar, names []string, gone func(Crossing) bool) error {
	names = slices.DeleteFunc(names, func(name string) bool {
		key, ok := strings.CutPrefix(name, recorded)
		if !ok {
			_, key, _ = strings.Cut(parseWord(cal, name, "").key, "/")
		}
		c, err := parse(cal, key)
		return err != nil || !gone(c)
	})
	for names := range slices.Chunk(names, chunk) {
		in, list := tx.OneOfTexts("name", names)
		if _, err := tx.Exec(ctx, sqlForget+in, list); err != nil {
			return err
		}
	}
	return nil
}
