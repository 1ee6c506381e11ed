package faults

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/keeper"
	"stasis/internal/proc"
	"stasis/internal/track"
)

// TestTwoChainedDumpsAtOnce: the second one is refused, and spoils nothing that
// the first one or the next one knows.
func TestTwoChainedDumpsAtOnce(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	second := c.next()
	w := start(t, plan{PID: c.p.PID(), Dir: second.dir, Parent: first.dir, Track: true, After: stasis.AfterRun, Wait: []string{pointCopying}})
	w.reach(pointCopying)
	_, err := c.try(first)
	c.refuses(err, stasis.ErrBusy, "is being dumped already")
	_, err = stasis.PreDump(context(), stasis.PreDumpOptions{PID: c.p.PID(), Dir: filepath.Join(c.room, "pre"), Parent: first.dir})
	c.refuses(err, stasis.ErrBusy, "is being dumped already")
	if _, err := chain.Remove([]string{first.dir}, chain.Options{}); !errors.Is(err, chain.ErrBusy) {
		t.Errorf("the parent is removed while it is dumped on: %v", err)
	}
	second.rewind = c.p.Snapshot()
	w.goOn()
	if o := w.end(); o.Err != "" {
		t.Fatal(o.Err)
	}
	third := c.on(second)
	c.relied(third)
	c.right(third)
	c.right(second)
}

// TestExecBetweenDumps: the process is the same, its memory another.
func TestExecBetweenDumps(t *testing.T) {
	c := newChainOf(t, "mem:mib=16,rate=20,watch=no", "tcp")
	first := c.on(nil)
	c.p.Exec(t)
	second := c.on(first)
	if notes := strings.Join(second.result.Notes, "; "); !strings.Contains(notes, "has executed another program") {
		t.Errorf("the notes do not say that it has executed another program: %s", notes)
	}
	third := c.on(second)
	c.relied(third)
	c.right(third)
	c.right(second)
	c.right(first)
}

// TestPidReuse: the keeper of the process that had the pid before is still
// there, and says nothing of the new one.
func TestPidReuse(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	second := c.on(first)
	old := c.keeper()
	c.signal(old, unix.SIGSTOP) // so that it does not notice the end of its tree
	t.Cleanup(func() { _ = unix.Kill(old, unix.SIGKILL) })
	c.right(first)
	third := c.on(second)
	c.compared(third, "no tracker was kept")
	c.right(third)
}

// TestLyingKeeper: whatever listens in the place of a keeper, the dump is right.
func TestLyingKeeper(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	var tested []*link
	for _, test := range []struct {
		name   string
		answer func(state string) []byte
		fds    int
		notes  string
	}{
		{"garbage", func(string) []byte { return []byte("\xff\xff\xff\xff\xff\xff\xff\xffgarbage") }, 0, "is of no use"},
		{"another root", func(state string) []byte { return message(strings.Replace(state, `"root":`, `"root":1`, 1), 1) }, 1, "is of no use"},
		{"pipes for trackers", func(state string) []byte { return message(state, 1) }, 1, "has executed another program"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := c.within(t)
			_ = stasis.StopTracker(c.p.PID())
			root := c.tree[0]
			state := fmt.Sprintf(`{"root":%d,"start":%d,"tracker":"userfaultfd","armed":%q,"processes":[{"pid":%d,"start":%d}]}`,
				root.pid, root.start, first.result.Manifest.ID, root.pid, root.start)
			lie(t, fmt.Sprintf("%s/%d-%d", keeper.Folder, root.pid, root.start), test.answer(state), test.fds)
			l := c.next()
			var err error
			l.result, err = stasis.Dump(context(), stasis.DumpOptions{PID: root.pid, Dir: l.dir, Parent: first.dir, After: stasis.AfterRun, CRIU: criuOptions})
			if err != nil {
				t.Fatal(err)
			}
			if notes := strings.Join(l.result.Notes, "; "); !strings.Contains(notes, test.notes) {
				t.Errorf("the notes do not say %q: %s", test.notes, notes)
			}
			tested = append(tested, l)
		})
	}
	for _, l := range append(tested, c.on(first)) {
		c.right(l)
	}
}

// message is one as keepers speak.
func message(text string, fds byte) []byte {
	n := len(text)
	return append([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), fds, 0, 0, 0}, text...)
}

// lie listens in the place of a keeper, and gives everybody the same answer.
func lie(t *testing.T, path string, answer []byte, fds int) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			var head [8]byte
			if _, err := io.ReadFull(conn, head[:]); err == nil {
				_, _ = io.CopyN(io.Discard, conn, int64(head[0])) // orders are short
			}
			_, _ = conn.Write(answer)
			if fds > 0 {
				read, write, _ := os.Pipe()
				_, _, _ = conn.(*net.UnixConn).WriteMsgUnix([]byte{0}, unix.UnixRights(int(read.Fd())), nil)
				read.Close()
				write.Close()
			}
			conn.Close()
		}
	}()
}

// TestAnotherTracker follows the memory of the program: the kernel says of its
// pages whether they were written, but since when only that one knows.
func TestAnotherTracker(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	second := c.on(first)
	if err := stasis.StopTracker(c.p.PID()); err != nil {
		t.Fatal(err)
	}
	other, err := track.NewWriteProtect(c.p.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	protect := func() {
		t.Helper()
		maps, err := proc.Smaps(c.p.PID())
		if err != nil {
			t.Fatal(err)
		}
		maps = eligible(maps)
		if err := other.Round(maps, func(proc.Run) {}); err != nil {
			t.Fatal(err)
		}
	}
	protect()
	pre := c.preDump(second)
	protect()
	onPre := c.on(pre)
	protect()
	third := c.on(second)
	for _, l := range []*link{pre, onPre, third} {
		if notes := strings.Join(l.result.Notes, "; "); !strings.Contains(notes, "userfaultfd of another program") {
			t.Errorf("the notes do not say that another program has a userfaultfd there: %s", notes)
		}
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	fourth := c.on(third)
	fifth := c.on(fourth)
	c.relied(fifth)
	for _, l := range []*link{onPre, third, fourth, fifth} {
		c.right(l)
	}
}

func eligible(maps []proc.Mapping) (list []proc.Mapping) {
	for _, m := range maps {
		if m.Private() && m.Anonymous() && !m.Has("gd") {
			list = append(list, m)
		}
	}
	return list
}

// TestDiskFullInAChain: the parent stays good, and the next dump on it is right.
func TestDiskFullInAChain(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	for _, point := range []string{pointCopying, "publish"} {
		t.Run(point, func(t *testing.T) {
			c := c.within(t)
			c.writes(300)
			mount := c.onTmpfs("size=128m")
			w := start(t, plan{PID: c.p.PID(), Dir: c.dir, Parent: first.dir, Track: true, After: stasis.AfterRun, Wait: []string{point}})
			w.reach(point)
			fillUp(t, mount)
			w.goOn()
			c.wantFailure(w, "", c.dir, "the disk is full: free some space")
			if _, err := os.Stat(c.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the folder of the checkpoint is left (%v)", err)
			}
			first = c.on(first)
		})
	}
	c.right(first)
}

// TestPreDumpIsNotRestored, and says why; nor is one that was left half written
// a parent.
func TestPreDumpIsNotRestored(t *testing.T) {
	c := newChain(t)
	pre := c.preDump(nil)
	_, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: pre.dir})
	c.refuses(err, stasis.ErrInput, "is a pre-dump")
	again := c.preDump(pre)
	top := c.on(again)
	c.relied(top)
	if created := pre.result.Manifest.Created; created.Year() < 2000 {
		t.Errorf("the pre-dump is of %v", created)
	}
	c.right(top)
}
