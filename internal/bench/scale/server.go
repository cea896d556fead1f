package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
)

// database is a new one, for one row.
type database struct {
	name   string
	url    string
	admin  *sqlx.DB
	reader *sqlx.DB // of this program alone
	room   int      // connections that the server has for instances
	parent int      // of the server's processes
}

const spareConnections = 10 // the program's own, and the server's for superusers

func newDatabase(ctx context.Context, server *dbtest.Server) (*database, error) {
	admin, err := postgres.Open(server.URL("postgres"))
	if err != nil {
		return nil, err
	}
	db := &database{name: "scale_" + strings.ToLower(rand.Text()), admin: admin}
	db.url = server.URL(db.name)
	if _, err := admin.ExecContext(ctx, `CREATE DATABASE `+db.name); err != nil {
		_ = admin.Close()
		return nil, fmt.Errorf("a database for the row: %w", err)
	}
	if err := db.open(ctx); err != nil {
		_ = db.drop()
		return nil, err
	}
	return db, nil
}

func (db *database) open(ctx context.Context) (err error) {
	if db.reader, err = postgres.Open(db.url); err != nil {
		return err
	}
	if err := db.reader.GetContext(ctx, &db.room, `SELECT CAST(current_setting('max_connections') AS INTEGER)`); err != nil {
		return err
	}
	db.room -= spareConnections
	var backend int
	if err := db.reader.GetContext(ctx, &backend, `SELECT pg_backend_pid()`); err != nil {
		return err
	}
	if p, err := process(strconv.Itoa(backend)); err == nil { // else it is not on this machine
		db.parent = p.parent
	}
	return nil
}

func (db *database) drop() error {
	defer db.admin.Close()
	if db.reader != nil {
		_ = db.reader.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := db.admin.ExecContext(ctx, `DROP DATABASE `+db.name+` WITH (FORCE)`)
	return err
}

// describe writes what is to be known about the server.
func describe(ctx context.Context, w io.Writer, server *dbtest.Server) error {
	db, err := postgres.Open(server.URL("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	line := "PostgreSQL"
	for _, name := range []string{"server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_connections", "autovacuum"} {
		var value string
		if err := db.GetContext(ctx, &value, `SELECT current_setting($1)`, name); err != nil {
			return err
		}
		if name == "server_version" {
			line += " " + value + ":"
		} else {
			line += " " + name + "=" + value
		}
	}
	_, err = fmt.Fprintln(w, line)
	return err
}

// reading is what was done until a moment.
type reading struct {
	at                                       time.Time
	batches, transactions, undone, deadlocks int64
	server, own, all                         float64 // seconds of CPU; all: of the machine; NaN: unknown
}

const sqlReading = `SELECT xact_commit + xact_rollback AS transactions, xact_rollback AS undone, deadlocks
FROM pg_stat_database WHERE datname = current_database()`

func (db *database) read(ctx context.Context, w way) (r reading, err error) {
	var row struct{ Transactions, Undone, Deadlocks int64 }
	if err := db.reader.GetContext(ctx, &row, sqlReading); err != nil {
		return r, err
	}
	r = reading{transactions: row.Transactions, undone: row.Undone, deadlocks: row.Deadlocks, server: serverCPU(db.parent), own: ownCPU(), all: allCPU()}
	r.batches, err = w.batches(ctx, db.reader)
	r.at = time.Now()
	return r, err
}

func (r reading) since(before reading) usage {
	return usage{
		r.at.Sub(before.at).Seconds(),
		r.batches - before.batches, r.transactions - before.transactions, r.undone - before.undone, r.deadlocks - before.deadlocks,
		r.server - before.server, r.own - before.own, r.all - before.all,
	}
}

// usage is what was done between two readings.
type usage struct {
	seconds                                  float64
	batches, transactions, undone, deadlocks int64
	server, own, all                         float64
}

func (u usage) others() float64 { return u.all - u.server - u.own }

// perBatch is the CPU that one took, the server's and this process's.
func (u usage) perBatch() float64 { return (u.server + u.own) / float64(u.batches) }

// stat is a process of Linux.
type stat struct {
	parent        int
	own, children float64 // seconds of CPU; children: of those that have ended
}

const hertz = 100 // USER_HZ, in which /proc counts on every architecture of today

// process reads /proc/<pid>/stat: proc(5).
func process(pid string) (p stat, err error) {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return p, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // the name may hold anything
	if len(fields) < 15 {
		return p, fmt.Errorf("/proc/%s/stat has %d fields", pid, len(fields))
	}
	var n [15]float64
	for i, f := range fields[1:15] {
		if n[i+1], err = strconv.ParseFloat(f, 64); err != nil {
			return p, err
		}
	}
	return stat{int(n[1]), (n[11] + n[12]) / hertz, (n[13] + n[14]) / hertz}, nil
}

// serverCPU adds up a process and its children, those that have ended, too.
func serverCPU(parent int) float64 {
	p, err := process(strconv.Itoa(parent))
	if parent == 0 || err != nil {
		return math.NaN()
	}
	sum := p.own + p.children
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		if c, err := process(filepath.Base(path)); err == nil && c.parent == parent { // else it has ended
			sum += c.own
		}
	}
	return sum
}

func ownCPU() float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return math.NaN()
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

// allCPU is what everybody used, other guests of the machine's host included.
func allCPU() float64 {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	sum := 0.0
	for i, f := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // the name, idle, iowait, what is in the others already
			continue
		}
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return math.NaN()
		}
		sum += n / hertz
	}
	if sum == 0 {
		return math.NaN()
	}
	return sum
}

// cpuModel is a comma and what Linux says of the first CPU; elsewhere nothing.
func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return ", " + strings.TrimSpace(value)
		}
	}
	return ""
}
