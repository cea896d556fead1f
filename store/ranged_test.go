package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/storetest"
)

// The list of subjects must not be read anew for every row.
func TestRangedRowsOfManyRoutes(t *testing.T) {
	ctx := dbtest.Context(t)
	st := storetest.New(t)
	const routes = 1000
	for i := range routes {
		st.Inc(fmt.Sprintf("api.GET /novels/%d.requests", i))
		st.Inc(fmt.Sprintf("api.GET /novels/%d.status_2xx", i))
	}
	if err := st.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	rows, err := st.Rows(ctx, store.Query{Prefix: "api.", Measure: "requests", From: time.Now().AddDate(0, 0, -7)})
	if len(rows) != routes || err != nil {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}
