//go:build !cgo

package pools

import "testing"

func TestMattn(t *testing.T) {
	t.Skip("mattn/go-sqlite3 was not tried: it needs cgo, and so a C compiler")
}
