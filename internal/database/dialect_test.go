package database

import (
	"os"
	"slices"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
)

var server *dbtest.Server

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &server)) }

// PostgreSQL reads our arrays and identifiers as what they were made of.
func TestPostgreSQLReadsWhatWeWrite(t *testing.T) {
	if server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	ctx := dbtest.Context(t)
	db, err := sqlx.Open("postgres", server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	texts := []string{"", " ", "a", "NULL", "null", `"`, `\`, `\"`, `a,b`, `{a}`, "{", "}", `a\nb`, "'", "''; DROP TABLE x; --", "ä€\U0001F600", "\t\n\r\v", `\x41`, "$1", "?"}
	numbers := []int64{0, 1, -1, 1<<63 - 1, -1 << 63, 1<<53 - 1}
	for _, texts := range [][]string{{}, texts} {
		var got []string
		if err := db.SelectContext(ctx, &got, `SELECT unnest(CAST($1 AS TEXT[]))`, arrayOfTexts(texts)); err != nil || !slices.Equal(got, texts) && len(got)+len(texts) > 0 {
			t.Errorf("texts %q come back as %q, %v", texts, got, err)
		}
	}
	for _, numbers := range [][]int64{{}, numbers} {
		var got []int64
		if err := db.SelectContext(ctx, &got, `SELECT unnest(CAST($1 AS BIGINT[]))`, arrayOfNumbers(numbers)); err != nil || !slices.Equal(got, numbers) && len(got)+len(numbers) > 0 {
			t.Errorf("numbers %v come back as %v, %v", numbers, got, err)
		}
	}
	for _, text := range texts {
		if text == "" {
			continue
		}
		rows, err := db.QueryContext(ctx, `SELECT 1 AS `+quoteIdentifier(text))
		if err != nil {
			t.Errorf("%q as a name: %v", text, err)
			continue
		}
		if got, err := rows.Columns(); err != nil || got[0] != text {
			t.Errorf("%q as a name is %q, %v", text, got, err)
		}
		_ = rows.Close()
	}
}
