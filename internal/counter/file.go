package counter

import (
	"encoding/binary"
	"errors"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"
)

var (
	errTampered = errors.New("the words in the file are not those that were written: somebody else writes to the spool")
	errRemoved  = errors.New("the spool's files were removed under the process")
	errFull     = errors.New("names came faster than their file grows; they are in memory until the next batch")
)

// file is the mapped file of a generation.
type file struct {
	mapping Mapping
	mem     []byte       // reserved for all that the file may become
	size    atomic.Int64 // of what is allocated
	used    int64        // where the next record goes; under the generation's mutex
	spool   *Spool
	seq     int64

	growing sync.Mutex
	stopped bool
	asked   atomic.Bool           // a goroutine grows it
	why     atomic.Pointer[error] // it did not grow
}

// touchPages has the kernel give the pages of new memory, of zeros: on the request
// path, each would cost as much as ten counts.
func touchPages(mem []byte) {
	for at := 0; at < len(mem); at += 4096 {
		mem[at] = 0
	}
}

// at is the word of the mapped file that stands at an offset, a multiple of 8.
func (f *file) at(offset int64) *atomic.Int64 {
	return (*atomic.Int64)(unsafe.Pointer(&f.mem[offset]))
}

// append publishes a record for name, and returns its word; errFull when there is
// no room. It has the file grow in time.
func (f *file) append(name string) (*atomic.Int64, error) {
	at, size := f.used, f.size.Load()
	end := at + recordSize(name)
	if end > size/2 && f.asked.CompareAndSwap(false, true) {
		go f.grow(min(2*size, int64(len(f.mem))))
	}
	if end > size {
		if why := f.why.Load(); why != nil {
			return nil, *why
		}
		return nil, errFull
	}
	binary.NativeEndian.PutUint32(f.mem[at+8:], uint32(len(name)))
	copy(f.mem[at+recordHead:], name)
	f.used = end
	f.at(atUsed).Store(end)
	return f.at(at), nil
}

// grow makes room. A stopped file does not: where it was cut meanwhile, there
// must not be zeros, which would be open words.
func (f *file) grow(size int64) {
	f.growing.Lock()
	defer f.growing.Unlock()
	defer func() { _ = recover() }() // of a Disk: the file stays as it is
	if f.stopped || size <= f.size.Load() {
		return
	}
	if err := f.mapping.Grow(size); err != nil {
		f.why.Store(&err)
		return
	}
	_ = touching(func() { touchPages(f.mem[f.size.Load():size]) })
	f.size.Store(size)
	f.asked.Store(false)
}

// stop keeps the file from growing, and remembers how large the next one should be.
func (f *file) stop() {
	f.growing.Lock()
	f.stopped = true
	f.growing.Unlock()
	f.spool.mu.Lock()
	f.spool.next = min(max(minSize, (2*f.used+4095)&^4095), int64(len(f.mem)))
	f.spool.mu.Unlock()
}

// inPlace tells whether the file is where a start would look for it.
func (f *file) inPlace() bool {
	return f.spool.disk.Inode(f.spool.dir.name, fileName(f.seq)) == f.mapping.Inode()
}

// seal has the file say that b is all of it, and that it does not change any more. It
// tells whether that is so, and the file where a start would look for it.
func (f *file) seal(b Sealed) bool {
	err := touching(func() {
		f.at(atOpened).Store(b.Opened) // the first Add may not have come to it
		copy(f.mem[atSum:], b.digest())
		f.at(atSealed).Store(1)
	})
	f.mapping.Close()
	return err == nil && f.inPlace()
}

// fault returns the error of a recovered panic that a touch of a mapped file ended
// in. All other panics go on.
func fault(v any) error {
	var re runtime.Error
	if err, ok := v.(error); ok && errors.As(err, &re) {
		if _, ok := re.(interface{ Addr() uintptr }); ok {
			return errors.New("the spool's file was cut or cannot be written under us; counts are in memory until the next batch")
		}
	}
	panic(v)
}

// touching runs f, which touches a mapped file, and makes a fault an error.
func touching(f func()) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if v := recover(); v != nil {
			err = fault(v)
		}
	}()
	f()
	return nil
}
