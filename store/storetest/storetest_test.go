package storetest_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/usagekit/usagekit/store/storetest"
)

// What a store logs belongs to the test that made it, and not to the program's output.
func TestLogsToTheTest(t *testing.T) {
	var logged bytes.Buffer
	t.Run("one", func(t *testing.T) {
		s := storetest.New(capture{t, &logged})
		s.Inc("feature.a.used")
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if got := logged.String(); !strings.Contains(got, "usagekit: counting") || !strings.Contains(got, "usagekit: stopped") {
		t.Errorf("the test's log has %q", got)
	}
}

// capture is a test whose output can be read.
type capture struct {
	testing.TB
	to io.Writer
}

func (c capture) Output() io.Writer { return c.to }
