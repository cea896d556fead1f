package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/usagekit/usagekit/internal/counter"
)

// memDisk is a counter.Disk in memory, of which copies can be made as a crash at
// this moment would leave it.
type memDisk struct {
	mu     sync.Mutex
	inodes uint64
	dirs   map[string]*memDir
	gone   []*memFile // removed; a power loss may bring them back
	step   func()     // before and after each operation that changes something
}

type memDir struct {
	owned bool
	files map[string]*memFile
}

type memFile struct {
	dir, name string
	inode     uint64
	mem       []byte
	size      int64
	written   []byte // what the kernel has written to the disk; nil: not even the name
}

func newMemDisk() *memDisk { return &memDisk{dirs: map[string]*memDir{}, step: func() {}} }

const page = 4096

// content is what a file holds, without the zeros at its end.
func (f *memFile) content() []byte {
	return bytes.TrimRight(f.mem[:min(f.size, int64(len(f.mem)))], "\x00")
}

// flush writes a random part of what is in the page cache to the disk.
func (d *memDisk) flush(rng *rand.Rand) {
	for _, f := range d.all() {
		f.written = mix(rng, f.content(), f.written)
	}
}

func (d *memDisk) all() (files []*memFile) {
	for _, dir := range slices.Sorted(maps.Keys(d.dirs)) {
		for _, name := range slices.Sorted(maps.Keys(d.dirs[dir].files)) {
			files = append(files, d.dirs[dir].files[name])
		}
	}
	return files
}

// mix takes each page from one of two states of a file.
func mix(rng *rand.Rand, now, then []byte) []byte {
	mixed := make([]byte, max(len(now), len(then)))
	for at := 0; at < len(mixed); at += page {
		from := now
		if rng.IntN(2) == 0 {
			from = then
		}
		if at < len(from) {
			copy(mixed[at:min(at+page, len(mixed))], from[at:])
		}
	}
	return mixed
}

// afterKill is the disk as the next process finds it when this one was killed now.
func (d *memDisk) afterKill() *memDisk {
	c := newMemDisk()
	c.inodes = d.inodes
	for name, dir := range d.dirs {
		c.dirs[name] = &memDir{files: map[string]*memFile{}}
		for file, f := range dir.files {
			c.dirs[name].files[file] = f.with(slices.Clone(f.content()))
		}
	}
	return c
}

// afterPowerLoss is the disk as the next process finds it when the machine lost its
// power now: what the kernel had not written is there in part.
func (d *memDisk) afterPowerLoss(rng *rand.Rand) *memDisk {
	c := newMemDisk()
	c.inodes = d.inodes
	for _, f := range append(d.all(), d.gone...) {
		if f.written == nil && rng.IntN(2) == 0 {
			continue
		}
		if c.dirs[f.dir] == nil {
			c.dirs[f.dir] = &memDir{files: map[string]*memFile{}}
		}
		c.dirs[f.dir].files[f.name] = f.with(mix(rng, f.content(), f.written))
	}
	return c
}

func (f *memFile) with(content []byte) *memFile {
	return &memFile{dir: f.dir, name: f.name, inode: f.inode, mem: content, size: f.size}
}

var errNoSuchFile = errors.New("there is no such file")

func (d *memDisk) Own(dir string) (func(bool), error) {
	d.step()
	defer d.step()
	d.mu.Lock()
	if d.dirs[dir] == nil {
		d.dirs[dir] = &memDir{files: map[string]*memFile{}}
	}
	d.mu.Unlock()
	return d.Claim(dir)
}

func (d *memDisk) Claim(dir string) (func(bool), error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.dirs[dir]
	if m == nil {
		return nil, errNoSuchFile
	}
	if m.owned {
		return nil, counter.ErrOwned
	}
	m.owned = true
	return func(remove bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		m.owned = false
		if remove && len(m.files) == 0 {
			delete(d.dirs, dir)
		}
	}, nil
}

func (d *memDisk) Dirs() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.dirs)), nil
}

func (d *memDisk) Files(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs[dir] == nil {
		return nil, errNoSuchFile
	}
	return slices.Sorted(maps.Keys(d.dirs[dir].files)), nil
}

func (d *memDisk) Create(dir, file string, size int64) (counter.Mapping, error) {
	return d.put(dir, file, make([]byte, size), size)
}

func (d *memDisk) Write(dir, file string, content []byte) error {
	_, err := d.put(dir, file, slices.Clone(content), int64(len(content)))
	return err
}

func (d *memDisk) put(dir, file string, mem []byte, size int64) (*memFile, error) {
	d.step()
	defer d.step()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs[dir] == nil {
		return nil, errNoSuchFile
	}
	d.inodes++
	f := &memFile{dir: dir, name: file, inode: d.inodes, mem: mem, size: size}
	d.dirs[dir].files[file] = f
	return f, nil
}

func (d *memDisk) find(dir, file string) *memFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs[dir] == nil {
		return nil
	}
	return d.dirs[dir].files[file]
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (d *memDisk) Open(dir, file string) (io.ReadCloser, uint64, error) {
	f := d.find(dir, file)
	if f == nil {
		return nil, 0, errNoSuchFile
	}
	content := f.content()
	return io.NopCloser(io.MultiReader(bytes.NewReader(content), io.LimitReader(zeros{}, f.size-int64(len(content))))), f.inode, nil
}

func (d *memDisk) Inode(dir, file string) uint64 {
	if f := d.find(dir, file); f != nil {
		return f.inode
	}
	return 0
}

func (d *memDisk) Remove(dir, file string) error {
	d.step()
	defer d.step()
	if f := d.find(dir, file); f != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.gone = append(d.gone, f.with(slices.Clone(f.content())))
		d.gone[len(d.gone)-1].written = f.written
		delete(d.dirs[dir].files, file)
	}
	return nil
}

func (d *memDisk) SetAside(dir, file string) (string, error) {
	d.step()
	defer d.step()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.dirs[dir].files, file)
	return file, nil
}

func (f *memFile) Bytes() []byte    { return f.mem }
func (f *memFile) Inode() uint64    { return f.inode }
func (f *memFile) Grow(int64) error { return errors.New("the model's files do not grow") }
func (f *memFile) Release()         {}
func (f *memFile) Close()           {}

// memTables are the tables that make a batch count once.
type memTables struct {
	inbox map[string]map[int64][]byte
	guard map[string]int64 // of usage_writers
	total tally
}

func newMemTables() *memTables {
	return &memTables{map[string]map[int64][]byte{}, map[string]int64{}, tally{}}
}

func (m *memTables) clone() *memTables {
	c := &memTables{map[string]map[int64][]byte{}, maps.Clone(m.guard), maps.Clone(m.total)}
	for writer, batches := range m.inbox {
		c.inbox[writer] = maps.Clone(batches)
	}
	return c
}

// insert is a flush: a batch that is there already stays as it is.
func (m *memTables) insert(writer string, seq int64, payload []byte) {
	if m.inbox[writer] == nil {
		m.inbox[writer] = map[int64][]byte{}
	}
	if _, there := m.inbox[writer][seq]; !there {
		m.inbox[writer][seq] = payload
	}
}

// fold counts what is above each writer's guard, and advances it.
func (m *memTables) fold() error {
	for writer, batches := range m.inbox {
		for _, seq := range slices.Sorted(maps.Keys(batches)) {
			if seq <= m.guard[writer] {
				continue
			}
			b, err := counter.Decode(batches[seq])
			if err != nil {
				return fmt.Errorf("batch %d: %w", seq, err)
			}
			for _, c := range b.Counts {
				m.total[c.Name] += c.N
			}
			m.guard[writer] = seq
		}
	}
	clear(m.inbox)
	return nil
}
