package dashboard_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/store"
)

func ExampleNew() {
	var usage *store.Store // from store.New

	mux := http.NewServeMux()
	mux.Handle("GET /usage/", dashboard.New(usage, dashboard.Config{
		Auth: dashboard.BasicAuth("admin", os.Getenv("USAGE_PASSWORD")),
		Users: func(ctx context.Context, ids []string) (map[string]string, error) {
			return map[string]string{"42": "Ada"}, nil // SELECT id, name … WHERE id = ANY(ids)
		},
	}))
}

func ExampleBasicAuth() {
	secret := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "1,234 requests") })
	h := dashboard.BasicAuth("admin", "correct horse")(secret)

	for _, password := range []string{"", "wrong", "correct horse"} {
		r := httptest.NewRequest("GET", "/usage/", nil)
		r.SetBasicAuth("admin", password)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		fmt.Println(w.Code)
	}
	// Output:
	// 401
	// 401
	// 200
}
