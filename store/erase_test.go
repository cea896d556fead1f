package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/upkeep"
	"github.com/usagekit/usagekit/store/sqlite"
)

// What others have crossed is looked through in pages, and keeps no fold waiting.
func TestEraseBesideManyCrossingsKeepsNoFoldWaiting(t *testing.T) {
	test := func(t *testing.T, driver, dsn, name string) {
		faults := &dbtest.Faults{}
		plain, err := faults.Open(driver, dsn)
		if err != nil {
			t.Fatal(err)
		}
		db := sqlx.NewDb(plain, name)
		s := unstarted(t, db, nil)
		const others = 15_000
		tx := db.MustBegin()
		for list := range 30 {
			var values []string
			var args []any
			for i := range others / 30 {
				values, args = append(values, "(0, 0, 1, ?, 1, 1)"), append(args, fmt.Sprintf("user.%d.requests", list*others/30+i))
			}
			tx.MustExec(tx.Rebind(`INSERT INTO usage_crossings VALUES `+strings.Join(values, ", ")), args...)
		}
		tx.MustExec(`INSERT INTO usage_crossings VALUES (0, 0, 1, 'user.me.requests', 1, 1), (2, 86400, 7, 'user.me.requests', 7, 1)`)
		tx.MustExec(`INSERT INTO usage_notices VALUES ('', 1, 0, 0, 1, 'user.me.requests', 1, 0, 0), ('mail', 1, 0, 0, 1, 'user.me.requests', 1, 0, 0)`)
		b := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "user.me.requests", N: 1}}}
		for i := range 3 {
			tx.MustExec(tx.Rebind(`INSERT INTO usage_quarantine VALUES ('w', ?, ?)`), i, b.Encode())
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		leased, whole := false, ""
		faults.Set(func(op dbtest.Op) dbtest.Fault {
			mu.Lock()
			defer mu.Unlock()
			records := strings.Contains(op.Query, "SELECT") && (strings.Contains(op.Query, "usage_crossings") || strings.Contains(op.Query, "usage_notices") || strings.Contains(op.Query, "usage_quarantine"))
			switch {
			case op.Kind == dbtest.Begin:
				leased = false
			case strings.Contains(op.Query, "SET value = value"):
				leased = true
			case records && leased, records && !strings.Contains(op.Query, "LIMIT"):
				whole = op.Query
			}
			return dbtest.Fault{}
		})
		if err := s.Erase(t.Context(), "me"); err != nil {
			t.Fatal(err)
		}
		faults.Set(nil)
		mu.Lock()
		defer mu.Unlock()
		if whole != "" {
			t.Errorf("with the lease, or all at once: %s", whole)
		}
		var left, mine int
		if err := db.Get(&left, `SELECT COUNT(*) FROM usage_crossings`); err != nil || left != others {
			t.Errorf("%d crossings of %d others are left, %v", left, others, err)
		}
		if err := db.Get(&mine, `SELECT COUNT(*) FROM (SELECT key FROM usage_crossings UNION ALL SELECT key FROM usage_notices) AS records WHERE key LIKE '%user.me.%'`); err != nil || mine != 0 {
			t.Errorf("%d records are left, %v", mine, err)
		}
		var bad [][]byte
		if err := db.Select(&bad, `SELECT payload FROM usage_quarantine`); err != nil || len(bad) != 3 || bytes.Contains(bytes.Join(bad, nil), b.Encode()) {
			t.Errorf("what was set aside: %v, %v", bad, err)
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		test(t, "sqlite", "file:"+filepath.Join(t.TempDir(), "usage.db")+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate", "sqlite3")
	})
	t.Run("postgres", func(t *testing.T) {
		if Server == nil {
			t.Skip("PostgreSQL was not tried: make test does")
		}
		test(t, "postgres", Server.NewDatabase(t), "postgres")
	})
}

// What waits is rewritten while no fold has it, and before the rows go: else a fold
// between the two would bring them back.
func TestEraseTakesAUserOutOfWhatWaits(t *testing.T) {
	test := func(t *testing.T, driver, dsn, name string) {
		faults := &dbtest.Faults{}
		plain, err := faults.Open(driver, dsn)
		if err != nil {
			t.Fatal(err)
		}
		db := sqlx.NewDb(plain, name)
		s := unstarted(t, db, nil)
		const id, many = "m\x01e", upkeep.Batches + 6
		if _, err := s.AddNow(t.Context(), "user."+id+".requests", 1); err != nil {
			t.Fatal(err)
		}
		opened := time.Now().UnixMilli()
		payload := func(counts ...counter.Count) []byte { return counter.Batch{Opened: opened, Counts: counts}.Encode() }
		other := counter.Count{Name: naming.Of("feature", id, "used"), N: 1} // of a feature that is called so
		mine := payload(other,
			counter.Count{Name: naming.Of("quota", id, "refused"), N: 1},
			counter.Count{Name: "user." + id + ".logins", N: 1}, // which is cleaned when it is read
			counter.Count{Name: naming.Of("user", id, "requests"), N: 3})
		put := func(writer string, seq int, payload []byte) {
			t.Helper()
			db.MustExec(db.Rebind(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`), writer, seq, opened, payload)
		}
		db.MustExec(db.Rebind(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES ('w', 0, ?, 4000000000000)`), []byte{}) // whose first batch is on its way
		want := map[int][]byte{}
		for i := 2; i <= many; i++ {
			switch want[i] = payload(other); i {
			case 2, many:
				put("w", i, mine)
			case 3:
				put("w", i, []byte("user.me.requests, damaged"))
				want[i] = payload(counter.Count{Name: "usagekit.counts.dropped", N: 1})
			default:
				put("w", i, want[i])
			}
		}
		check := func() {
			t.Helper()
			var batches []struct {
				Writer      string
				Seq, Opened int64
				Payload     []byte
			}
			if err := db.Select(&batches, `SELECT writer, seq, opened, payload FROM usage_inbox WHERE writer = 'w'`); err != nil || len(batches) != len(want) {
				t.Errorf("%d batches wait, %v; want %d", len(batches), err, len(want))
			}
			for _, w := range batches {
				if got, err := counter.Decode(w.Payload); !bytes.Equal(w.Payload, want[int(w.Seq)]) {
					t.Errorf("batch %d is %+v, %v", w.Seq, got, err)
				}
			}
		}
		var mu sync.Mutex
		var leased, gone bool
		var rewritten int
		var wrong []string
		faults.Set(func(op dbtest.Op) dbtest.Fault {
			mu.Lock()
			defer mu.Unlock()
			read, write := strings.Contains(op.Query, "payload FROM usage_inbox WHERE (writer, seq) >"), strings.Contains(op.Query, "usage_inbox SET payload")
			switch {
			case op.Kind == dbtest.Begin:
				leased = false
			case strings.Contains(op.Query, "SET value = value"):
				leased = true
			case strings.Contains(op.Query, "DELETE FROM") && strings.Contains(op.Query, "usage_metrics"):
				if gone = true; !leased {
					wrong = append(wrong, "without the lease: "+op.Query)
				}
			case (read || write) && (gone || !leased):
				wrong = append(wrong, "without the lease, or after the rows: "+op.Query)
			}
			if write {
				rewritten++
			}
			return dbtest.Fault{}
		})
		if err := s.Erase(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		faults.Set(nil)
		check()
		mu.Lock()
		defer mu.Unlock()
		if len(wrong) > 0 || !gone || rewritten != 3 {
			t.Errorf("rows gone: %t; %d of 3 batches rewritten; %q", gone, rewritten, wrong)
		}
		// Of what a later release wrote, only that one knows what it has.
		later := mine[:len(mine)-counter.SumSize]
		later[0] = 99
		sum := sha256.Sum256(later)
		put("x", 1, append(later, sum[:counter.SumSize]...))
		if err := s.Erase(t.Context(), id); err == nil || !strings.Contains(err.Error(), "later release") {
			t.Errorf("beside a batch of a later release: %v", err)
		}
		check()
		var left []byte
		if err := db.Get(&left, `SELECT payload FROM usage_inbox WHERE writer = 'x'`); err != nil || left[0] != 99 {
			t.Errorf("the batch of a later release is %q, %v", left, err)
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		test(t, "sqlite", "file:"+filepath.Join(t.TempDir(), "usage.db")+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate", "sqlite3")
	})
	t.Run("postgres", func(t *testing.T) {
		if Server == nil {
			t.Skip("PostgreSQL was not tried: make test does")
		}
		test(t, "postgres", Server.NewDatabase(t), "postgres")
	})
}

// A SQLite file keeps no page, and its log no copy of one, in which an erased id stands.
func TestErasedIDsLeaveTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage.db")
	db, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := open(t.Context(), db, Config{Logger: slog.New(slog.DiscardHandler), Thresholds: []Threshold{{Prefix: "user.", Measure: "requests", Value: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	const id = "zebra@example.com"
	for i := range 100 { // pages of them, that are split and merged
		s.Inc(fmt.Sprintf("user.%d.requests", i))
		s.Inc(fmt.Sprintf("user.%s%d.requests", id, i))
		if i%20 == 0 {
			if err := flushUnstarted(t, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := flushUnstarted(t, s); err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := s.Take(t.Context(), "quota."+id+"0.daily", 1, 10, Day); !ok || err != nil {
		t.Fatal(ok, err)
	}
	reader, err := db.Connx(t.Context()) // another connection, that has read
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var n int
	if err := reader.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM usage_metrics WHERE key LIKE 'user.`+id+`%'`); err != nil || n != 100 {
		t.Fatal(n, err)
	}
	for i := range 100 {
		if err := eraseUnstarted(t, s, fmt.Sprintf("%s%d", id, i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{path, path + "-wal"} {
		data, err := os.ReadFile(name)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if at := bytes.Index(data, []byte(id)); at >= 0 {
			t.Errorf("%s: %q at %d of %d bytes", filepath.Base(name), data[at:at+40], at, len(data))
		}
	}
	if n, err := s.Get(t.Context(), "user.7.requests"); n != 1 || err != nil {
		t.Errorf("user.7.requests = %d, %v", n, err)
	}
}

// The log is cut where everything else is done: in its turn, within its time, and in the
// file that the path names.
func TestEraseCutsTheLogInItsTurnAndInTheRightFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage.db")
	db, err := sqlite.Open(path)
	s := unstarted(t, db, err)
	if err := s.db.EmptyLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	release := held(t, s.db.Write)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.db.EmptyLog(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the connection of writes is in use: %v", err)
	}
	release()
	db.SetMaxIdleConns(0) // the next connection would make a file
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	var told *database.FileError
	if err := s.db.EmptyLog(t.Context()); !errors.As(err, &told) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("while its file is elsewhere: %v", err)
	}
	if found, err := filepath.Glob(path + "*"); err != nil || slices.Contains(found, path) {
		t.Errorf("a file was made in its place: %v, %v", found, err)
	}
	if err := os.Rename(path+".aside", path); err != nil {
		t.Fatal(err)
	}
	if err := s.db.EmptyLog(t.Context()); err != nil {
		t.Errorf("when it is there again: %v", err)
	}
}

// flushUnstarted is Flush where no loops run.
func flushUnstarted(t *testing.T, s *Store) error {
	t.Helper()
	s.outbox.Seal()
	for {
		if waits, err := s.outbox.SendNext(); err != nil || !waits {
			if err == nil {
				foldAll(t, s)
			}
			return err
		}
	}
}

func eraseUnstarted(t *testing.T, s *Store, user string) error {
	t.Helper()
	if err := flushUnstarted(t, s); err != nil {
		return err
	}
	return s.Erase(t.Context(), user)
}
