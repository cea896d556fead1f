package middleware

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

// A device's file may say that it was put back, and have nothing to read again.
func TestWhatCannotBeReadAgainIsReadOnce(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			const semaphore = 1 // each read takes one of it
			fd, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 7, semaphore|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
			if errno != 0 {
				t.Fatal(errno)
			}
			f := os.NewFile(fd, "event")
			t.Cleanup(func() { _ = f.Close() })
			got := exchange(t, protocol, New(tally{}, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "8")
				if n, err := io.CopyN(w, f, 8); n != 8 || err != nil {
					t.Errorf("copied %d bytes, %v", n, err)
				}
			})), "GET /x", nil)
			if got.Err != "" || len(got.Body) != 8 {
				t.Errorf("answered %q, %s", got.Body, got.Err)
			}
			info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
			if _, left, _ := strings.Cut(string(info), "eventfd-count:"); err != nil || strings.Fields(left + " ?")[0] != "6" {
				t.Errorf("one was to be read of seven: %s, %v", info, err)
			}
		})
	}
}
