package crossing

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

// A row of usage_crossings is the record, and one of usage_notices a word that it is still to
// be told. Times are Unix milliseconds, the database's, and buckets seconds.
const (
	sqlRecord = `INSERT INTO usage_crossings (step, bucket, value, key, n, time) {rows} ON CONFLICT DO NOTHING RETURNING step, bucket, value, key, n, time`
	sqlLeave  = `INSERT INTO usage_notices (receiver, time, step, bucket, value, key, n, claimed, tries) {rows} ON CONFLICT DO NOTHING`

	sqlWords    = `SELECT receiver, time, step, bucket, value, key, n, claimed, tries, {now} AS now FROM usage_notices `
	sqlWordsTo  = sqlWords + `WHERE receiver = ? AND (time, step, bucket, value, key) > (?, ?, ?, ?, ?) ORDER BY time, step, bucket, value, key LIMIT ?`
	sqlAllWords = sqlWords + `WHERE (receiver, time, step, bucket, value, key) > (?, ?, ?, ?, ?, ?) ORDER BY receiver, time, step, bucket, value, key LIMIT ?`
	ofWord      = ` WHERE receiver = ? AND time = ? AND step = ? AND bucket = ? AND value = ? AND key = ? AND claimed = ? AND tries = ?`
	sqlClaim    = `UPDATE usage_notices SET claimed = ?, tries = ?` + ofWord
	sqlSettle   = `DELETE FROM usage_notices` + ofWord

	sqlRecords = `SELECT step, bucket, value, key, n, time FROM usage_crossings WHERE (step, bucket, value, key) > (?, ?, ?, ?) ORDER BY step, bucket, value, key LIMIT ?`
	sqlForget  = `DELETE FROM usage_crossings WHERE step = ? AND bucket = ? AND value = ? AND key = ?`
	sqlReset   = `DELETE FROM usage_crossings WHERE step = 0 AND {in key}`
)

const (
	chunk = 5_000 // rows of one statement
	page  = 2_000 // that are looked through in one transaction
)

// record is a crossing as it is stored.
type record struct {
	Step          calendar.Step
	Bucket, Value int64
	Key           string
	N             int64
	Time          int64
}

func (c Crossing) record(now time.Time) record {
	bucket := int64(0)
	if c.Step != 0 {
		bucket = c.Start.Unix()
	}
	return record{c.Step, bucket, c.Value, c.Name, c.N, now.UnixMilli()}
}

// crossing is the inverse of that. A bucket is where the calendar has it.
func (r record) crossing(cal calendar.Calendar) Crossing {
	c := Crossing{Name: r.Key, Step: r.Step, Value: r.Value, N: r.N, Time: time.UnixMilli(r.Time).In(cal.Zone())}
	if r.Step != 0 {
		c.Start = time.Unix(cal.Place(r.Step, r.Bucket), 0).In(cal.Zone())
	}
	return c
}

// compare is the order of the key.
func (r record) compare(o record) int {
	return cmp.Or(cmp.Compare(r.Step, o.Step), cmp.Compare(r.Bucket, o.Bucket), cmp.Compare(r.Value, o.Value), strings.Compare(r.Key, o.Key))
}

func (r record) same(o record) bool { return r.compare(o) == 0 }

// columns are those of records: step, bucket, value, key, n and time.
func columns(list []record) database.List {
	numbers := [5][]int64{}
	keys := make([]string, len(list))
	for i := range numbers {
		numbers[i] = make([]int64, len(list))
	}
	for i, r := range list {
		keys[i] = r.Key
		numbers[0][i], numbers[1][i], numbers[2][i], numbers[3][i], numbers[4][i] = int64(r.Step), r.Bucket, r.Value, r.N, r.Time
	}
	return database.List{{Name: "step", Numbers: numbers[0]}, {Name: "bucket", Numbers: numbers[1]}, {Name: "value", Numbers: numbers[2]},
		{Name: "key", Texts: keys}, {Name: "n", Numbers: numbers[3]}, {Name: "time", Numbers: numbers[4]}}
}

// Record records what is new of the crossings, and that word is to be sent: with what was
// counted, or not at all. It returns how many those are.
func (w Watch) Record(ctx context.Context, tx *database.Tx, crossed []Crossing, now time.Time) (int, error) {
	list := make([]record, len(crossed))
	for i, c := range crossed {
		list[i] = c.record(now)
	}
	slices.SortFunc(list, record.compare) // as every other transaction does
	list = slices.CompactFunc(list, record.same)
	n := 0
	for list := range slices.Chunk(list, chunk) {
		var fresh []record
		if err := tx.Select(ctx, &fresh, sqlRecord, columns(list)); err != nil {
			return 0, err
		}
		slices.SortFunc(fresh, record.compare)
		receivers := w.Receivers
		if len(receivers) == 0 {
			receivers = []string{""}
		}
		if err := leave(ctx, tx, fresh, receivers); err != nil {
			return 0, err
		}
		n += len(fresh)
	}
	return n, nil
}

// leave leaves a word of each crossing for each receiver, which nobody has claimed.
func leave(ctx context.Context, tx *database.Tx, list []record, receivers []string) error {
	if len(list) == 0 {
		return nil
	}
	of := columns(list)
	zeros := make([]int64, len(list))
	for _, receiver := range receivers {
		to := slices.Repeat([]string{receiver}, len(list))
		err := tx.ExecRows(ctx, sqlLeave, database.List{{Name: "receiver", Texts: to}, of[5], of[0], of[1], of[2], of[3], of[4], {Name: "claimed", Numbers: zeros}, {Name: "tries", Numbers: zeros}})
		if err != nil {
			return err
		}
	}
	return nil
}

// word is a crossing that is to be told, as it is stored.
type word struct {
	Receiver string // "": whoever finds it
	record
	Claimed int64 // until when; 0: nobody has claimed it yet
	Tries   int64
	Now     int64 // when it was read
}

// words reads a page of those to a receiver, the oldest first: those behind another.
func words(ctx context.Context, tx *database.Tx, receiver string, after word, limit int) (list []word, err error) {
	err = tx.Select(ctx, &list, sqlWordsTo, receiver, after.Time, after.Step, after.Bucket, after.Value, after.Key, limit)
	return list, err
}

// allWords reads a page of those to anybody.
func allWords(ctx context.Context, tx *database.Tx, after word, limit int) (list []word, err error) {
	err = tx.Select(ctx, &list, sqlAllWords, after.Receiver, after.Time, after.Step, after.Bucket, after.Value, after.Key, limit)
	return list, err
}

// claim has nobody else tell a word until then.
func (w *word) claim(ctx context.Context, tx *database.Tx, until, tries int64) error {
	if err := w.change(ctx, tx, sqlClaim, until, tries); err != nil {
		return err
	}
	w.Claimed, w.Tries = until, tries
	return nil
}

// settle removes a word.
func (w *word) settle(ctx context.Context, tx *database.Tx) error {
	return w.change(ctx, tx, sqlSettle)
}

// change changes a word unless somebody else has meanwhile: errClaimed.
func (w *word) change(ctx context.Context, tx *database.Tx, query string, args ...any) error {
	n, err := tx.Exec(ctx, query, append(args, w.Receiver, w.Time, w.Step, w.Bucket, w.Value, w.Key, w.Claimed, w.Tries)...)
	if err == nil && n == 0 {
		err = errClaimed
	}
	return err
}

// errClaimed says that another instance tells it.
const errClaimed = database.Fault("store: another instance has claimed the crossing")

// share has each of the words, which are to whoever finds them, be one to each receiver
// instead; but for those that somebody else has taken. It returns how many.
func share(ctx context.Context, tx *database.Tx, list []word, receivers []string) (int, error) {
	var mine []record
	for _, w := range list {
		switch err := w.settle(ctx, tx); err {
		case nil:
			mine = append(mine, w.record)
		case errClaimed:
		default:
			return 0, err
		}
	}
	return len(mine), leave(ctx, tx, mine, receivers)
}

// Reset forgets what counters have crossed of all time: they may cross it again.
func Reset(ctx context.Context, tx *database.Tx, names []string) error {
	_, err := tx.Exec(ctx, sqlReset, names)
	return err
}

// Cursor is where a page of rows ended. The zero Cursor is before the first page.
type Cursor struct {
	last  word
	words bool // it is among these
}

// Prune forgets crossings of buckets that are gone, among a page of them, and returns where
// that ended; more is false when it was the last.
func Prune(ctx context.Context, tx *database.Tx, cal calendar.Calendar, after Cursor, gone func(Crossing) bool) (end Cursor, more bool, err error) {
	if after == (Cursor{}) {
		after.last.Step, after.last.Bucket = calendar.Hour, calendar.Forever // those of all time stay
	}
	return forget(ctx, tx, after, func(r record) bool { return gone(r.crossing(cal)) })
}

// Erase removes crossings, and word of them, of counters that are to be forgotten, among a
// page of them: see Prune.
func Erase(ctx context.Context, tx *database.Tx, after Cursor, gone func(name string) bool) (end Cursor, more bool, err error) {
	if !after.words {
		end, more, err = forget(ctx, tx, after, func(r record) bool { return gone(r.Key) })
		if !more {
			end, more = Cursor{words: true}, true
		}
		return end, more, err
	}
	list, err := allWords(ctx, tx, after.last, page)
	if err != nil || len(list) == 0 {
		return after, false, err
	}
	for _, w := range list {
		if !gone(w.Key) {
			continue
		}
		if err := w.settle(ctx, tx); err != nil && err != errClaimed {
			return after, false, err
		}
	}
	return Cursor{list[len(list)-1], true}, len(list) == page, nil
}

func forget(ctx context.Context, tx *database.Tx, after Cursor, gone func(record) bool) (end Cursor, more bool, err error) {
	var list []record
	last := after.last
	if err := tx.Select(ctx, &list, sqlRecords, last.Step, last.Bucket, last.Value, last.Key, page); err != nil || len(list) == 0 {
		return after, false, err
	}
	for _, r := range list {
		if !gone(r) {
			continue
		}
		if _, err := tx.Exec(ctx, sqlForget, r.Step, r.Bucket, r.Value, r.Key); err != nil {
			return after, false, err
		}
	}
	return Cursor{last: word{record: list[len(list)-1]}}, len(list) == page, nil
}
