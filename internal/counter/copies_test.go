//go:build linux || darwin

package counter

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// linked makes a copy of a spool's directory by hard links, as cp -al does.
func linked(t *testing.T, root string) (copied string) {
	t.Helper()
	copied = t.TempDir()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		to := filepath.Join(copied, strings.TrimPrefix(path, root))
		switch {
		case err != nil || path == root:
			return err
		case e.IsDir():
			return os.Mkdir(to, 0o700)
		}
		return os.Link(path, to)
	})
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

// arrived is what a database has got, once for each writer and number: whatever comes
// first.
type arrived map[string]map[string]int64

func (a arrived) adopt(t *testing.T, root string) *spooled {
	t.Helper()
	s := openSpool(t, root)
	if err := s.spool.Adopt(registered, func(writer string, b Sealed) error { a.take(writer, b); return nil }); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.spool.Release()
	return s
}

func (a arrived) take(writer string, b Sealed) {
	key := fmt.Sprint(writer, " ", b.Seq)
	if a[key] == nil {
		a[key] = map[string]int64{}
		sum(a[key], b)
	}
}

func (a arrived) counts() map[string]int64 {
	all := map[string]int64{}
	for _, counts := range a {
		for name, n := range counts {
			all[name] += n
		}
	}
	return all
}

// A copy of a living writer's directory, made of hard links, shares its files: nobody
// else sends what is not sealed yet, nor cuts what the owner still needs.
func TestHardLinksOfALivingSpool(t *testing.T) {
	root := t.TempDir()
	s, got := openSpool(t, root), arrived{}
	s.Add("feature.a.used", 1)
	if b, ok := s.Seal(); !ok || !b.Spooled { // waits for the database
		t.Fatalf("%+v", b)
	}
	s.Prepare()
	s.Add("feature.a.used", 10)
	copied := linked(t, root)
	other := got.adopt(t, copied)
	if n := got.counts()["feature.a.used"]; n != 1 || other.lost != 0 || other.spool.Aside() != 0 {
		t.Errorf("the copy gave %d, %d lost, %d set aside: %q", n, other.lost, other.spool.Aside(), other.said)
	}
	if !strings.Contains(other.spool.Stuck(), "hard link") {
		t.Errorf("Stuck: %q", other.spool.Stuck())
	}
	s.Add("feature.a.used", 1000)
	if why := s.Degraded(); why != "" {
		t.Errorf("the owner's file was changed: %s", why)
	}
	if b, ok := s.Seal(); !ok || !b.Spooled || b.Counts[0].N != 1010 {
		t.Errorf("%+v", b)
	}
	got.adopt(t, copied) // the link has what was sealed
	s.Add("feature.a.used", 100)
	third := linked(t, root)
	s.die()
	for _, dir := range []string{third, root, copied} { // in whatever order
		got.adopt(t, dir)
	}
	if want := map[string]int64{"feature.a.used": 1111}; !maps.Equal(got.counts(), want) {
		t.Errorf("counted %v, want %v", got.counts(), want)
	}
}

// A batch that is no more what the mapped file says has a file of its own: links to
// the old one must not count.
func TestHardLinksOfAFileThatIsReplaced(t *testing.T) {
	root := t.TempDir()
	s, got := openSpool(t, root), arrived{}
	s.Add("feature.a.used", 10)
	copied := linked(t, root)
	g := s.current.Load()
	g.lose(errors.New("as after a fault"))
	s.Add("feature.a.used", 1000)
	b, ok := s.Seal()
	if !ok || !b.Spooled || b.Counts[0].N != 1010 {
		t.Fatalf("%+v", b)
	}
	got.adopt(t, copied)
	got.take(s.spool.writer, b)
	if want := map[string]int64{"feature.a.used": 1010}; !maps.Equal(got.counts(), want) {
		t.Errorf("counted %v, want %v", got.counts(), want)
	}
}

// A file is emptied for links to it: where none is left, who counts in it still meets
// no fault.
func TestAFileWithoutALinkIsNotCut(t *testing.T) {
	root := t.TempDir()
	d, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	dir := dirPrefix + newWriter()
	release, err := d.Own(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer release(false)
	m, err := d.Create(dir, fileName(1), minSize)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	if err := os.Remove(filepath.Join(root, dir, fileName(1))); err != nil {
		t.Fatal(err)
	}
	m.Void()
	if err := touching(func() { m.Bytes()[headerSize] = 1 }); err != nil {
		t.Error(err)
	}
}

// Removing a delivered batch does not cut what somebody else has a link to.
func TestLinksOfDeliveredFilesStay(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	s.Add("feature.a.used", 10)
	b, _ := s.Seal()
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.Link(filepath.Join(root, s.spool.dir.name, fileName(b.Seq)), kept); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	s.spool.Remove(b.Seq)
	if after, err := os.ReadFile(kept); err != nil || string(after) != string(before) {
		t.Errorf("%d bytes of %d are left, %v", len(after), len(before), err)
	}
}

// Files that nothing is counted in any more are nobody's, also through a link, while the
// process goes on.
func TestLinksOfFilesThatAreNotUsedAnyMore(t *testing.T) {
	for _, end := range []string{"closed without a count", "a file made ahead, and not used"} {
		root := t.TempDir()
		s, got := openSpool(t, root), arrived{}
		s.Prepare()
		copied := linked(t, root)
		if end == "closed without a count" {
			s.Close()
		} else {
			for dir, seq := range map[string]int64{root: 2, copied: 1} {
				if err := os.Remove(filepath.Join(dir, s.spool.dir.name, fileName(seq))); err != nil {
					t.Fatal(err)
				}
			}
			s.Prepare()
		}
		if other := got.adopt(t, copied); other.spool.Stuck() != "" || len(got) > 0 || other.lost > 0 {
			t.Errorf("%s: %q; adopted %v, %d lost", end, other.spool.Stuck(), got, other.lost)
		}
		s.die()
	}
}

// A delivered batch takes no space, though its file may be in memory still.
func TestDeliveredFilesTakeNoSpace(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	s.Add("feature.a.used", 10)
	b, _ := s.Seal()
	f, err := os.Open(filepath.Join(root, s.spool.dir.name, fileName(b.Seq)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.spool.Remove(b.Seq)
	if info, err := f.Stat(); err != nil || info.Size() > 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// A process that ends gives up the locks of its directory and of its files one after the
// other: who has the first waits a moment for the others.
func TestLocksOfAProcessThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		d, err := OpenDisk(root)
		if err != nil {
			t.Fatal(err)
		}
		dir := dirPrefix + newWriter()
		release, err := d.Own(dir)
		if err != nil {
			t.Fatal(err)
		}
		m, err := d.Create(dir, fileName(1), minSize)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Release()
		release(false)
		go func() {
			time.Sleep(95 * time.Millisecond)
			m.Close()
		}()
		f, _, err := d.Open(dir, fileName(1))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	})
}

// A living writer's directory that was given another name is its own still.
func TestRenamedDirectoryOfALivingWriter(t *testing.T) {
	root := t.TempDir()
	s, got := openSpool(t, root), arrived{}
	s.Add("feature.a.used", 10)
	if err := os.Rename(filepath.Join(root, s.spool.dir.name), filepath.Join(root, dirPrefix+newWriter())); err != nil {
		t.Fatal(err)
	}
	other := got.adopt(t, root)
	s.Prepare()
	s.Add("feature.a.used", 1)
	b, ok := s.Seal()
	if !ok || !b.Spooled || b.Counts[0].N != 11 || len(got) != 0 || other.lost != 0 {
		t.Errorf("%+v; adopted %v, %d lost", b, got, other.lost)
	}
	s.die()
	got.adopt(t, root)
	if n := got.counts()["feature.a.used"]; n != 11 {
		t.Errorf("counted %d, want 11", n)
	}
}

// So is one that was moved elsewhere, until the writer has ended.
func TestMovedDirectoryOfALivingWriter(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	s, other := openSpool(t, root), openSpool(t, elsewhere)
	s.Add("feature.a.used", 1)
	s.Seal()
	s.Add("feature.a.used", 2)
	if err := os.Rename(filepath.Join(root, s.spool.dir.name), filepath.Join(elsewhere, s.spool.dir.name)); err != nil {
		t.Fatal(err)
	}
	s.Prepare() // in a directory that is made anew
	s.Seal()
	for range 3 {
		runtime.GC() // which closes what nobody holds
		time.Sleep(10 * time.Millisecond)
	}
	if got, _ := other.adopt(t); len(got) != 0 || len(other.said) != 0 {
		t.Errorf("found %v of a writer that lives: %q", got, other.said)
	}
	s.spool.Release()
	if got, seqs := other.adopt(t); got["feature.a.used"] != 3 || fmt.Sprint(seqs) != "[1 2]" {
		t.Errorf("found %v in batches %v of a writer that has ended: %q", got, seqs, other.said)
	}
}
