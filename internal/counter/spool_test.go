//go:build linux || darwin

package counter

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
)

var (
	update   = flag.Bool("update", false, "write the golden files anew")
	spoolDir = flag.String("spool", "", "where BenchmarkAddLatency has its spool")
)

func newWriter() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// spooled is a Set with its spool below root, as one process has it.
type spooled struct {
	*Set
	spool *Spool
	said  []string
	lost  int
}

func openSpool(t testing.TB, root string) *spooled {
	t.Helper()
	disk, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	s := &spooled{}
	s.spool = NewSpool(disk, newWriter(), func(lost bool, message string, args ...any) {
		s.said = append(s.said, fmt.Sprint(append([]any{message}, args...)...))
		if lost {
			s.lost++
		}
	})
	s.Set = New(100_000, func(string, int64) {}, s.spool)
	return s
}

// registered is a database that knows every writer.
func registered(string) error { return nil }

// die gives the directory up as the end of a process does, with all in it.
func (s *spooled) die() {
	for _, g := range []*generation{s.current.Load(), s.spare} {
		if g != nil && g.file != nil {
			g.file.mapping.Close()
		}
	}
	s.spool.mu.Lock()
	defer s.spool.mu.Unlock()
	if s.spool.dir.release != nil {
		s.spool.dir.release(false)
	}
}

// adopt returns what another process finds, by name, and the batches' numbers.
func (s *spooled) adopt(t *testing.T) (counts map[string]int64, seqs []int64) {
	t.Helper()
	counts = map[string]int64{}
	if err := s.spool.Adopt(registered, func(_ string, b Sealed) error {
		seqs = append(seqs, b.Seq)
		sum(counts, b)
		if again, err := Decode(b.Payload); err != nil || len(again.Counts) != len(b.Counts) {
			t.Errorf("payload: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return counts, seqs
}

func files(t *testing.T, root, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// What was counted is found after the process has died, sealed or not; and it is
// found once.
func TestSpoolOutlivesItsProcess(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a", "spool")
	s := openSpool(t, root)
	if why := s.Degraded(); why != "" {
		t.Fatal(why)
	}
	want := map[string]int64{}
	add := func(name string, n int64) { s.Add(name, n); want[name] += n }
	for i := range 100 {
		add(fmt.Sprintf("user.%d.requests", i), int64(i+1))
	}
	first, ok := s.Seal()
	if !ok || !first.Spooled || first.Seq != 1 {
		t.Fatalf("Seal: %+v", first)
	}
	add("user.7.requests", 1)
	add("feature."+strings.Repeat("x", 400)+".used", 5)
	if b, ok := s.Seal(); !ok || b.Seq != 2 || !b.Spooled {
		t.Fatalf("Seal: %+v", b)
	}
	s.Prepare()
	add("user.8.requests", Max-100)
	other := openSpool(t, root)
	if got, _ := other.adopt(t); len(got) != 0 {
		t.Errorf("a living process was robbed of %v", got)
	}
	s.die()
	got, seqs := other.adopt(t)
	if !maps.Equal(got, want) || fmt.Sprint(seqs) != "[1 2 3]" {
		t.Errorf("found batches %v with %v, want %v", seqs, got, want)
	}
	if got, _ := other.adopt(t); len(got) != 0 {
		t.Errorf("found again: %v", got)
	}
	if left := files(t, root, "*"); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info.Mode(), err)
	}
	other.Close()
	other.spool.Release()
	if left := files(t, root, "*"); len(left) != 0 || len(other.said) != 0 {
		t.Errorf("left behind: %v; reported: %v", left, other.said)
	}
}

// A delivered batch has no file any more, and in the end there is nothing.
func TestSpoolKeepsNothingThatWasDelivered(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	for i := range 50 {
		s.Add("feature.a.used", 1)
		b, ok := s.Seal()
		if !ok || b.Seq != int64(i+1) {
			t.Fatalf("batch %d: %+v", i, b)
		}
		s.spool.Remove(b.Seq)
		s.Prepare()
		if n := len(files(t, root, "*/*"+fileSuffix)); n != 2 {
			t.Fatalf("%d files, want this generation's and the next one's", n)
		}
	}
	s.Close()
	s.spool.Release()
	if left := files(t, root, "*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Adds from many goroutines, sealed all the while, some of them new names, with the
// files cut, removed and overwritten under them: while the process lives, each count
// is in one batch, and nothing faults.
func TestSpoolCutUnderLoad(t *testing.T) {
	const adders, each = 4, 30_000
	for _, abuse := range []string{"none", "cut", "remove", "zeros", "closed", "no directory"} {
		t.Run(abuse, func(t *testing.T) {
			if abuse == "cut" && dbtest.Race() {
				t.Skip("the race detector's own code does not survive the fault")
			}
			root := filepath.Join(t.TempDir(), "spool")
			s := openSpool(t, root)
			got := map[string]int64{}
			var adding sync.WaitGroup
			for a := range adders {
				adding.Go(func() {
					r := mathrand.New(mathrand.NewPCG(1, uint64(a)))
					for i := range each {
						s.Add(fmt.Sprintf("feature.f%d.used", r.IntN(40+i/10)), 1)
					}
				})
			}
			done := make(chan struct{})
			go func() { adding.Wait(); close(done) }()
			seals, degraded := 0, 0
			for running := true; running; {
				select {
				case <-done:
					running = false
				default:
				}
				for _, path := range files(t, root, "*/*") {
					switch abuse {
					case "cut":
						_ = os.Truncate(path, 0)
					case "zeros":
						if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
							_, _ = f.WriteAt(make([]byte, 2000), 0)
							f.Close()
						}
					case "closed": // every word, as sealing does
						if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
							_, _ = f.WriteAt(bytes.Repeat([]byte{0xff}, 2000), headerSize)
							f.Close()
						}
					case "remove":
						_ = os.Remove(path)
					}
				}
				if abuse == "no directory" {
					_ = os.RemoveAll(root)
				}
				if s.Degraded() != "" {
					degraded++
				}
				if b, ok := s.Seal(); ok {
					seals++
					sum(got, b)
					if !dbtest.Race() { // it cuts the file, which a late Add may still touch
						s.spool.Remove(b.Seq)
					}
					s.Prepare()
				}
			}
			if b, ok := s.Close(); ok {
				sum(got, b)
			}
			total := int64(0)
			for _, n := range got {
				total += n
			}
			if total != adders*each || s.Lost() != 0 {
				t.Errorf("%d of %d adds are in %d batches", total, adders*each, seals)
			}
			t.Logf("%d seals, degraded at %d", seals, degraded)
			s.spool.Release()
		})
	}
}

// A batch that could not be in its mapped file is written as a file of its own
// before it is sent.
func TestDegradedBatchesAreWritten(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	s.Add("feature.a.used", 3)
	for _, path := range files(t, root, "*/*") {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	s.Add("feature.a.used", 4)
	if s.Degraded() == "" {
		t.Error("not degraded although the file is gone")
	}
	if !s.Prepare() {
		t.Error("the next generation is no better")
	}
	b, ok := s.Seal()
	if !ok || !b.Spooled || b.Counts[0].N != 7 {
		t.Fatalf("Seal: %+v", b)
	}
	if why := s.Degraded(); why != "" {
		t.Errorf("degraded still: %s", why)
	}
	s.die()
	if got, _ := openSpool(t, root).adopt(t); got["feature.a.used"] != 7 {
		t.Errorf("found %v", got)
	}
}

// More names than a file has room for, before it can grow.
func TestSpoolFileGrows(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	const names = 50_000 // of 64 bytes: 3 MB, where the first file has 1
	for i := range names {
		s.Add(fmt.Sprintf("feature.f%d.used", i), 1)
		for s.current.Load().file.asked.Load() { // names that come as fast as here can be faster than their file grows
			runtime.Gosched()
		}
	}
	b, _ := s.Seal()
	if len(b.Counts) != names || !b.Spooled {
		t.Fatalf("%d names of %d", len(b.Counts), names)
	}
	s.Add("feature.f7.used", 1) // in the second file, which was made before the first had ended
	s.Seal()
	for i := range names {
		s.Add(fmt.Sprintf("feature.f%d.used", i), 1)
	}
	if why := s.Degraded(); why != "" {
		t.Errorf("the third file is no larger than the first: %s", why)
	}
	s.die()
	if got, _ := openSpool(t, root).adopt(t); len(got) != names || got["feature.f7.used"] != 3 {
		t.Errorf("found %d names, feature.f7.used is %d", len(got), got["feature.f7.used"])
	}
}

// A batch that seems to be of long ago, by the clock of the host alone, is set aside
// only when the database has forgotten its writer: whether it has the batch already
// is not known then.
func TestBatchesOfLongAgo(t *testing.T) {
	for _, c := range []struct {
		name          string
		sent          bool // the writer had begun to send
		known         bool // the database knows it
		want, dropped int64
	}{
		{"never sent, so the database cannot have it", false, false, 11, 0},
		{"the database knows what it has", true, true, 11, 0},
		{"the database may have forgotten that it has it", true, false, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			dead := openSpool(t, root)
			for _, old := range []bool{true, false} {
				dead.Add("feature.a.used", map[bool]int64{true: 10, false: 1}[old])
				if old { // as a host says whose clock is 61 days behind
					g := dead.current.Load()
					g.opened.Store(time.Now().Add(-MaxAge - 24*time.Hour).UnixMilli())
				}
				dead.Seal()
			}
			if c.sent {
				dead.spool.Sent()
			}
			dead.die()
			known := map[string]bool{dead.spool.writer: c.known}
			s, got := openSpool(t, root), map[string]int64{}
			for range 2 {
				if err := s.spool.Adopt(func(writer string) error {
					known[writer] = true
					return nil
				}, func(writer string, b Sealed) error {
					if b.Old && !known[writer] {
						return ErrForgotten
					}
					sum(got, b)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			if got["feature.a.used"] != c.want || int64(s.lost) != c.dropped || int64(s.spool.Aside()) != c.dropped {
				t.Errorf("counted %d, want %d; %d set aside: %q", got["feature.a.used"], c.want, s.spool.Aside(), s.said)
			}
		})
	}
}

// That nothing was sent is true of the original alone, and until it is no more:
// of no copy or link, nor after the first attempt of somebody else.
func TestWhetherAnythingWasSent(t *testing.T) {
	refused := errors.New("refused")
	old := func(t *testing.T) (s *spooled, root string) {
		root = t.TempDir()
		s = openSpool(t, root)
		s.Add("feature.a.used", 1)
		s.current.Load().opened.Store(time.Now().Add(-2 * MaxAge).UnixMilli())
		s.Seal()
		return s, root
	}
	adopt := func(t *testing.T, root string, register error) (registers, sends int) {
		s := openSpool(t, root)
		_ = s.spool.Adopt(func(string) error { registers++; return register }, func(string, Sealed) error { sends++; return refused })
		return registers, sends
	}
	t.Run("links", func(t *testing.T) {
		s, root := old(t)
		copied := linked(t, root)
		s.spool.Sent()
		if left := files(t, root, "*/"+unsentFile); len(left) > 0 {
			t.Errorf("there is %v, and something was sent", left)
		}
		s.die()
		if registers, _ := adopt(t, copied, nil); registers > 0 {
			t.Error("a link says that nothing was sent, and it was")
		}
	})
	t.Run("copies", func(t *testing.T) {
		s, root := old(t)
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(root)); err != nil {
			t.Fatal(err)
		}
		s.spool.Sent()
		s.die()
		if registers, _ := adopt(t, copied, nil); registers > 0 {
			t.Error("a copy says that nothing was sent, and it was")
		}
	})
	t.Run("killed while it is noted", func(t *testing.T) {
		s, root := old(t)
		s.die()
		disk, err := OpenDisk(root)
		if err != nil {
			t.Fatal(err)
		}
		dir := s.spool.dir.name
		if err := os.Truncate(filepath.Join(root, dir, unsentFile), sentSize); err != nil { // and no more
			t.Fatal(err)
		}
		if disk.(interface{ Unsent(dir string) bool }).Unsent(dir) {
			t.Error("it says that nothing was sent")
		}
		other := openSpool(t, root)
		if err := other.spool.Adopt(func(string) error { return nil }, func(string, Sealed) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(root, dir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its directory is still there: %v", err)
		}
	})
	t.Run("attempts", func(t *testing.T) {
		s, root := old(t)
		s.die()
		for i, c := range []struct {
			register         error
			registers, sends int
		}{{refused, 1, 0}, {nil, 1, 1}, {nil, 0, 1}} {
			if registers, sends := adopt(t, root, c.register); registers != c.registers || sends != c.sends {
				t.Errorf("attempt %d: registered %d times, sent %d", i, registers, sends)
			}
		}
	})
	t.Run("the directory made anew", func(t *testing.T) {
		s, root := old(t)
		s.spool.Sent()
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
		s.Add("feature.a.used", 1)
		s.current.Load().opened.Store(time.Now().Add(-2 * MaxAge).UnixMilli())
		s.Prepare()
		if b, ok := s.Seal(); !ok || !b.Spooled {
			t.Fatalf("%+v", b)
		}
		s.die()
		if registers, sends := adopt(t, root, nil); registers > 0 || sends != 1 {
			t.Errorf("registered %d times, sent %d", registers, sends)
		}
	})
}

// Errors of a disk are shown to whoever may see the health of the application: they
// do not say where it keeps its files.
func TestErrorsOfADiskNameNoPath(t *testing.T) {
	root := filepath.Join(t.TempDir(), "spool")
	disk, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	dir, file := dirPrefix+newWriter(), fileName(1)
	for _, state := range []string{"empty", "removed", "a file"} {
		if state != "empty" {
			if err := os.RemoveAll(root); err != nil {
				t.Fatal(err)
			}
		}
		if state == "a file" {
			if err := os.WriteFile(root, []byte("usagekit"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		errs := map[string]error{}
		if state == "a file" {
			_, errs["Own"] = disk.Own(dir)
		}
		_, errs["Claim"] = disk.Claim(dir)
		if state != "empty" {
			_, _, errs["Dirs"] = disk.Dirs()
		}
		_, _, errs["Files"] = disk.Files(dir)
		_, errs["Create"] = disk.Create(dir, file, minSize)
		errs["Write"] = disk.Write(dir, file, []byte("usagekit"))
		_, _, errs["Open"] = disk.Open(dir, file)
		_, errs["SetAside"] = disk.SetAside(dir, file)
		if state == "a file" {
			errs["Remove"] = disk.Remove(dir, file)
		}
		for what, err := range errs {
			if err == nil || strings.Contains(err.Error(), filepath.Dir(root)) {
				t.Errorf("%s, the root %s: %v", what, state, err)
			}
		}
	}
}

// What stands in a spool besides honest files: a start survives it, counts what is
// sound, and says what it did with the rest.
func TestSpoolOfAllSorts(t *testing.T) {
	root := t.TempDir()
	dead := openSpool(t, root)
	for i := range 6 {
		dead.Add("feature.a.used", 1)
		if i < 5 {
			dead.Seal()
		}
	}
	dead.die()
	dir := filepath.Join(root, dead.spool.dir.name)
	damage := func(seq int64, f func(b []byte) []byte) {
		path := filepath.Join(dir, fileName(seq))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damage(2, func(b []byte) []byte { b[headerSize] ^= 1; return b })
	damage(3, func(b []byte) []byte { return b[:100] })
	damage(4, func([]byte) []byte { return []byte("garbage") })
	copied, err := os.ReadFile(filepath.Join(dir, fileName(6)))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"notes.txt": []byte("mine"), fileName(7): copied} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, fileName(9)), 0o700); err != nil {
		t.Fatal(err)
	}
	s := openSpool(t, root)
	got, seqs := s.adopt(t)
	if got["feature.a.used"] != 3 || fmt.Sprint(seqs) != "[1 5 6]" {
		t.Errorf("found %v in batches %v", got, seqs)
	}
	if n := s.spool.Aside(); n != 3 || s.lost != 3 || len(files(t, root, "*.corrupt")) != n {
		t.Errorf("%d set aside, %d of them lost: %q", n, s.lost, s.said)
	}
	if again, _ := s.adopt(t); len(again) != 0 {
		t.Errorf("found again: %v", again)
	}
}

// A copy of a living writer's directory: what was sealed is the same batch, under
// the same number, and what was not is the original's.
func TestCopiedSpool(t *testing.T) {
	root, copied := t.TempDir(), t.TempDir()
	s := openSpool(t, root)
	s.Add("feature.a.used", 1)
	s.Seal()
	s.Add("feature.a.used", 2)
	if err := os.CopyFS(filepath.Join(copied, s.spool.dir.name), os.DirFS(filepath.Join(root, s.spool.dir.name))); err != nil {
		t.Fatal(err)
	}
	other := openSpool(t, copied)
	got, seqs := other.adopt(t)
	if got["feature.a.used"] != 1 || fmt.Sprint(seqs) != "[1]" {
		t.Errorf("found %v in batches %v, want the sealed one", got, seqs)
	}
	if n := other.spool.Aside(); n != 1 || other.lost != 0 {
		t.Errorf("%d set aside, %d lost: %q", n, other.lost, other.said)
	}
}

// A copy that was made file by file while its original went on: of what comes after a file
// that was not sealed then, nothing is sent, for the original may have sent more.
func TestSpoolCopiedWhileItsWriterGoesOn(t *testing.T) {
	root, copied := t.TempDir(), t.TempDir()
	s := openSpool(t, root)
	copyFile := func(seq int64) {
		t.Helper()
		name := filepath.Join(s.spool.dir.name, fileName(seq))
		content, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, name), content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(copied, s.spool.dir.name), 0o700); err != nil {
		t.Fatal(err)
	}
	s.Add("feature.a.used", 1)
	copyFile(1)
	s.Add("feature.a.used", 2)
	s.Seal()
	s.Add("feature.a.used", 4)
	s.Seal()
	copyFile(2)
	other := openSpool(t, copied)
	if got, seqs := other.adopt(t); len(got) != 0 {
		t.Errorf("found %v in batches %v, want none", got, seqs)
	}
	if n := other.spool.Aside(); n != 2 || other.lost != 0 {
		t.Errorf("%d set aside, %d lost: %q", n, other.lost, other.said)
	}
}

// Files for another database, or of a later release, stay for whom they concern.
func TestForeignFilesStay(t *testing.T) {
	root := t.TempDir()
	theirs := openSpool(t, root)
	theirs.spool.SetDatabase(strings.Repeat("ab", 16))
	theirs.Add("feature.a.used", 1)
	theirs.Seal() // made before the database was known: anybody's
	theirs.Add("feature.a.used", 2)
	theirs.Seal()
	theirs.Add("feature.a.used", 4)
	theirs.die()
	newer := openSpool(t, root)
	newer.Add("feature.b.used", 1)
	newer.die()
	path := filepath.Join(root, newer.spool.dir.name, fileName(1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[atVersion]++
	clear(b[atOpened:headerSize]) // which a later version may use for something else
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(root, theirs.spool.dir.name, fileName(3)) // theirs to find out
	if b, err = os.ReadFile(damaged); err != nil {
		t.Fatal(err)
	}
	b[headerSize+8] = 0xff
	s := openSpool(t, root)
	s.spool.SetDatabase(strings.Repeat("cd", 16))
	if err := os.WriteFile(damaged, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		got, _ := s.adopt(t)
		if got["feature.a.used"] > 1 || got["feature.b.used"] != 0 {
			t.Errorf("sent %v", got)
		}
	}
	said := strings.Join(s.said, "\n")
	if len(s.said) != 2 || !strings.Contains(said, "abab") || !strings.Contains(said, "cdcd") || !strings.Contains(said, theirs.spool.writer) || !strings.Contains(said, "later release") {
		t.Errorf("reported %d times:\n%s", len(s.said), said)
	}
	if s.lost != 0 || s.spool.Aside() != 0 || !strings.Contains(s.spool.Stuck(), "stays where it is") {
		t.Errorf("%d lost, %d set aside; %s", s.lost, s.spool.Aside(), s.spool.Stuck())
	}
	home := openSpool(t, root)
	home.spool.SetDatabase(strings.Repeat("ab", 16))
	if got, _ := home.adopt(t); got["feature.a.used"] != 2 || home.lost != 1 {
		t.Errorf("at home: %v, %d lost", got, home.lost)
	}
}

// An adoption that is cut off goes on with what is left.
func TestAdoptionGoesOn(t *testing.T) {
	root := t.TempDir()
	dead := openSpool(t, root)
	for range 3 {
		dead.Add("feature.a.used", 1)
		dead.Seal()
	}
	dead.die()
	s := openSpool(t, root)
	stop := errors.New("stop")
	sent := 0
	if err := s.spool.Adopt(registered, func(string, Sealed) error {
		if sent++; sent == 2 {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) {
		t.Errorf("Adopt: %v", err)
	}
	if _, seqs := s.adopt(t); fmt.Sprint(seqs) != "[2 3]" {
		t.Errorf("the second time: %v", seqs)
	}
}

// A process keeps few files open and in memory, though the garbage collector never
// runs by itself.
func TestSpoolWithoutGarbageCollection(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before, _ := os.ReadDir("/proc/self/fd") // none elsewhere
	s := openSpool(t, t.TempDir())
	for range 3 * maxMapped {
		s.Add("feature.a.used", 1)
		b, ok := s.Seal()
		if !ok || !b.Spooled {
			t.Fatalf("%+v, %s", b, s.Degraded())
		}
		s.spool.Remove(b.Seq)
		s.Prepare()
		for deadline := time.Now().Add(3 * time.Minute); s.spool.mapped.Load() > maxMapped+5 && time.Now().Before(deadline); {
			runtime.Gosched() // the cleanups have their own goroutine
		}
	}
	if n := s.spool.mapped.Load(); n > maxMapped+6 {
		t.Errorf("%d files are in memory", n)
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil && len(open) > len(before)+10 {
		t.Errorf("%d files are open, %d were", len(open), len(before))
	}
}

// The spool removed while a generation goes on: that is noticed, and what was counted
// is written again.
func TestSpoolRemovedIsNoticed(t *testing.T) {
	root := filepath.Join(t.TempDir(), "spool")
	s := openSpool(t, root)
	s.Add("feature.a.used", 5)
	s.Prepare()
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if s.Prepare(); s.Degraded() == "" {
		t.Error("not noticed")
	}
	b, ok := s.Seal()
	if !ok || !b.Spooled || s.Degraded() != "" || !s.spool.Has(b.Seq) {
		t.Errorf("Seal: %+v; degraded: %s", b, s.Degraded())
	}
	s.die()
	if got, _ := openSpool(t, root).adopt(t); got["feature.a.used"] != 5 {
		t.Errorf("found %v", got)
	}
}

// The first Add of a generation may be stopped between its two notes of when that
// was.
func TestOpenedIsNotInTheFile(t *testing.T) {
	for _, seal := range []bool{true, false} {
		root := t.TempDir()
		s := openSpool(t, root)
		s.Add("feature.a.used", 1)
		s.current.Load().file.at(atOpened).Store(0)
		if seal {
			s.Seal()
		}
		s.die()
		other := openSpool(t, root)
		if err := other.spool.Adopt(registered, func(_ string, b Sealed) error {
			if time.Since(time.UnixMilli(b.Opened)).Abs() > time.Hour || b.Counts[0].N != 1 {
				t.Errorf("%+v", b)
			}
			return nil
		}); err != nil || other.lost != 0 {
			t.Errorf("sealed %v: %v, %v", seal, err, other.said)
		}
	}
}

// What was locked must be what has the name: its owner may have made it anew.
func TestClaimOfARemovedDirectory(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	s.Add("feature.a.used", 1)
	old := filepath.Join(root, s.spool.dir.name)
	if err := os.Rename(old, filepath.Join(root, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	s.Seal()
	s.Prepare()
	other := openSpool(t, root)
	if got, _ := other.adopt(t); len(got) != 0 {
		t.Errorf("a living process was robbed of %v", got)
	}
}

// Many starts at once each have a directory of their own, at once.
func TestManySpoolsOpenAtOnce(t *testing.T) {
	root := t.TempDir()
	disk, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(root, newPrefix+dirPrefix+newWriter())
	if err := os.Mkdir(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	ago := time.Now().Add(-time.Hour)
	if err := os.Chtimes(stale, ago, ago); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				release, err := disk.Own(dirPrefix + newWriter())
				if err != nil {
					t.Error(err)
					return
				}
				release(true)
			}
		})
	}
	all.Wait()
	if left := files(t, root, newPrefix+"*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A spool that cannot be is an error that says what to do.
func TestOpenDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{file, filepath.Join(file, "below")} {
		if _, err := OpenDisk(root); err == nil || !strings.Contains(err.Error(), "want a directory") {
			t.Errorf("OpenDisk(%s): %v", root, err)
		}
	}
}

// Files of version 1, as they were written: they must be readable for ever. (Byte
// order as on every machine that we know of that runs this.)
func TestGoldenFiles(t *testing.T) {
	const writer = "00112233445566778899aabbccddeeff"
	s := NewSpool(nil, writer, nil)
	s.SetDatabase("ffeeddccbbaa99887766554433221100")
	b := Sealed{Seq: 7, Batch: Batch{Opened: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC).UnixMilli(), Counts: []Count{
		{"api.GET /novels/{id}.requests", 12}, {"user." + strings.Repeat("é", 100) + ".requests", Max}, {"feature.a.used", 1},
	}}}
	b.Payload = b.Encode()
	content := encode(s.header(b.Seq, 0), b)
	golden := filepath.Join("testdata", "v1"+fileSuffix)
	if *update {
		if err := os.WriteFile(golden, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, want) {
		t.Error("a file is written in another way than version 1 was: make it version 2")
	}
	unsealed := bytes.Clone(want)
	unsealed[atSealed] = 0
	unsealed[atInode] = 0
	for _, content := range [][]byte{want, unsealed} {
		got, h, err := read(bytes.NewReader(content), writer, fileName(7), 0)
		if err != nil || !bytes.Equal(got.Payload, b.Payload) || got.Seq != 7 || hex.EncodeToString(h.database[:]) != "ffeeddccbbaa99887766554433221100" {
			t.Errorf("read: %+v, %v", got, err)
		}
	}
	for dir, seq := range map[string]int64{newWriter(): 7, writer: 8} { // it would count under an id, or a number, that is not its own
		if got, _, err := read(bytes.NewReader(want), dir, fileName(seq), 0); err == nil || !strings.Contains(err.Error(), "another writer's, or has another number") {
			t.Errorf("read as %s/%s: %+v, %v", dir, fileName(seq), got, err)
		}
	}
}

// Whatever is in a file, reading it neither fails badly nor gives counts that no
// Add could have made.
func FuzzRead(f *testing.F) {
	const writer = "00112233445566778899aabbccddeeff"
	golden, err := os.ReadFile(filepath.Join("testdata", "v1"+fileSuffix))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden, false)
	f.Add(golden[headerSize:], true)
	f.Fuzz(func(t *testing.T, content []byte, records bool) {
		if records { // behind a header that is right, of a file that was not sealed
			head := bytes.Clone(golden[:headerSize])
			head[atSealed] = 0
			binary.NativeEndian.PutUint64(head[atUsed:], uint64(headerSize+len(content)))
			content = append(head, content...)
		}
		b, _, err := read(bytes.NewReader(content), writer, fileName(7), 0)
		if err != nil {
			return
		}
		again, err := Decode(b.Payload)
		if err != nil || len(again.Counts) != len(b.Counts) || len(b.Counts) == 0 {
			t.Errorf("%d counts, whose payload has %d: %v", len(b.Counts), len(again.Counts), err)
		}
		for _, c := range b.Counts {
			if c.N < 1 || c.N > Max || naming.Known(c.Name) != c.Name {
				t.Errorf("%+v", c)
			}
		}
	})
}

func BenchmarkAddSpooled(b *testing.B) { benchmarkAdd(b, openSpool(b, b.TempDir()).Set) }

// BenchmarkAddLatency is the time that single Adds take, in memory and in a file,
// while generations end and begin: for the note on what a busy disk costs, run it
// with -args -spool DIR beside something that writes there.
func BenchmarkAddLatency(b *testing.B) {
	root := *spoolDir
	if root == "" {
		root = b.TempDir()
	}
	for _, c := range []struct {
		name string
		set  *Set
	}{{"memory", New(100_000, func(string, int64) {}, nil)}, {"spool", openSpool(b, filepath.Join(root, "latency")).Set}} {
		b.Run(c.name, func(b *testing.B) {
			s := c.set
			names := make([]string, 5000)
			for i := range names {
				names[i] = fmt.Sprintf("user.%d.requests", i)
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				tick := time.NewTicker(100 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-stop:
						return
					case <-tick.C:
					}
					if sealed, ok := s.Seal(); ok {
						s.spool.Remove(sealed.Seq)
					}
					s.Prepare()
				}
			}()
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			for i := range took {
				start := time.Now()
				s.Add(names[i%len(names)], 1)
				took[i] = time.Since(start)
			}
			b.StopTimer()
			close(stop)
			<-stopped
			slices.Sort(took)
			b.ReportMetric(float64(took[b.N/2]), "p50-ns")
			b.ReportMetric(float64(took[min(b.N-1, b.N*999/1000)]), "p99.9-ns")
			b.ReportMetric(float64(took[b.N-1]), "max-ns")
		})
	}
}

// unreadable is a disk whose files cannot be read, as one that is failing.
type unreadable struct {
	Disk
	root string
}

func (d unreadable) Open(dir, file string) (io.ReadCloser, uint64, error) {
	f, inode, err := d.Disk.Open(dir, file)
	if err != nil {
		return nil, 0, err
	}
	f.Close()
	cause := &fs.PathError{Op: "read", Path: filepath.Join(d.root, dir, file), Err: syscall.EIO} // as *os.File says it
	return io.NopCloser(iotest.ErrReader(cause)), inode, nil
}

// What health says of a disk that fails names no path of the machine.
func TestAnUnreadableFileNamesNoPath(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	s.Add("feature.a.used", 1)
	s.Seal()
	s.die()
	disk, err := OpenDisk(root)
	if err != nil {
		t.Fatal(err)
	}
	other := NewSpool(unreadable{disk, root}, newWriter(), func(bool, string, ...any) {})
	_ = other.Adopt(registered, func(string, Sealed) error { return nil })
	if why := other.Stuck(); !strings.Contains(why, "input/output error") || strings.Contains(why, root) {
		t.Errorf("Stuck: %q", why)
	}
}
