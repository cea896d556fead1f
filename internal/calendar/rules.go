package calendar

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// noted is from when on, and up to when, rules are written down.
func noted() (from, to time.Time) {
	return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
}

// Rules writes down a zone: its name, and its offsets from UTC in seconds, each with when
// it begins, in this century.
func Rules(zone *time.Location) string {
	text := zone.String()
	from, to := noted()
	for _, c := range changesOf(zone, from, to) {
		text += fmt.Sprintf(" %d@%d", c.offset, c.at)
	}
	return text
}

// Which is a short name for rules.
func Which(rules string) string {
	sum := sha256.Sum256([]byte(rules))
	return hex.EncodeToString(sum[:8])
}

// ParseRules returns the zone that has these Rules.
func ParseRules(rules string) (*time.Location, error) {
	fields := strings.Fields(rules)
	if len(fields) < 2 {
		return nil, errors.New("calendar: no rules of a zone")
	}
	var times, kinds, types []byte // as in RFC 8536
	var offsets []int
	for _, f := range fields[1:] {
		var c change
		if _, err := fmt.Sscanf(f, "%d@%d", &c.offset, &c.at); err != nil {
			return nil, fmt.Errorf("calendar: no rules of a zone: %q", f)
		}
		kind := slices.Index(offsets, c.offset)
		if kind < 0 {
			kind = len(offsets)
			offsets = append(offsets, c.offset)
			types = append(binary.BigEndian.AppendUint32(types, uint32(int32(c.offset))), 0, 0)
		}
		times, kinds = binary.BigEndian.AppendUint64(times, uint64(c.at)), append(kinds, byte(kind))
	}
	header := append([]byte("TZif2"), make([]byte, 39)...)
	data := slices.Clone(header)
	binary.BigEndian.PutUint32(header[32:], uint32(len(kinds)))
	binary.BigEndian.PutUint32(header[36:], uint32(len(offsets)))
	binary.BigEndian.PutUint32(header[40:], 1)
	data = slices.Concat(data, header, times, kinds, types, []byte("\x00\n\n"))
	return time.LoadLocationFromTZData(fields[0], data)
}

// change is when a zone's offset from UTC becomes another one.
type change struct {
	at     int64 // Unix seconds
	offset int   // seconds
}

// changesOf lists the offsets of a zone from one time up to another: the one that it
// has first, and each change.
func changesOf(loc *time.Location, from, to time.Time) []change {
	var list []change
	for t := from; t.Before(to); {
		_, offset := t.In(loc).Zone()
		if n := len(list); n == 0 || list[n-1].offset != offset {
			list = append(list, change{t.Unix(), offset})
		}
		_, end := t.In(loc).ZoneBounds()
		if end.IsZero() {
			break
		}
		if !end.After(t) { // one of a leap year's last day
			end = t.AddDate(0, 0, 1)
		}
		t = end
	}
	return list
}

// Same tells whether buckets begin at the same times in two zones, from one time up to
// another; a zero from is the first that Rules have.
func Same(a, b *time.Location, from, to time.Time) bool {
	if from.IsZero() {
		from, _ = noted()
	}
	return slices.Equal(changesOf(a, from, to), changesOf(b, from, to))
}
