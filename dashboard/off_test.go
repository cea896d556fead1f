package dashboard

import (
	"net/http"
	"strings"
	"testing"
)

// An application that runs without a store needs no other routes: the dashboard of a
// nil one says that it is off, to those who may look.
func TestTheDashboardOfANilStoreSaysThatItIsOff(t *testing.T) {
	h := New(nil, Config{Auth: BasicAuth("admin", "s3cret")})
	for _, path := range paths {
		if w := get(h, path); w.Code != http.StatusUnauthorized {
			t.Errorf("%s without a password: %d", path, w.Code)
		}
	}
	if w := get(New(nil, Config{}), "/usage/"); w.Code != http.StatusForbidden {
		t.Errorf("without Auth: %d", w.Code)
	}
	h = New(nil, Config{Auth: Public})
	for _, path := range paths {
		w := get(h, path)
		if w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "usage metrics are off") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		if json := strings.HasPrefix(w.Body.String(), `{"error":"`); json != strings.Contains(path, "/api/") {
			t.Errorf("%s: %s", path, w.Body)
		}
		checkHeaders(t, path, w)
	}
}
