package faults

import (
	"time"
)

// troubledSQLite: another process locks the file, for longer than SQLite waits;
// and programs are killed in the middle of a commit.
func troubledSQLite(r *trial) {
	r.start(setup{kills: true, interval: 5 * time.Millisecond})
	r.fault(func() {
		conn := must1(r.db.Conn(r.ctx))(r)
		_, err := conn.ExecContext(r.ctx, `BEGIN IMMEDIATE`)
		r.must(err)
		r.pause(r.lasts(15*time.Second, 7*time.Second))
		_, err = conn.ExecContext(r.ctx, `ROLLBACK`)
		r.must(err)
		r.must(conn.Close())
		if !r.mode.spools() {
			return // what a kill loses there is said in the promises
		}
		for range int(r.lasts(50, 5)) {
			r.pause(time.Duration(r.rng.Int64N(int64(200 * time.Millisecond))))
			r.restartKilled(r.programs[0])
		}
	})
	if r.mode.spools() {
		r.judge(bounded)
		r.note("%d kills, b − e = %d", r.kills, r.last.begun[requestsTotal]-r.last.responded[requestsTotal])
	} else {
		r.judge(exactly)
	}
	var check string
	r.must(r.db.QueryRowContext(r.ctx, `PRAGMA integrity_check`).Scan(&check))
	if check != "ok" {
		r.Errorf("integrity_check: %s", check)
	}
}
