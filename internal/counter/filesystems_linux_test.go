package counter

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// megabytes are how large a file system of a kind is, at least nearly.
var kinds = map[string]struct {
	megabytes string
	trusted   bool
}{"ext4": {"32", true}, "xfs": {"320", true}, "tmpfs": {"32", true}, "btrfs": {"128", false}}

// eachFileSystem runs f on every kind of file system, and on an overlay, as the root of
// a container is, over it. again is what a restart of the container, or of the host,
// does to it.
func eachFileSystem(t *testing.T, f func(t *testing.T, root string, again func(), trusted bool)) {
	for kind, k := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f(t, filepath.Join(mounted(t, kind, k.megabytes), "spool"), func() {}, k.trusted)
		})
		t.Run("overlay on "+kind, func(t *testing.T) {
			t.Parallel()
			dir := mounted(t, kind, k.megabytes)
			root := overlaid(t, dir)
			f(t, filepath.Join(root, "spool"), func() {
				run(t, "umount", root)
				layers := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
				run(t, "mount", "-t", "overlay", "-o", layers, "overlay", root)
			}, k.trusted)
		})
	}
}

const childSpool = "USAGEKIT_TEST_SPOOL" // of the process that TestMain is then

// TestCounting is no test: it is the process that the others start, and kill.
func TestCounting(t *testing.T) {
	root := os.Getenv(childSpool)
	if root == "" {
		t.Skip("started by other tests")
	}
	s := openSpool(t, root)
	said := s.Degraded()
	fmt.Printf("degraded %q\n", said)
	end := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(end) }()
	got, added := map[string]int64{}, int64(0)
	for seq := 0; ; seq++ {
		for i := range 50 {
			s.Add(fmt.Sprintf("feature.f%d.used", i+seq%7*50), 1)
			added++
			if os.Getenv(childSpool+"_ACKS") != "" {
				fmt.Println("added", added)
			}
		}
		select {
		case <-end:
			if b, ok := s.Close(); ok {
				sum(got, b)
			}
			total := int64(0)
			for _, n := range got {
				total += n
			}
			if total != added {
				t.Errorf("%d of %d adds are in the batches", total, added)
			}
			s.spool.Release()
			fmt.Println("ended", added)
			return
		default:
		}
		if os.Getenv(childSpool+"_ACKS") == "" {
			if b, ok := s.Seal(); ok {
				sum(got, b)
				s.spool.Remove(b.Seq)
			}
			s.Prepare()
			if why := s.Degraded(); why != said {
				said = why
				fmt.Printf("degraded %q\n", said)
			}
		}
	}
}

// child is a process that counts.
type child struct {
	*exec.Cmd
	end   io.Closer
	lines *bufio.Scanner
}

func counting(t *testing.T, root string, env ...string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0], "-test.run=^TestCounting$", "-test.v")}
	c.Env = append(append(os.Environ(), childSpool+"="+root), env...)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.end, c.lines = in, bufio.NewScanner(out)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c
}

// until reads what the process says until that is so.
func (c *child) until(t *testing.T, what string, so func(line string) bool) string {
	t.Helper()
	for c.lines.Scan() {
		if line := c.lines.Text(); so(line) {
			return line
		}
	}
	t.Fatalf("the process has ended, without %s", what)
	return ""
}

// Full, and with its files cut, a file system costs no count while the process lives,
// and never the process: where it cannot be trusted, counts are in memory.
func TestFileSystemsFullAndCut(t *testing.T) {
	if dbtest.Race() {
		t.Skip("the race detector's own code does not survive the fault")
	}
	eachFileSystem(t, func(t *testing.T, root string, _ func(), trusted bool) {
		c := counting(t, root)
		why := c.until(t, "a word", func(line string) bool { return strings.HasPrefix(line, "degraded ") })
		if (why == `degraded ""`) != trusted {
			t.Errorf("at the start: %s", why)
		}
		ballast := filepath.Join(filepath.Dir(root), "ballast")
		for i := range 3 {
			for range 20 { // of what is freed, too
				fill(t, ballast+strconv.Itoa(i))
				time.Sleep(2 * time.Millisecond)
			}
			for _, path := range files(t, root, "*/*"+fileSuffix) {
				_ = os.Truncate(path, 0) // if it is there still
			}
			if err := os.Remove(ballast + strconv.Itoa(i)); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				for _, path := range files(t, root, "*/*"+fileSuffix) {
					_ = os.Truncate(path, 64)
				}
				time.Sleep(time.Millisecond)
			}
		}
		c.end.Close()
		degraded := 0
		c.until(t, "its end", func(line string) bool {
			if strings.HasPrefix(line, "degraded ") {
				degraded++
			}
			return strings.HasPrefix(line, "ended ")
		})
		for c.lines.Scan() {
		}
		if trusted && degraded == 0 {
			t.Error("the faults were not noticed")
		}
		if err := c.Wait(); err != nil {
			t.Errorf("the process: %v", err)
		}
	})
}

// fill writes until there is no space left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 64<<10); len(block) >= 512; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
}

// What a killed process counted is there when the container starts again.
func TestFileSystemsAfterAKill(t *testing.T) {
	eachFileSystem(t, func(t *testing.T, root string, again func(), trusted bool) {
		if !trusted {
			t.Skip("counts are in memory there")
		}
		for i := range 3 {
			c := counting(t, root, childSpool+"_ACKS=yes")
			last := int64(0)
			for last < int64(1000+777*i) {
				line := c.until(t, "counts", func(line string) bool { return strings.HasPrefix(line, "added ") })
				last, _ = strconv.ParseInt(strings.TrimPrefix(line, "added "), 10, 64)
			}
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for c.lines.Scan() {
				if n, ok := strings.CutPrefix(c.lines.Text(), "added "); ok {
					last, _ = strconv.ParseInt(n, 10, 64)
				}
			}
			_ = c.Wait()
			again()
			s := openSpool(t, root)
			counts, _ := s.adopt(t)
			total := int64(0)
			for _, n := range counts {
				total += n
			}
			if total < last || total > last+1 {
				t.Errorf("%d were said to be counted, %d are there: %q", last, total, s.said)
			}
			s.Close()
			s.spool.Release()
			s.die()
		}
	})
}
