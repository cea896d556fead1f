package faults

import (
	"fmt"
	"net/url"
	"time"
)

// impossibleTimes: what is stored lies in the future, for a clock was ahead and is
// right again. It is folded on, soon; nothing is removed; and open ranges are read.
func impossibleTimes(r *trial) {
	r.start(setup{kills: true})
	p := r.programs[0]
	now := time.Now()
	old := now.AddDate(0, 0, -30).Truncate(24 * time.Hour).Unix()
	far := time.Date(2099, 5, 5, 0, 0, 0, 0, time.UTC).Unix()
	for _, at := range []int64{old, far} {
		for step := 1; step <= 2; step++ {
			r.exec(`INSERT INTO usage_history (step, bucket, key, value) VALUES (?, ?, 'feature.kept.used', 1)`, step, at)
		}
	}
	r.fault(func() {
		for _, ahead := range []time.Duration{10 * time.Minute, 3 * time.Hour, 73 * 365 * 24 * time.Hour} {
			ms := time.Now().Add(ahead).UnixMilli()
			spoil := func() {
				for name, value := range map[string]string{"lease": fmt.Sprintf("dead %d", ms), "folded": fmt.Sprint(ms)} {
					r.exec(`UPDATE usage_meta SET value = ? WHERE name = ?`, value, name)
				}
				r.exec(`UPDATE usage_removal SET last = ?, doubted = 0, seen = 0, gaps = 0`, ms)
				r.exec(`UPDATE usage_writers SET seen = ?`, ms)
			}
			if r.mode.spools() { // its leader is dead, too
				r.must(p.kill())
				r.kills++
				spoil()
				r.must(p.start())
			} else {
				spoil()
			}
			was := r.total()
			took := r.eventually(time.Minute, func() string {
				if n := r.total(); n <= was {
					return fmt.Sprintf("nothing is folded: %d requests are counted", n)
				}
				return ""
			})
			r.note("%v ahead: folded after %.1f s", ahead, took.Seconds())
			r.eventually(time.Minute, func() string {
				h, err := p.health()
				if err != nil || time.Until(h.Through) > 5*time.Second {
					return fmt.Sprintf("complete through %v, %v", h.Through, err)
				}
				return ""
			})
		}
		week := url.QueryEscape(now.AddDate(0, 0, -7).UTC().Format(time.RFC3339))
		for _, target := range []string{"api/history?step=hour&prefix=feature.&from=" + week, "api/totals?prefix=feature.&from=" + week, "api/rows?prefix=api.&measure=requests&from=" + week} {
			took, err := p.ask(target)
			if err != nil {
				r.Error(err)
			}
			r.note("an open range: %d ms", took.Milliseconds())
		}
	})
	if n := r.one(`SELECT COUNT(*) FROM usage_history WHERE key = 'feature.kept.used'`); n != 4 {
		r.Errorf("%d rows of 4 are there still", n)
	}
	if r.kills > 0 {
		r.judge(bounded)
	} else {
		r.judge(exactly)
	}
}
