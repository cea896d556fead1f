package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/uber-go/tally/v4"

	"github.com/usagekit/usagekit/internal/counter"
)

// counters count by name.
type counters interface {
	inc(keys []string)     // 1 for each
	close() (int64, error) // ends it, and returns what it counted
}

// library is one way to count by a name that is known only when it is counted.
type library struct {
	name string
	key  func(i int) string // the i-th name, as the library wants it
	open func(names int) (counters, error)
	// pause is what a caller has to do between two steps; nil: nothing.
	pause func()
}

func libraries(root string) []library {
	return []library{
		{name: ours, key: usagekitKey, open: func(names int) (counters, error) { return newSet(names), nil }},
		{name: "usagekit, spool", key: usagekitKey, open: func(names int) (counters, error) { return newSpooled(root, names) }, pause: grow},
		{name: "a mutex and a map", key: usagekitKey, open: func(int) (counters, error) { return &mutexMap{n: map[string]int64{}}, nil }},
		{name: "Prometheus, WithLabelValues", key: value, open: func(int) (counters, error) { return newPrometheus(), nil }},
		{name: "VictoriaMetrics, GetOrCreateCounter", key: victoriaKey, open: func(int) (counters, error) { return victoria{metrics.NewSet()}, nil }},
		{name: "tally, Tagged", key: value, open: func(int) (counters, error) { return newTally(), nil }},
	}
}

func usagekitKey(i int) string { return fmt.Sprintf("feature.f%d.used", i) }
func victoriaKey(i int) string { return fmt.Sprintf("feature_used{feature=\"f%d\"}", i) }
func value(i int) string       { return fmt.Sprintf("f%d", i) }

// grow gives a spool's file the time to grow. Names come in a loop here, faster
// than any server has them; what there is no room for would count in memory only.
func grow() { time.Sleep(2 * time.Millisecond) }

const step = 1024 // keys between two looks at the clock

// usagekit is a Set and what was sealed of it.
type usagekit struct {
	*counter.Set
	spool    *counter.Spool // nil: memory only
	done     []counter.Sealed
	degraded string // why counts were in memory only, although there is a spool
}

func newSet(names int) *usagekit {
	return &usagekit{Set: counter.New(2*names, func(string, int64) {}, nil)}
}

func newSpooled(root string, names int) (*usagekit, error) {
	disk, err := counter.OpenDisk(filepath.Join(root, "spool"))
	if err != nil {
		return nil, err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	spool := counter.NewSpool(disk, hex.EncodeToString(id), func(bool, string, ...any) {})
	return &usagekit{Set: counter.New(2*names, func(string, int64) {}, spool), spool: spool}, nil
}

func (u *usagekit) inc(keys []string) {
	for _, k := range keys {
		u.Add(k, 1)
	}
}

// seal ends a generation, and makes the one after the next.
func (u *usagekit) seal() {
	u.look()
	if b, ok := u.Seal(); ok {
		b.Payload = nil
		u.done = append(u.done, b)
		u.spool.Remove(b.Seq)
	}
	u.Prepare()
}

// end closes u, and returns all that it counted.
func (u *usagekit) end() ([]counter.Sealed, error) {
	u.look()
	if b, ok := u.Close(); ok {
		u.done = append(u.done, b)
		u.spool.Remove(b.Seq)
	}
	u.spool.Release()
	if u.degraded != "" { // the disk is busy with something else, perhaps
		fmt.Println("The spool's numbers are in part those of memory:", u.degraded)
	}
	if u.Overflow() > 0 || u.Lost() > 0 || u.Invalid() > 0 {
		return nil, fmt.Errorf("%d overflowed, %d lost, %d invalid", u.Overflow(), u.Lost(), u.Invalid())
	}
	return u.done, nil
}

func (u *usagekit) look() {
	if why := u.Degraded(); why != "" {
		u.degraded = why
	}
}

func (u *usagekit) close() (n int64, err error) {
	batches, err := u.end()
	for _, b := range batches {
		for _, c := range b.Counts {
			n += c.N
		}
	}
	return n, err
}

// mutexMap is what the lock-free one has to be worth more than.
type mutexMap struct {
	mu sync.Mutex
	n  map[string]int64
}

func (m *mutexMap) add(key string) {
	m.mu.Lock()
	m.n[key]++
	m.mu.Unlock()
}

func (m *mutexMap) inc(keys []string) {
	for _, k := range keys {
		m.add(k)
	}
}

func (m *mutexMap) close() (n int64, _ error) {
	for _, v := range m.n {
		n += v
	}
	return n, nil
}

type promCounters struct{ vec *prometheus.CounterVec }

func newPrometheus() promCounters {
	return promCounters{prometheus.NewCounterVec(prometheus.CounterOpts{Name: "feature_used_total"}, []string{"feature"})}
}

func (p promCounters) inc(keys []string) {
	for _, k := range keys {
		p.vec.WithLabelValues(k).Inc()
	}
}

func (p promCounters) close() (int64, error) { return collected(p.vec) }

// collected adds up what a collector's counters, or else its histograms, counted.
func collected(c prometheus.Collector) (n int64, err error) {
	ch := make(chan prometheus.Metric, 1024)
	go func() { c.Collect(ch); close(ch) }()
	for m := range ch {
		var d dto.Metric
		err = errors.Join(err, m.Write(&d))
		n += int64(math.Round(d.GetCounter().GetValue())) + int64(d.GetHistogram().GetSampleCount())
	}
	return n, err
}

type victoria struct{ set *metrics.Set }

func (v victoria) inc(keys []string) {
	for _, k := range keys {
		v.set.GetOrCreateCounter(k).Inc()
	}
}

func (v victoria) close() (n int64, _ error) {
	for _, name := range v.set.ListMetricNames() {
		n += int64(v.set.GetOrCreateCounter(name).Get())
	}
	return n, nil
}

// tallies is a scope. Its documentation says to keep the counter, which nobody can
// whose name is known only when it is counted.
type tallies struct {
	scope  tally.Scope
	closer io.Closer
	total  *totals
}

func newTally() tallies {
	t := tallies{total: &totals{StatsReporter: tally.NullStatsReporter}}
	t.scope, t.closer = tally.NewRootScope(tally.ScopeOptions{Reporter: t.total, OmitCardinalityMetrics: true}, 0)
	return t
}

func (t tallies) inc(keys []string) {
	for _, k := range keys {
		t.scope.Tagged(map[string]string{"feature": k}).Counter("used").Inc(1)
	}
}

func (t tallies) close() (int64, error) {
	err := t.closer.Close() // which reports
	return t.total.counters.Load(), err
}

// totals is a tally.StatsReporter that adds up what it is told.
type totals struct {
	tally.StatsReporter
	counters, samples atomic.Int64
}

func (t *totals) ReportCounter(_ string, _ map[string]string, n int64) { t.counters.Add(n) }

func (t *totals) ReportHistogramDurationSamples(_ string, _ map[string]string, _ tally.Buckets, _, _ time.Duration, n int64) {
	t.samples.Add(n)
}

// keys returns n of them.
func keys(n int, key func(i int) string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = key(i)
	}
	return all
}

// known compares counting under names that are there: all of them in turn, in an
// order that no cache foresees; and, where busy, a hundred of them only, which
// shows what the number of names costs without what missing the cache does.
func known(s settings, root string, n int, busy bool) ([]*group, error) {
	all := &group{title: fmt.Sprintf("Inc of a known name, %s names", thousands(int64(n))), cell: s.cell}
	few := &group{title: all.title + ", 100 of them busy", cell: s.cell}
	groups := []*group{all}
	if busy {
		groups = append(groups, few)
	}
	r := mathrand.New(mathrand.NewPCG(1, 2))
	for _, l := range libraries(root) {
		if !s.wants(all.title, l.name) {
			continue
		}
		c, err := l.open(n)
		if err != nil {
			return nil, err
		}
		for k := keys(n, l.key); len(k) > 0; k = k[min(step, len(k)):] {
			c.inc(k[:min(step, len(k))])
			if l.pause != nil {
				l.pause()
			}
		}
		again := keys(n, l.key) // strings of their own: a caller's are not the library's
		r.Shuffle(n, func(i, j int) { again[i], again[j] = again[j], again[i] })
		first := &contestant{name: l.name, workers: cycling(c, again), close: c.close, calls: int64(n)}
		all.contestants = append(all.contestants, first)
		if busy {
			second := &contestant{name: l.name, workers: cycling(c, again[:100])}
			second.close = func() (int64, error) { return second.calls, nil } // first's close has them
			first.close = func() (int64, error) {
				counted, err := c.close()
				return counted - second.calls, err
			}
			few.contestants = append(few.contestants, second)
		}
	}
	return groups, nil
}

// cycling counts under the same keys again and again, each worker from another on.
func cycling(c counters, keys []string) func(n int) ([]func() int, error) {
	for len(keys) < 2*step { // so that a step is never a short one
		keys = append(keys[:len(keys):len(keys)], keys...)
	}
	return func(n int) (steps []func() int, _ error) {
		for w := range n {
			at := w * len(keys) / n
			steps = append(steps, func() int {
				if at+step > len(keys) {
					at = 0
				}
				c.inc(keys[at : at+step])
				at += step
				return step
			})
		}
		return steps, nil
	}
}

// firstTouches compares counting under names that are new, n of them: a fresh set
// of counters each time, as a generation without a predecessor is one. All pause as
// the spool has to, which leaves the garbage collector time that is not measured.
func firstTouches(s settings, root string, n int) ([]*group, error) {
	g := &group{title: fmt.Sprintf("first Inc of a name, %s names", thousands(int64(n)))}
	for _, l := range libraries(root) {
		if s.wants(g.title, l.name) {
			g.contestants = append(g.contestants, firstTouch(l, n))
		}
	}
	return []*group{g}, nil
}

func firstTouch(l library, n int) *contestant {
	fresh := keys(n, l.key)
	var last counters
	counted := int64(0)
	end := func() error {
		if last == nil {
			return nil
		}
		one, err := last.close()
		counted += one
		last = nil
		return err
	}
	workers := func(of int) (steps []func() int, err error) {
		if err := end(); err != nil {
			return nil, err
		}
		c, err := l.open(n)
		if err != nil {
			return nil, err
		}
		last = c
		for w := range of {
			mine := fresh[w*n/of : (w+1)*n/of]
			steps = append(steps, func() int {
				some := mine[:min(step, len(mine))]
				c.inc(some)
				mine = mine[len(some):]
				return len(some)
			})
		}
		return steps, nil
	}
	return &contestant{name: l.name, workers: workers, pause: grow, close: func() (int64, error) {
		err := end()
		return counted, err
	}}
}

// live adds what n names hold of the heap: strings included that a library keeps.
func live(s settings, root string, n int, out table) error {
	title := fmt.Sprintf("heap of a live name, %s names", thousands(int64(n)))
	var names []string
	bytes := map[string]float64{}
	note := func(name string, used int64) {
		names = append(names, name)
		bytes[name] = float64(used) / float64(n)
	}
	for _, l := range libraries(root) {
		if !s.wants(title, l.name) {
			continue
		}
		before := heap()
		c, err := l.open(n)
		if err != nil {
			return err
		}
		fill := func() {
			for i := range n {
				c.inc([]string{l.key(i)})
				if l.pause != nil && i%step == 0 {
					l.pause()
				}
			}
		}
		fill()
		note(l.name, heap()-before)
		if u, ok := c.(*usagekit); ok {
			if u.spool != nil {
				used, err := fileSizes(filepath.Join(root, "spool"))
				if err != nil {
					return err
				}
				note(l.name+": its file, mapped", used)
			}
			u.seal()
			fill()
			u.done = nil // as if it were delivered
			note(l.name+", with the next generation ready", heap()-before)
		}
		if _, err := c.close(); err != nil {
			return fmt.Errorf("%s: %s: %w", title, l.name, err)
		}
		runtime.KeepAlive(c)
	}
	out.addLive(title, names, bytes)
	return nil
}

// heap returns how much of it is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the first one runs cleanups
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func fileSizes(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
