package database

import (
	"fmt"
	"testing"
)

// What stands in braces is said in each database's way, and takes its parameter from
// among those of the question marks.
func TestWhatStandsInBraces(t *testing.T) {
	pg, lite := postgres(), sqlite()
	list := List{{Name: "a", Texts: []string{"x", "y"}}, {Name: "n", Numbers: []int64{1, 2}}}
	for _, c := range []struct {
		d           *Dialect
		query, want string
		args        []any
		wantArgs    string
	}{
		{pg, `SELECT ? FROM {v} WHERE b = ? AND {in h.bucket}`, `SELECT $1 FROM unnest(CAST($2 AS TEXT[]), CAST($3 AS BIGINT[])) AS v(a, n) WHERE b = $4 AND h.bucket = ANY($5)`,
			[]any{7, list, 8, []int64{1, 2}}, `[7 {"x","y"} {1,2} 8 {1,2}]`},
		{lite, `SELECT ? FROM {v} WHERE b = ? AND {in h.bucket}`, `SELECT ? FROM (SELECT value->>0 AS a, value->>1 AS n FROM json_each(?)) AS v WHERE b = ? AND h.bucket IN (SELECT value FROM json_each(?))`,
			[]any{7, list, 8, []int64{1, 2}}, `[7 [["x",1],["y",2]] 8 [1,2]]`},
		{lite, `INSERT INTO t {rows} ON CONFLICT DO NOTHING`, `INSERT INTO t SELECT a, n FROM (SELECT value->>0 AS a, value->>1 AS n FROM json_each(?)) AS v WHERE true ON CONFLICT DO NOTHING`, []any{list}, `[[["x",1],["y",2]]]`},
		{pg, `SELECT {stem key}, {unhex sum}, {local jit off} WHERE {in key}`, `SELECT left(key, length(key) - length(split_part(key, '.', -1))), decode(sum, 'hex'), set_config('jit', 'off', true) WHERE key = ANY($1)`,
			[]any{[]string{"a"}}, `[{"a"}]`},
		{lite, `SELECT {local jit off} WHERE key = 'GET /{id}' AND n = ? {`, `SELECT '' WHERE key = 'GET /{id}' AND n = ? {`, []any{1}, `[1]`},
	} {
		text, args := c.d.say(c.query, c.args)
		if text != c.want || fmt.Sprint(args) != c.wantArgs {
			t.Errorf("%s is\n%s\n%v, want\n%s\n%s", c.query, text, args, c.want, c.wantArgs)
		}
	}
}
