package llm_test

import (
	"maps"
	"testing"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/llm"
)

// recorder has what was added, and what of it is no number that counts.
type recorder struct {
	counts  map[string]int64
	refused []int64
}

func (r *recorder) Add(name string, n int64) {
	if n < 1 || n > counter.Max {
		r.refused = append(r.refused, n)
		return
	}
	r.counts[name] += n
}

// What cannot be is left out alone, and handed on as what a Recorder refuses. (What a
// store makes of each provider's usage is in internal/conformance.)
func TestPartsThatCannotBe(t *testing.T) {
	const most = 1<<63 - 1
	for _, c := range []struct {
		call    llm.Call
		want    map[string]int64
		refused int64
	}{
		{llm.Call{Input: 3, Output: 2}, map[string]int64{"tokens": 5, "input_tokens": 3, "output_tokens": 2}, 0},
		{llm.Call{Input: -1, Output: 2}, map[string]int64{"tokens": 2, "output_tokens": 2}, -1},
		{llm.Call{Input: 3, Cached: 10}, map[string]int64{"tokens": 3, "input_tokens": 3}, -7},
		{llm.Call{Output: 3, Reasoning: -4}, map[string]int64{"tokens": 3, "output_tokens": 3}, -4},
		{llm.Call{Input: 3, Cached: 3}, map[string]int64{"tokens": 3, "input_tokens": 3, "cached_tokens": 3}, 0},
		{llm.Call{Cached: counter.Max}, nil, -counter.Max},
		{llm.Call{Cached: most}, nil, most},
		{llm.Call{Input: counter.Max + 1}, nil, counter.Max + 1},
		{llm.Call{Input: -most - 1}, nil, -most - 1},
		{llm.Call{Input: counter.Max, Output: 1}, map[string]int64{"tokens": counter.Max, "input_tokens": counter.Max, "output_tokens": 1}, 0},
	} {
		rec := &recorder{counts: map[string]int64{}}
		c.call.Model = "m"
		llm.New(rec).Add(c.call)
		want := map[string]int64{"llm.m.calls": 1}
		for measure, n := range c.want {
			want["llm.m."+measure] = n
		}
		if !maps.Equal(rec.counts, want) {
			t.Errorf("%+v counts %v, want %v", c.call, rec.counts, want)
		}
		if c.refused == 0 && len(rec.refused) > 0 || c.refused != 0 && (len(rec.refused) != 1 || rec.refused[0] != c.refused) {
			t.Errorf("%+v: %v refused, want %d", c.call, rec.refused, c.refused)
		}
	}
}

// A program that counts only where it is told to needs no "if calls != nil".
func TestWhatCountsNothing(t *testing.T) {
	var off *store.Store
	for name, calls := range map[string]*llm.Calls{"nil": nil, "the zero Calls": {}, "a nil Recorder": llm.New(nil), "a nil Store": llm.New(off)} {
		t.Run(name, func(t *testing.T) {
			calls.Add(llm.Call{Model: "m", Input: 1, Failed: "timeout"})
			calls.Add(llm.Call{Model: "m", Input: -1})
		})
	}
}
