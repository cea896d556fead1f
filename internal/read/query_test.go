package read

import (
	"fmt"
	"strings"
	"testing"
)

// A subject is a range of names, however many others its group has: that of what all its
// names begin with, where its id is too long for some.
func TestWithinOfASubject(t *testing.T) {
	long := strings.Repeat("é", 300)
	for _, c := range []struct {
		q    Query
		want string
	}{
		{Query{Prefix: "user.", Subject: "42"}, "[{user.42. user.42/}]"},
		{Query{Prefix: "user.", Subject: "42.7"}, "[{user.42.7. user.42.7/}]"},
		{Query{Prefix: "user.", Subject: "(other)"}, "[{user.((other). user.((other)/}]"},
		{Query{Prefix: "user.42.r", Subject: "42"}, "[{user.42.r user.42.s}]"},
		{Query{Prefix: "user.43", Subject: "42"}, "[]"},
		{Query{Prefix: "user.", Subject: "42", Except: []string{"user.42.r"}}, "[{user.42. user.42.r} {user.42.s user.42/}]"},
		{Query{Name: "user.42.requests", Subject: "42"}, "[{user.42.requests user.42.requests\x01}]"},
		{Query{Prefix: "user.", Subject: long}, fmt.Sprintf("[{user.%s user.%s}]", long[:424], long[:422]+"ê")},
	} {
		if err := c.q.check(); err != nil {
			t.Errorf("%+v: %v", c.q, err)
		}
		if got := fmt.Sprint(c.q.within()); got != c.want {
			t.Errorf("%+v: %s, want %s", c.q, got, c.want)
		}
	}
}
