package faults

import (
	"context"
	"database/sql"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// sharedPgBouncer: another application sends rows of the same types over the same
// three connections, without transactions.
func sharedPgBouncer(r *trial) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		if _, err := exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			r.notRun("there is no pgbouncer")
		}
	}
	r.start(setup{pgBouncer: 3})
	r.exec(`CREATE TABLE application_rows (writer TEXT, seq BIGINT, opened BIGINT, payload BYTEA)`)
	through := must1(sql.Open("postgres", r.server.PgBouncer(r, r.url, 3)))(r)
	defer through.Close()
	var written atomic.Int64
	ctx, cancel := context.WithTimeout(r.ctx, r.lasts(20*time.Second, 3*time.Second))
	defer cancel()
	r.fault(func() {
		var writers sync.WaitGroup
		for i := range 3 {
			writers.Go(func() {
				for seq := int64(0); ctx.Err() == nil || written.Load() == 0 && r.ctx.Err() == nil; seq++ {
					_, err := through.Exec(`INSERT INTO application_rows (writer, seq, opened, payload) VALUES ($1, $2, $3, $4)`,
						fmt.Sprintf("application %d", i), seq, time.Now().UnixMilli(), []byte("application"))
					if err == nil {
						written.Add(1)
					}
				}
			})
		}
		writers.Wait()
	})
	r.judge(exactly)
	ours := r.one(`SELECT COUNT(*) FROM application_rows WHERE writer NOT LIKE 'application %' OR payload <> 'application'`)
	theirs := r.one(`SELECT (SELECT COUNT(*) FROM usage_inbox WHERE writer LIKE 'application %') + (SELECT COUNT(*) FROM usage_writers WHERE writer LIKE 'application %')`)
	r.note("%d rows of the application's", written.Load())
	if ours+theirs != 0 || written.Load() == 0 {
		r.Errorf("%d rows of the stores' are in the application's table, %d of its in theirs", ours, theirs)
	}
}
