//go:build linux || darwin

package counter

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// album is what others keep in and around a spool: all that is seen of it, but for
// when it was read.
type album struct {
	root string
	seen map[string]string
}

// put makes a file of somebody else's, of long ago.
func (a *album) put(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	a.note(t, path)
}

// note makes what was put at path old, and remembers it.
func (a *album) note(t *testing.T, path string) {
	t.Helper()
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSymlink {
		ago := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
		if err := os.Chtimes(path, ago, ago); err != nil {
			t.Fatal(err)
		}
	}
	a.seen[path] = seenAt(path)
}

func (a *album) link(t *testing.T, err error, path string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	a.note(t, path)
}

// seenAt is what there is to see of a file without opening what blocks.
func seenAt(path string) string {
	var info unix.Stat_t
	if err := unix.Lstat(path, &info); err != nil {
		return err.Error()
	}
	text := fmt.Sprintf("mode %o, inode %d", info.Mode, info.Ino)
	switch info.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		content, err := os.ReadFile(path)
		text += fmt.Sprintf(", %d links, modified %v, %q, %v", info.Nlink, info.Mtim, content, err)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		text += fmt.Sprintf(", to %s, %v", target, err)
	}
	return text
}

func (a *album) check(t *testing.T) {
	t.Helper()
	for path, was := range a.seen {
		if now := seenAt(path); now != was {
			t.Errorf("%s was\n%s\nand is\n%s", strings.TrimPrefix(path, a.root), was, now)
		}
	}
}

// foreign fills root, and the directory of a dead writer in it, with what is not a
// spool's.
func foreign(t *testing.T, root, outside, dead string) *album {
	a := &album{root, map[string]string{}}
	hex := func(n int) string { return filepath.Join(root, fmt.Sprintf("%032x", n)) }
	at := func(seq int64) string { return filepath.Join(dead, fileName(seq)) }
	photo, zeros := []byte("\xff\xd8\xff photo"), make([]byte, 70_000)
	for i := range 5 { // as a cache of pictures has them, named by MD5
		a.put(t, filepath.Join(hex(i), "photo.jpg"), photo)
		a.put(t, filepath.Join(hex(i), "photo.jpg.tmp"), photo)
		a.put(t, filepath.Join(hex(i), fileName(1)), photo)
		a.put(t, filepath.Join(hex(i), fileName(2)), zeros)
		a.put(t, filepath.Join(hex(i), fileName(3)+".tmp"), zeros)
	}
	magic := append([]byte("usagekit"), make([]byte, 500)...)
	for _, dir := range []string{hex(10), filepath.Join(root, ".new-album"), filepath.Join(root, ".new-usagekit-album"), filepath.Join(root, ".new-"+strings.Repeat("a", 32)), filepath.Join(root, "album")} {
		a.link(t, os.Mkdir(dir, 0o755), dir)
	}
	a.put(t, hex(11), photo)
	a.put(t, filepath.Join(root, "notes.txt"), photo)
	a.put(t, filepath.Join(root, "album.corrupt", "photo.jpg"), photo)
	for i := range asideKept + 20 {
		a.put(t, filepath.Join(root, fmt.Sprintf("photo-%d.corrupt", i)), photo)
	}
	a.put(t, filepath.Join(outside, "target", fileName(1)), magic)
	a.put(t, filepath.Join(outside, "photo.jpg"), photo)
	a.link(t, os.Symlink(filepath.Join(outside, "target"), hex(12)), hex(12))
	a.link(t, os.Symlink(filepath.Join(outside, "nowhere"), hex(13)), hex(13))
	a.link(t, unix.Mkfifo(hex(14), 0o600), hex(14))

	a.put(t, filepath.Join(dead, "notes.txt"), photo)
	a.put(t, filepath.Join(dead, "photo.jpg.tmp"), photo)
	a.put(t, filepath.Join(dead, "usagekit.txt"), magic)
	a.put(t, filepath.Join(dead, "empty.tmp"), nil)
	a.put(t, filepath.Join(dead, tmpPrefix+"album"), nil)
	a.put(t, filepath.Join(dead, tmpPrefix+fileName(89)), photo)
	a.put(t, filepath.Join(dead, "7"+fileSuffix), magic)
	a.put(t, filepath.Join(dead, "+"+fileName(7)[1:]), magic)
	a.put(t, at(90), nil)
	a.put(t, at(91), zeros)
	a.put(t, at(92), append(make([]byte, headerSize), photo...))
	a.put(t, at(93), photo)
	a.put(t, filepath.Join(at(94), "photo.jpg"), photo)
	a.link(t, os.Link(filepath.Join(outside, "photo.jpg"), at(95)), at(95))
	a.note(t, filepath.Join(outside, "photo.jpg"))
	a.link(t, os.Symlink(filepath.Join(outside, "target", fileName(1)), at(96)), at(96))
	a.link(t, os.Symlink(filepath.Join(outside, "nowhere"), at(97)), at(97))
	a.link(t, unix.Mkfifo(at(98), 0o600), at(98))
	a.link(t, os.Mkdir(at(99), 0o755), at(99))
	return a
}

// Whatever others keep in the spool's directory, and in a writer's, stays as it is,
// and is said once; what is the spool's is counted all the same.
func TestOnlyWhatIsOursIsTouched(t *testing.T) {
	top := t.TempDir()
	root := filepath.Join(top, "spool")
	dead := openSpool(t, root)
	for range 3 {
		dead.Add("feature.a.used", 1)
		dead.Seal()
	}
	dead.Prepare()
	dir := filepath.Dir(files(t, root, "*/"+fileName(1))[0])
	dead.die()
	content, err := os.ReadFile(filepath.Join(dir, fileName(2)))
	if err != nil {
		t.Fatal(err)
	}
	content[headerSize] ^= 1 // so that it is set aside, and the oldest of those make room
	if err := os.WriteFile(filepath.Join(dir, fileName(2)), content, 0o600); err != nil {
		t.Fatal(err)
	}
	a := foreign(t, root, filepath.Join(top, "outside"), dir)
	s := openSpool(t, root)
	for round := range 3 {
		counts, seqs := s.adopt(t)
		if round == 0 && (counts["feature.a.used"] != 2 || fmt.Sprint(seqs) != "[1 3]") || round > 0 && len(seqs) > 0 {
			t.Errorf("round %d: found %v in batches %v", round, counts, seqs)
		}
		s.Add("feature.b.used", 1)
		b, ok := s.Seal()
		if !ok || !b.Spooled {
			t.Fatalf("Seal: %+v, %s", b, s.Degraded())
		}
		s.spool.Remove(b.Seq)
	}
	s.Close()
	s.spool.Release()
	a.check(t)
	if s.spool.Aside() != 1 || s.lost != 1 {
		t.Errorf("%d set aside, %d lost", s.spool.Aside(), s.lost)
	}
	if why := s.spool.Stuck(); why != "" {
		t.Errorf("what is not ours is nobody's trouble: %s", why)
	}
	said := 0
	for _, text := range s.said {
		if strings.Contains(text, "not usagekit's") {
			said++
		}
	}
	if said != 2 { // of the spool's directory, and of the writer's
		t.Errorf("said %d times:\n%s", said, strings.Join(s.said, "\n"))
	}
}

// Of what is in a spool's directory, that is said to be somebody else's which is, and
// nothing of ours; no link is taken for a directory.
func TestWhatIsSaidToBeOthers(t *testing.T) {
	root := t.TempDir()
	d, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string, dir bool) string {
		t.Helper()
		var err error
		if path := filepath.Join(root, name); dir {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, []byte("photo"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	writer := dirPrefix + newWriter()
	ours := []string{of(writer, true)}
	of(newPrefix+dirPrefix+newWriter(), true) // of a process that makes it just now, or was killed then
	of(writer+"-"+fileName(7)+asideSuffix, false)
	theirs := []string{
		of(newPrefix+"album", true), of(newPrefix+newWriter(), true), of(newWriter(), true), of(dirPrefix+"album", true),
		of("album"+asideSuffix, true), of("photo"+asideSuffix, false), of(dirPrefix+newWriter(), false), of("folder"+fileSuffix+asideSuffix, true),
	}
	link := dirPrefix + newWriter()
	if err := os.Symlink(filepath.Join(root, writer), filepath.Join(root, link)); err != nil {
		t.Fatal(err)
	}
	theirs = append(theirs, link)
	slices.Sort(theirs)
	dirs, others, err := d.Dirs()
	slices.Sort(others)
	if err != nil || !slices.Equal(dirs, ours) || !slices.Equal(others, theirs) {
		t.Errorf("Dirs: %q and others' %q, %v; want %q and %q", dirs, others, err, ours, theirs)
	}
	if _, err := d.Claim(link); err == nil {
		t.Error("a link was taken for a directory of ours")
	}
}

// A writer puts nothing in place of what others keep where its files would be.
func TestNothingOfOthersIsReplaced(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	s.Add("feature.a.used", 1)
	dir := filepath.Dir(files(t, root, "*/"+fileName(1))[0])
	a := &album{root, map[string]string{}}
	outside := filepath.Join(t.TempDir(), "photo.jpg")
	a.put(t, outside, []byte("photo"))
	for seq := int64(2); seq < 7; seq++ {
		path := filepath.Join(dir, fileName(seq))
		switch {
		case seq == 6: // what its file would be made from
			tmp := filepath.Join(dir, tmpPrefix+fileName(seq))
			a.link(t, os.Symlink(outside, tmp), tmp)
		case seq%2 == 0:
			a.put(t, path, []byte("photo"))
		default:
			a.link(t, os.Symlink(outside, path), path)
		}
	}
	left := filepath.Join(dir, tmpPrefix+fileName(7)) // ours: in nobody's way
	if err := os.WriteFile(left, []byte(fileMagic+" and no more"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		b, ok := s.Seal()
		if !ok || b.Seq != int64(i+1) {
			t.Fatalf("batch %d: %+v", i+1, b)
		}
		if free := b.Seq == 1 || b.Seq == 7; b.Spooled != free {
			t.Errorf("batch %d: in a file: %v", b.Seq, b.Spooled)
		}
		s.spool.Remove(b.Seq)
		s.Add("feature.a.used", 1)
	}
	s.Close()
	s.spool.Release()
	a.check(t)
}

// What takes the place of a file of ours while it is opened is neither followed nor
// waited for.
func TestWhatTakesAFilesPlaceIsNotRead(t *testing.T) {
	root := t.TempDir()
	opened, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	d, dir := opened.(*disk), dirPrefix+newWriter()
	path := filepath.Join(root, dir, fileName(1))
	outside := filepath.Join(t.TempDir(), "theirs")
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(fileMagic+", ours"), 0o600), os.WriteFile(outside, []byte(fileMagic+", theirs"), 0o600)); err != nil {
		t.Fatal(err)
	}
	ended, stopped := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for tmp := path + ".tmp"; err == nil; {
			select {
			case <-ended:
				stopped <- nil
				return
			default:
			}
			err = errors.Join(os.Symlink(outside, tmp), os.Rename(tmp, path), os.WriteFile(tmp, []byte(fileMagic+", ours"), 0o600), os.Rename(tmp, path),
				unix.Mkfifo(tmp, 0o600), os.Rename(tmp, path), os.WriteFile(tmp, []byte(fileMagic+", ours"), 0o600), os.Rename(tmp, path))
		}
		<-ended
		stopped <- err
	}()
	for range 20_000 {
		f, err := d.openOurs(path, os.O_RDONLY)
		if err != nil {
			continue
		}
		content, err := io.ReadAll(f)
		if f.Close(); err != nil || !strings.HasSuffix(string(content), ", ours") {
			t.Errorf("read %q, %v", content, err)
		}
	}
	close(ended)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}

// Of what was set aside the oldest makes room, and nothing of anybody else's; none takes
// the place of another.
func TestTheOldestSetAsideMakesRoom(t *testing.T) {
	root := t.TempDir()
	d, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	dir := dirPrefix + newWriter()
	if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(root, "usagekit"+asideSuffix)
	changed := func(path string) int64 {
		t.Helper()
		var info unix.Stat_t
		if err := errors.Join(os.WriteFile(path, []byte(fileMagic+" and more"), 0o600), unix.Stat(path, &info)); err != nil {
			t.Fatal(err)
		}
		return unix.TimespecToNsec(info.Ctim)
	}
	later := func() { // the clock of the file system goes on
		t.Helper()
		for at := changed(theirs); changed(theirs) == at; {
		}
	}
	photo := filepath.Join(root, "album"+fileSuffix+asideSuffix)
	if err := os.WriteFile(photo, []byte("photo"), 0o600); err != nil {
		t.Fatal(err)
	}
	later()
	var names []string
	for i := range asideKept + 1 {
		if i == 1 || i == asideKept {
			later()
		}
		if err := d.Write(dir, fileName(1), []byte(fileMagic)); err != nil {
			t.Fatal(err)
		}
		name, err := d.SetAside(dir, fileName(1))
		if err != nil || slices.Contains(names, name) {
			t.Fatalf("set aside as %q, %v", name, err)
		}
		names = append(names, name)
	}
	_, firstErr := os.Stat(filepath.Join(root, names[0]))
	_, lastErr := os.Stat(filepath.Join(root, names[asideKept]))
	_, theirErr := os.Stat(theirs)
	_, photoErr := os.Stat(photo)
	if left := files(t, root, dir+"-*"); len(left) != asideKept || firstErr == nil || lastErr != nil || theirErr != nil || photoErr != nil {
		t.Errorf("%d are left; the first: %v, the last: %v, somebody else's: %v, %v", len(left), firstErr, lastErr, theirErr, photoErr)
	}
}

// A directory of a writer that nothing is left in goes; an empty one of somebody
// else's stays.
func TestEmptyDirectories(t *testing.T) {
	root := t.TempDir()
	dead := openSpool(t, root)
	dead.Close()
	dead.die()
	if left := files(t, root, "*/*"+fileSuffix); len(left) > 0 {
		t.Fatalf("there is %v", left)
	}
	theirs := filepath.Join(root, strings.Repeat("ab", 16))
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	s := openSpool(t, root)
	s.adopt(t)
	s.Close()
	s.spool.Release()
	if left := files(t, root, "*"); len(left) != 1 || left[0] != theirs {
		t.Errorf("left behind: %v", left)
	}
}

// What a process was making when it was killed is no batch, and goes with what is left
// of the process.
func TestWhatWasCutOffGoes(t *testing.T) {
	root := t.TempDir()
	dead := openSpool(t, root)
	dead.Add("feature.a.used", 1)
	dead.die()
	dir := filepath.Join(root, dead.spool.dir.name)
	for seq, content := range map[int64]string{8: "", 9: fileMagic + " and what had come by then"} {
		if err := os.WriteFile(filepath.Join(dir, tmpPrefix+fileName(seq)), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := openSpool(t, root)
	if counts, _ := s.adopt(t); counts["feature.a.used"] != 1 || len(s.said) > 0 {
		t.Errorf("found %v; said %q", counts, s.said)
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("left behind: %v", files(t, dir, ".*"))
	}
}

// What a release before wrote, whose directories were named by the id alone, is
// delivered.
func TestDirectoriesNamedByTheIDAlone(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "00112233445566778899aabbccddeeff")
	old := NewSpool(nil, filepath.Base(dir), nil)
	b := Sealed{Seq: 7, Batch: Batch{Opened: time.Now().UnixMilli(), Counts: []Count{{"feature.a.used", 5}}}}
	killed := b
	killed.Seq = 8
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, fileName(7)), encode(old.header(b.Seq, 0), b), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, fileName(8))) // it was not sealed, and known by its inode alone
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := statFile(f)
	if err != nil {
		t.Fatal(err)
	}
	id.born = 0
	content := encode(old.header(killed.Seq, 0), killed)
	old.header(8, (&disk{root: root}).identity(id)).put(content)
	clear(content[atSealed : atSealed+8])
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	s := openSpool(t, root)
	var seqs []int64
	if err := s.spool.Adopt(registered, func(writer string, b Sealed) error {
		if seqs = append(seqs, b.Seq); writer != filepath.Base(dir) || b.Counts[0].N != 5 {
			t.Errorf("batch %d of %s: %v", b.Seq, writer, b.Counts)
		}
		return nil
	}); err != nil || !slices.Equal(seqs, []int64{7, 8}) {
		t.Errorf("batches %v, %v; %q", seqs, err, s.said)
	}
	if left := files(t, root, "*"); slices.Contains(left, dir) {
		t.Errorf("left behind: %v", left)
	}
}

// What is read is told from what is not ours by its first bytes, however little there is.
func TestWhatIsReadIsOurs(t *testing.T) {
	for _, content := range []string{"", "usage", "photo", strings.Repeat("\x00", 2*headerSize)} {
		if _, _, err := read(strings.NewReader(content), dirPrefix+newWriter(), fileName(1), 1); !errors.Is(err, errNotOurs) {
			t.Errorf("%.10q: %v", content, err)
		}
	}
}

// What waits for somebody is said as long as it waits, and nothing is where the spool
// is gone.
func TestNothingIsStuckInASpoolThatIsGone(t *testing.T) {
	root := filepath.Join(t.TempDir(), "spool")
	theirs := openSpool(t, root)
	theirs.spool.SetDatabase(strings.Repeat("ab", 16))
	theirs.Seal() // what was made before is anybody's
	theirs.Add("feature.a.used", 1)
	theirs.Seal()
	theirs.Add("feature.a.used", 1)
	theirs.die()
	s := openSpool(t, root)
	s.spool.SetDatabase(strings.Repeat("cd", 16))
	if s.adopt(t); s.spool.Stuck() == "" {
		t.Error("nobody says what another database's files wait for")
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	s.said = nil
	if s.adopt(t); s.spool.Stuck() != "" || len(s.said) > 0 {
		t.Errorf("of a spool that is gone: %q, %q", s.spool.Stuck(), s.said)
	}
}

// A damaged mark of sealing does not make a sealed file one whose counts nobody
// checks.
func TestDamagedSeal(t *testing.T) {
	root := t.TempDir()
	dead := openSpool(t, root)
	dead.Add("feature.a.used", 172)
	dead.Seal()
	dead.Close()
	dead.die()
	path := filepath.Join(root, dead.spool.dir.name, fileName(1))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at, b := range map[int64]byte{atSealed + 1: 9, headerSize: 177} {
		if _, err := f.WriteAt([]byte{b}, at); err != nil {
			t.Fatal(err)
		}
	}
	s := openSpool(t, root)
	if got, _ := s.adopt(t); len(got) != 0 || s.lost != 1 {
		t.Errorf("counted %v, %d lost", got, s.lost)
	}
}

// A crash of the machine, or a kill within the making of a directory, leaves marks that
// say nothing; their directories do not stay for it. What somebody wrote does.
func TestDirectoriesOfTheDeadAreRemoved(t *testing.T) {
	dead, unfinished := dirPrefix+strings.Repeat("a", 32), newPrefix+dirPrefix+strings.Repeat("b", 32)
	for name, c := range map[string]struct {
		dir, file string
		content   []byte
		stays     bool
	}{
		"no mark":             {dead, "", nil, false},
		"zeros":               {dead, unsentFile, make([]byte, 26), false},
		"nothing":             {dead, unsentFile, nil, false},
		"begun":               {unfinished, tmpPrefix + unsentFile, nil, false},
		"begun, of zeros":     {unfinished, tmpPrefix + unsentFile, make([]byte, 26), false},
		"begun, then the end": {unfinished, tmpPrefix + unsentFile, []byte(fileMagic + " 0"), false},
		"of somebody":         {dead, unsentFile, []byte("to be sent by Friday"), true},
		"of many zeros":       {dead, unsentFile, make([]byte, 1000), true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, c.dir)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if c.file != "" {
				if err := os.WriteFile(filepath.Join(dir, c.file), c.content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ago := time.Now().Add(-time.Hour)
			if err := os.Chtimes(dir, ago, ago); err != nil {
				t.Fatal(err)
			}
			s := openSpool(t, root)
			s.adopt(t)
			s.spool.Release()
			if _, err := os.Stat(dir); (err == nil) != c.stays {
				t.Errorf("it stays: %v, want %v", err == nil, c.stays)
			}
		})
	}
}
