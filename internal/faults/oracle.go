package faults

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// evidence is what is known of the requests of a trial, each by name.
type evidence struct {
	attempted tally // T: requests that clients sent
	answered  tally // A: answers that came back whole
	begun     tally // b: marks before anything else was done
	responded tally // e: marks after the response had begun
	counted   tally // N: in the database
	reported  tally // what Shutdown said was not stored; at most one batch of it was
	inFlight  int64 // requests at a time, times the programs killed
}

// rule is what must hold beyond what always must.
type rule int

const (
	// bounded: a program was killed. A ≤ N ≤ T and e ≤ N ≤ b, by name.
	bounded rule = iota
	// exactly: no client saw an error. T = A = b = e = N, by name.
	exactly
	// handled: the program was asked to end under load, so that clients may have
	// found nobody there. A = b = e = N, by name.
	handled
)

// check returns what is wrong, a line each.
func (v evidence) check(want rule) (wrong []string) {
	names := map[string]bool{}
	for _, t := range []tally{v.attempted, v.answered, v.begun, v.responded, v.counted} {
		for name := range t {
			names[name] = true
		}
	}
	var routes int64
	for _, name := range slices.Sorted(maps.Keys(names)) {
		T, A, b, e, N := v.attempted[name], v.answered[name], v.begun[name], v.responded[name], v.counted[name]
		ok := A <= N+v.reported[name] && N <= T && e <= N+v.reported[name] && N <= b
		switch want {
		case exactly:
			ok = ok && T == A && A == N && b == N && e == N
		case handled:
			ok = ok && A == N && b == N && e == N
		}
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s: T %d, A %d, b %d, e %d, N %d", name, T, A, b, e, N))
		}
		if strings.HasPrefix(name, "api.") && name != requestsTotal {
			routes += N
		}
	}
	if total := v.counted[requestsTotal]; routes != total {
		wrong = append(wrong, fmt.Sprintf("the routes have %d requests together, %s is %d", routes, requestsTotal, total))
	}
	if cut := v.begun[requestsTotal] - v.responded[requestsTotal]; cut > v.inFlight {
		wrong = append(wrong, fmt.Sprintf("%d requests were begun and not answered, only %d can have been in flight", cut, v.inFlight))
	}
	return wrong
}

// readLedger reads the two marks of every request of which a route is known.
func readLedger(path string) (begun, responded tally, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return tally{}, tally{}, nil // nobody was asked
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	begun, responded = tally{}, tally{}
	all := routes()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		part := strings.SplitN(lines.Text(), " ", 4)
		if len(part) != 4 {
			return nil, nil, fmt.Errorf("the ledger has a line %q", lines.Text())
		}
		route := routeOf(all, part[1], part[2])
		switch {
		case route == "":
		case part[0] == "b":
			begun.add(route, part[3])
		case part[0] == "e":
			responded.add(route, part[3])
		default:
			return nil, nil, fmt.Errorf("the ledger has a line %q", lines.Text())
		}
	}
	return begun, responded, lines.Err()
}

// readCounts reads the requests of every route and user, and of all.
func readCounts(ctx context.Context, db *sql.DB) (tally, error) {
	rows, err := db.QueryContext(ctx, `SELECT key, value FROM usage_metrics WHERE key LIKE 'user.%.requests' OR key LIKE 'api.%.requests' OR key = 'api.requests.total'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := tally{}
	for rows.Next() {
		var name string
		var n int64
		if err := rows.Scan(&name, &n); err != nil {
			return nil, err
		}
		counts[name] = n
	}
	return counts, rows.Err()
}

// waiting is how many batches the inbox holds.
func waiting(ctx context.Context, db *sql.DB) (n int, err error) {
	err = db.QueryRowContext(ctx, `SELECT COUNT(*) FROM usage_inbox`).Scan(&n)
	return n, err
}

// writersTable is usage_writers, for a human.
func writersTable(ctx context.Context, db *sql.DB) string {
	rows, err := db.QueryContext(ctx, `SELECT w.writer, w.seq, w.seen, COUNT(i.seq), COALESCE(MIN(i.seq), 0) FROM usage_writers w LEFT JOIN usage_inbox i ON i.writer = w.writer GROUP BY w.writer, w.seq, w.seen ORDER BY w.seen`)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	table := "writer, folded through, seen, in the inbox, from\n"
	for rows.Next() {
		var writer string
		var seq, seen, inbox, from int64
		if err := rows.Scan(&writer, &seq, &seen, &inbox, &from); err != nil {
			return table + err.Error()
		}
		table += fmt.Sprintf("%s %d %d %d %d\n", writer, seq, seen, inbox, from)
	}
	if err := rows.Err(); err != nil {
		return table + err.Error()
	}
	return table
}
