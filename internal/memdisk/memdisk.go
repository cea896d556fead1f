// Package memdisk is a file system in memory, for tests: a counter.Disk for each of
// several processes, which loses at the end of one, or of the power, what a real one
// may.
//
// What a process wrote is in the page cache at once. It survives the process, and
// WriteBack brings parts of it to the disk, as a kernel does. A power loss leaves of
// each page, size and name, by chance, either what was there or what the disk had:
// files that were made are missing, empty or full of zeros, removed ones are back.
// As a journal has it, a file is on the disk only with its directory, and one that
// was allocated with its size.
//
// It is for one goroutine at a time.
package memdisk

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"

	"github.com/usagekit/usagekit/internal/counter"
)

const (
	pageSize  = 4096
	mapped    = 256 << 10 // of a file that is not larger
	newPrefix = ".new-"
	tmpSuffix = ".tmp"
	magic     = "usagekit" // of a file
)

// ErrMissing says that there is no such file or directory.
var ErrMissing = errors.New("memdisk: no such file or directory")

var errDead = errors.New("memdisk: the process is dead")

// Fate is what becomes of a step of a process.
type Fate int

// The fates.
const (
	Pass      Fate = iota
	Fail           // there is no space: it has no effect
	DieBefore      // the process ends before it takes effect,
	DieAfter       // or after
)

// The steps that do not fail as long as the process lives.
const (
	Unlock = "unlock"
	Stat   = "stat"
)

// FS is a file system.
type FS struct {
	Unlocked bool // mistaken: every process may have every directory

	rand  *rand.Rand
	inode uint64
	dirs  []*dir
	aside []*file
}

// New returns an empty file system, whose chances r decides.
func New(r *rand.Rand) *FS { return &FS{rand: r} }

type dir struct {
	name      string
	there     bool
	onDisk    bool
	maker     *Process
	owner     *Process
	unsent    bool
	files     map[string]*file
	filesDisk map[string]*file
}

type file struct {
	inode    uint64
	mem      []byte // of the page cache, as long as it may become
	size     int
	disk     map[int][]byte // pages that were written back; the others are zeros
	sizeDisk int
	before   []byte // mem at the last Mark; nil: the file was not there
}

// Process is the file system as one process has it: a counter.Disk.
type Process struct {
	fs     *FS
	fate   func(step string) Fate
	dead   bool
	owning bool // within Own
	mapped []*file
}

// NewProcess returns a process of which fate decides each step.
func (fs *FS) NewProcess(fate func(step string) Fate) *Process {
	return &Process{fs: fs, fate: fate}
}

// step has effect, unless fate decides otherwise.
func (p *Process) step(name string, effect func() error) error {
	if p.dead {
		return errDead
	}
	fate := p.fate(name)
	if p.dead { // meanwhile
		return errDead
	}
	switch fate {
	case Fail:
		return syscall.ENOSPC
	case DieBefore:
		p.Kill()
		return errDead
	case DieAfter:
		_ = effect()
		p.Kill()
		return errDead
	}
	return effect()
}

// Kill ends the process. Its locks are gone, and what its memory had of files is
// theirs: whatever the dead code writes there has no effect.
func (p *Process) Kill() {
	p.dead = true
	for _, d := range p.fs.dirs {
		if d.owner == p {
			d.owner = nil
		}
	}
	for _, f := range p.mapped {
		f.mem = bytes.Clone(f.mem)
	}
	p.mapped = nil
}

// Mark is where a later Tear may go back to.
func (p *Process) Mark() {
	for _, f := range p.mapped {
		f.before = bytes.Clone(f.mem)
	}
}

// Tear kills the process in the middle of what it wrote to mapped files since Mark.
// rank is the order in which the words of one file were written, new files before
// old ones; words of one rank are written as one. What has the first keep of all
// ranks remains, the rest is as it was. Tear returns how many ranks there were.
func (p *Process) Tear(keep int, rank func(content []byte, at int) int) (ranks int) {
	type word struct {
		f        *file
		order    int
		rank, at int
	}
	var all []word
	for i, f := range p.mapped {
		order := i
		if f.before == nil {
			f.before, order = make([]byte, len(f.mem)), -1
			copy(f.before, magic) // was written before it was mapped
		}
		for at := 0; at < f.size; at += 8 {
			if !bytes.Equal(f.mem[at:at+8], f.before[at:at+8]) {
				all = append(all, word{f, order, rank(f.mem, at), at})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b word) int { return cmp.Or(a.order-b.order, a.rank-b.rank) })
	for i, w := range all {
		if i == 0 || w.f != all[i-1].f || w.rank != all[i-1].rank {
			ranks++
		}
		if ranks > keep {
			copy(w.f.mem[w.at:w.at+8], w.f.before[w.at:])
		}
	}
	p.Kill()
	return ranks
}

// WriteBack brings what is there to the disk: of pages, sizes and names three in four.
func (fs *FS) WriteBack() {
	most := func() bool { return fs.rand.IntN(4) > 0 }
	for _, d := range fs.dirs {
		if most() {
			d.onDisk = d.there && !strings.HasPrefix(d.name, newPrefix)
		}
		for _, name := range names(d.files, d.filesDisk) {
			f := d.files[name]
			if f != nil {
				f.writeBack(most)
			}
			if most() {
				put(d.filesDisk, name, f)
			}
		}
	}
}

// writeBack writes the size and the pages that some chooses.
func (f *file) writeBack(some func() bool) {
	if some() {
		f.sizeDisk = f.size
	}
	for page := 0; page < f.size; page += pageSize {
		now, disk := f.mem[page:min(page+pageSize, f.size)], f.disk[page]
		switch {
		case disk == nil && bytes.Equal(now, zeros[:len(now)]):
			return // files are filled from the front: there is no more
		case !bytes.Equal(now, disk) && some():
			f.disk[page] = bytes.Clone(now)
		}
	}
}

var zeros [pageSize]byte

// PowerLoss leaves by chance what was there or what the disk had. Every process
// must be dead.
func (fs *FS) PowerLoss() {
	returned := map[*file]bool{}
	for _, d := range fs.dirs {
		d.owner = nil
		if fs.rand.IntN(2) == 0 {
			d.there = d.onDisk
		} else if strings.HasPrefix(d.name, newPrefix) {
			d.there = d.there && fs.rand.IntN(2) == 0
		}
		for _, name := range names(d.files, d.filesDisk) {
			f := d.files[name]
			if fs.rand.IntN(2) == 0 {
				f = d.filesDisk[name]
			}
			put(d.files, name, f)
		}
		if !d.there {
			clear(d.files)
		}
		clear(d.filesDisk)
		for name, f := range d.files {
			d.filesDisk[name] = f
			returned[f] = true
		}
		d.onDisk = d.there
		for _, name := range names(d.files, nil) {
			fs.lose(d.files[name])
		}
	}
	fs.aside = slices.DeleteFunc(fs.aside, func(f *file) bool { return returned[f] })
}

// lose is a power loss for what is in a file.
func (fs *FS) lose(f *file) {
	f.writeBack(func() bool { return fs.rand.IntN(2) == 0 })
	f.size = f.sizeDisk
	if len(f.mem) < f.size {
		f.mem = make([]byte, f.size)
	}
	clear(f.mem)
	for page, content := range f.disk {
		if page < f.size {
			copy(f.mem[page:f.size], content)
		}
	}
}

func names(a, b map[string]*file) []string {
	var all []string
	for name := range a {
		all = append(all, name)
	}
	for name := range b {
		if a[name] == nil {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

func put(m map[string]*file, name string, f *file) {
	if f == nil {
		delete(m, name)
	} else {
		m[name] = f
	}
}

// Left lists all that is there: directories, and what is in them; but for files of
// which a power loss left nothing, whose nobody can tell, and what they alone are in.
func (fs *FS) Left() (all []string) {
	for _, d := range fs.dirs {
		if !d.there {
			continue
		}
		var files []string
		for _, name := range names(d.files, nil) {
			if f := d.files[name]; bytes.HasPrefix(f.mem[:f.size], []byte(magic)) {
				files = append(files, d.name+"/"+name)
			}
		}
		if len(files) > 0 || len(d.files) == 0 {
			all = append(append(all, d.name), files...)
		}
	}
	return all
}

// Aside is how many files were set aside.
func (fs *FS) Aside() int { return len(fs.aside) }

func (fs *FS) dir(name string) *dir {
	for _, d := range fs.dirs {
		if d.there && d.name == name {
			return d
		}
	}
	return nil
}

// Own makes the directory under another name, locks and renames it.
func (p *Process) Own(name string) (func(bool), error) {
	p.sweep()
	p.owning = true
	defer func() { p.owning = false }()
	fresh := newPrefix + name
	err := p.step("mkdir", func() error {
		if p.fs.dir(fresh) == nil {
			p.fs.dirs = append(p.fs.dirs, &dir{name: fresh, there: true, unsent: true, maker: p, files: map[string]*file{}, filesDisk: map[string]*file{}})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	release, err := p.Claim(fresh)
	if err != nil {
		return nil, err
	}
	err = p.step("rename directory", func() error {
		d := p.fs.dir(fresh)
		if d == nil {
			return ErrMissing
		}
		d.name = name
		return nil
	})
	if err != nil {
		release(true)
		return nil, err
	}
	return release, nil
}

// sweep removes what a process left that died within Own. The real one tells such
// directories by their age.
func (p *Process) sweep() {
	for _, d := range slices.Clone(p.fs.dirs) {
		if d.there && strings.HasPrefix(d.name, newPrefix) && !d.maker.owning {
			if release, err := p.Claim(d.name); err == nil {
				release(true)
			}
		}
	}
}

// Claim opens a directory and locks it, if it is there still.
func (p *Process) Claim(name string) (func(bool), error) {
	var d *dir
	err := p.step("open directory", func() error {
		if d = p.fs.dir(name); d == nil {
			return ErrMissing
		}
		return nil
	})
	if err == nil {
		err = p.step("lock", func() error {
			switch {
			case d.owner != nil && !p.fs.Unlocked:
				return counter.ErrOwned
			case p.fs.dir(name) != d:
				return ErrMissing
			}
			d.owner = p
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	return func(remove bool) {
		if remove {
			_ = p.step("rmdir", func() error {
				d.there = d.there && len(d.files) > 0
				return nil
			})
		}
		_ = p.step(Unlock, func() error {
			d.owner = nil
			return nil
		})
	}, nil
}

// Sent notes it at once, and for good.
func (p *Process) Sent(name string) error {
	return p.step("note that it sends", func() error {
		d := p.fs.dir(name)
		if d == nil {
			return ErrMissing
		}
		d.unsent = false
		return nil
	})
}

// Unsent tells whether Sent was not called.
func (p *Process) Unsent(name string) (unsent bool) {
	_ = p.step(Stat, func() error {
		d := p.fs.dir(name)
		unsent = d != nil && d.unsent
		return nil
	})
	return unsent
}

// Dirs lists the directories in any order.
func (p *Process) Dirs() (list, others []string, err error) {
	err = p.step("list directories", func() error {
		for _, d := range p.fs.dirs {
			if d.there && !strings.HasPrefix(d.name, newPrefix) {
				list = append(list, d.name)
			}
		}
		p.fs.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return nil
	})
	return list, nil, err
}

// Files lists a directory by name.
func (p *Process) Files(dir string) (list, others []string, err error) {
	err = p.step("list files", func() error {
		d := p.fs.dir(dir)
		if d == nil {
			return ErrMissing
		}
		for _, name := range names(d.files, nil) {
			if strings.HasSuffix(name, tmpSuffix) {
				delete(d.files, name)
				continue
			}
			list = append(list, name)
		}
		return nil
	})
	return list, nil, err
}

// place makes a file of no size in place of one that may be there.
func (p *Process) place(dir, name string) (*file, error) {
	d := p.fs.dir(dir)
	if d == nil {
		return nil, ErrMissing
	}
	p.fs.inode++
	f := &file{inode: p.fs.inode, disk: map[int][]byte{}}
	d.files[name] = f
	return f, nil
}

// Create makes a file under another name, allocates it, and renames.
func (p *Process) Create(dir, name string, size int64) (counter.Mapping, error) {
	var f *file
	if err := p.step("create", func() (err error) { f, err = p.place(dir, name+tmpSuffix); return err }); err != nil {
		return nil, err
	}
	f.mem = make([]byte, max(int(size), mapped))
	copy(f.mem, magic)
	m := mapping{f, p}
	err := m.Grow(size)
	if err == nil {
		err = p.step("rename", func() error {
			f.sizeDisk = f.size // a journal has it before the name
			return p.fs.rename(dir, name+tmpSuffix, name)
		})
	}
	if err != nil {
		_ = p.step("unlink", func() error { return p.fs.rename(dir, name+tmpSuffix, "") })
		return nil, err
	}
	p.mapped = append(p.mapped, f)
	return m, nil
}

// mapping is a file that a process has mapped.
type mapping struct {
	f *file
	p *Process
}

func (m mapping) Bytes() []byte { return m.f.mem }
func (m mapping) Inode() uint64 { return m.f.inode }
func (m mapping) Close()        {}
func (m mapping) Void()         {}
func (m mapping) Release()      {}

func (m mapping) Grow(size int64) error {
	return m.p.step("allocate", func() error {
		m.f.size = max(m.f.size, int(size))
		return nil
	})
}

// Write writes under another name, and renames.
func (p *Process) Write(dir, name string, content []byte) error {
	err := p.step("write", func() error {
		f, err := p.place(dir, name+tmpSuffix)
		if err == nil {
			f.mem, f.size = bytes.Clone(content), len(content)
		}
		return err
	})
	if err == nil {
		err = p.step("rename", func() error { return p.fs.rename(dir, name+tmpSuffix, name) })
	}
	if err != nil {
		_ = p.step("unlink", func() error { return p.fs.rename(dir, name+tmpSuffix, "") })
	}
	return err
}

// rename moves a file within its directory, in place of one that may be there; to
// no name at all, it is removed.
func (fs *FS) rename(dir, from, to string) error {
	d, f, err := fs.find(dir, from)
	if err != nil {
		return err
	}
	delete(d.files, from)
	if to != "" {
		d.files[to] = f
	}
	return nil
}

// find returns a file that is there.
func (fs *FS) find(dir, name string) (*dir, *file, error) {
	d := fs.dir(dir)
	if d == nil || d.files[name] == nil {
		return d, nil, ErrMissing
	}
	return d, d.files[name], nil
}

// Open reads a file.
func (p *Process) Open(dir, name string) (r io.ReadCloser, inode uint64, err error) {
	err = p.step("open", func() error {
		_, f, err := p.fs.find(dir, name)
		if err != nil {
			return err
		}
		r, inode = io.NopCloser(bytes.NewReader(f.mem[:f.size])), f.inode
		return nil
	})
	return r, inode, err
}

// Inode returns which file stands there.
func (p *Process) Inode(dir, name string) (inode uint64) {
	_ = p.step(Stat, func() error {
		_, f, err := p.fs.find(dir, name)
		if err == nil {
			inode = f.inode
		}
		return err
	})
	return inode
}

// Remove gives a file another name, cuts and unlinks it.
func (p *Process) Remove(dir, name string) error {
	_, f, err := p.fs.find(dir, name)
	if err != nil {
		return nil
	}
	if err := p.step("rename", func() error { return p.fs.rename(dir, name, name+tmpSuffix) }); err != nil {
		return err
	}
	_ = p.step("truncate", func() error {
		p.mapped = slices.DeleteFunc(p.mapped, func(m *file) bool { return m == f })
		f.mem, f.size = nil, 0 // whoever has it mapped keeps what he has
		return nil
	})
	_ = p.step("unlink", func() error { return p.fs.rename(dir, name+tmpSuffix, "") })
	return nil
}

// SetAside moves a file out of the way.
func (p *Process) SetAside(dir, name string) (string, error) {
	return dir + "-" + name, p.step("set aside", func() error {
		d, f, err := p.fs.find(dir, name)
		if err == nil {
			delete(d.files, name)
			p.fs.aside = append(p.fs.aside, f)
		}
		return err
	})
}

var _ counter.Disk = (*Process)(nil)
