package faults

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/usagekit/usagekit/internal/counter"
)

// crashAtEveryStep runs random schedules of counting, sealing, sending, folding and
// adopting, with the counter and spool as they are, a disk and tables in memory. At
// every step it asks what would be counted in the end if the process were killed,
// or the machine lost its power, right there.
func crashAtEveryStep(r *trial) {
	crashes := 0
	for range int(r.lasts(300, 10)) {
		m := newModel(r.rng)
		for range 150 {
			m.next()
			if m.wrong != nil {
				r.Fatalf("step %d: %v", m.steps, m.wrong)
			}
		}
		crashes += m.crashes
		if r.ctx.Err() != nil {
			r.Fatal("the trial takes too long")
		}
	}
	r.note("%d crashes", crashes)
}

// Mistakes that a spool could make must not pass, or row 29 proves nothing.
func TestModelCatchesMistakes(t *testing.T) {
	for what, mistake := range map[string]func(*model){
		"a file goes before the answer": func(m *model) { m.forgets = true },
		"batches change their writer":   func(m *model) { m.renames = true },
	} {
		t.Run(what, func(t *testing.T) {
			m := newModel(rand.New(rand.NewPCG(shared.seed, 29)))
			mistake(m)
			for range 1000 {
				if m.next(); m.wrong != nil {
					t.Logf("step %d: %v", m.steps, m.wrong)
					return
				}
			}
			t.Error("not caught")
		})
	}
}

// model is one process, and what it did.
type model struct {
	rng    *rand.Rand
	disk   *memDisk
	tables *memTables
	set    *counter.Set
	spool  *counter.Spool
	writer string
	queue  []counter.Sealed

	// Mistakes that a test makes on purpose.
	forgets bool // it lets a file go before the answer has come
	renames bool // it sends what others left under its own id

	begun    tally // b: what may be counted
	promised tally // e: what must be, when the process is killed

	steps, crashes int
	wrong          error
}

func newModel(rng *rand.Rand) *model {
	m := &model{rng: rng, disk: newMemDisk(), tables: newMemTables(), begun: tally{}, promised: tally{}}
	m.disk.step = m.crash
	m.start()
	return m
}

// start begins as a process does: with a writer of its own, and the spool of all.
func (m *model) start() {
	m.writer = fmt.Sprintf("%016x%016x", m.rng.Uint64(), m.rng.Uint64())
	m.spool = counter.NewSpool(m.disk, m.writer, func(bool, string, ...any) {})
	m.set = counter.New(1000, func(string) {}, m.spool)
	m.queue = nil
}

// next does one thing that a process does.
func (m *model) next() {
	switch m.rng.IntN(12) {
	default:
		m.add()
	case 6:
		if b, ok := m.set.Seal(); ok {
			m.queue = append(m.queue, b)
		}
		m.crash()
		m.set.Prepare()
	case 7, 8:
		m.send()
	case 9:
		m.fail(m.tables.fold())
	case 10:
		m.disk.flush(m.rng)
	case 11:
		if m.rng.IntN(5) == 0 {
			m.restart()
		}
	}
	m.crash()
}

func (m *model) fail(err error) {
	m.wrong = errors.Join(m.wrong, err)
}

func (m *model) add() {
	name := fmt.Sprintf("user.%d.requests", m.rng.IntN(20))
	m.begun[name]++
	m.set.Add(name, 1)
	if m.set.Degraded() == "" {
		m.promised[name]++
	}
}

// send brings the first batch into the inbox. The answer may be lost, before or
// after; only one that came lets the file go.
func (m *model) send() {
	if len(m.queue) == 0 {
		return
	}
	b := m.queue[0]
	fate := m.rng.IntN(3)
	if m.forgets {
		m.spool.Remove(b.Seq)
	}
	if fate > 0 {
		m.tables.insert(m.writer, b.Seq, b.Payload)
		m.crash()
	}
	if fate > 1 {
		m.spool.Remove(b.Seq)
		m.queue = m.queue[1:]
	}
}

// restart goes on as the next process, after this one was killed.
func (m *model) restart() {
	m.disk = m.disk.afterKill()
	m.disk.step = m.crash
	m.start()
	m.fail(m.adopt(m.spool, m.tables))
	// What was promised by the dead is counted, or the check of a crash says so.
}

// adopt sends what others left; it may be cut off, and is done again then.
func (m *model) adopt(spool *counter.Spool, tables *memTables) error {
	cutOff := errors.New("cut off")
	for {
		err := spool.Adopt(func(writer string, b counter.Sealed) error {
			if m.renames {
				writer = m.writer
			}
			fate := m.rng.IntN(6)
			if fate != 0 {
				tables.insert(writer, b.Seq, b.Payload)
			}
			if fate <= 1 {
				return cutOff
			}
			return nil
		})
		if !errors.Is(err, cutOff) {
			return err
		}
		if m.rng.IntN(2) == 0 {
			if err := tables.fold(); err != nil {
				return err
			}
		}
	}
}

// crash asks what becomes of the counts if the process is killed here, and if the
// machine loses its power. What the next process would do is done on copies.
func (m *model) crash() {
	m.steps++
	if m.wrong != nil || m.set == nil {
		return
	}
	m.crashes += 2
	killed := m.recovered(m.disk.afterKill())
	for name, b := range m.begun {
		if N, e := killed[name], m.promised[name]; N < e || N > b {
			m.fail(fmt.Errorf("killed: %s has %d, %d were begun and %d responded to", name, N, b, e))
		}
	}
	dark := m.recovered(m.disk.afterPowerLoss(m.rng))
	for name, N := range dark {
		if b := m.begun[name]; N > b {
			m.fail(fmt.Errorf("power lost: %s has %d, %d were begun", name, N, b))
		}
	}
}

// recovered is what is counted in the end by the process that finds disk.
func (m *model) recovered(disk *memDisk) tally {
	tables := m.tables.clone()
	spool := counter.NewSpool(disk, "ffffffffffffffffffffffffffffffff", func(bool, string, ...any) {})
	if err := m.adopt(spool, tables); err != nil {
		m.fail(err)
	}
	if err := tables.fold(); err != nil {
		m.fail(err)
	}
	return maps.Clone(tables.total)
}
