package counter

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"reflect"
	"testing"

	"github.com/usagekit/usagekit/internal/naming"
)

func TestBatchRoundTrip(t *testing.T) {
	for _, b := range []Batch{
		{Opened: 1},
		{Opened: 1779999999999, Counts: []Count{{"a.b", 1}, {"user.a.b.requests", Max}, {"x", 300}}},
	} {
		got, err := Decode(b.Encode())
		if err != nil || !reflect.DeepEqual(got, b) {
			t.Errorf("decoded %+v, %v; want %+v", got, err, b)
		}
	}
	b := Batch{Opened: 5, Counts: []Count{{"a.b", 0}, {"a.c", 2}}}
	if got, err := Decode(b.Encode()); err != nil || len(got.Counts) != 1 {
		t.Errorf("a zero count was delivered: %+v, %v", got, err)
	}
}

// resum gives a changed payload a right checksum, so that what is checked
// behind it is reached.
func resum(p []byte) []byte {
	body := p[:len(p)-SumSize]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:SumSize]...)
}

func TestDecodeRefusesDamage(t *testing.T) {
	good := Batch{Opened: 1779999999999, Counts: []Count{{"a.b", 1}, {"user.42.requests", 77}}}.Encode()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := Decode(bad); err == nil {
			t.Errorf("byte %d of %d changed, and nobody saw it", i, len(good))
		}
		if _, err := Decode(good[:i]); err == nil {
			t.Errorf("cut after %d of %d bytes, and nobody saw it", i, len(good))
		}
	}
	if _, err := Decode(resum(append(bytes.Clone(good), 0))); err == nil {
		t.Error("bytes after the last record were not seen")
	}
	newer := bytes.Clone(good)
	newer[0] = version + 1
	if _, err := Decode(resum(newer)); !errors.Is(err, ErrVersion) {
		t.Errorf("a later version: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Batch{Opened: 1, Counts: []Count{{"a.b", 1}, {"user.42.requests", Max}}}.Encode())
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{version, 0xff}, 40))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > SumSize {
			p = resum(p)
		}
		b, err := Decode(p)
		if err != nil {
			return
		}
		for _, c := range b.Counts {
			if name := naming.Kept(c.Name); c.N < 1 || c.N > Max || naming.Known(name) != name || naming.Derived(name) {
				t.Errorf("decoded %+v", c)
			}
		}
	})
}
