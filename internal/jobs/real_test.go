package jobs

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"stasis/internal/jobs/db"
	"stasis/internal/proc"
	"stasis/internal/require"
)

// roleVariable makes this test binary a job.
const roleVariable = "STASIS_TEST_JOB"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run()) //nolint:forbidigo // this is the main of the tests
	case "count":
		count()
	}
}

// count is a computation whose every step needs all that was before: each line has a number and the hash of all numbers so far.
func count() {
	var sum uint64
	for n := uint64(1); ; n++ {
		sum = step(sum, n)
		fmt.Fprintf(os.Stdout, "%d %016x\n", n, sum)
		if path := os.Getenv("STASIS_TEST_FILE"); path != "" {
			if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", n), 0o600); err != nil {
				panic(err)
			}
		}
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // its work
	}
}

func step(sum, n uint64) uint64 {
	return xxh3.Hash(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, sum), n))
}

func counting() db.Spec {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return db.Spec{Argv: []string{exe}, Env: []string{roleVariable + "=count", "GOMAXPROCS=1"}, Dir: "/", Restart: db.RestartOnFailure, Terminal: true}
}

// openReal opens a manager on the real library. Its jobs end with the test.
func openReal(t *testing.T, dir string, change func(*Options)) *Manager {
	t.Helper()
	o := Options{Database: filepath.Join(dir, "state.db"), Dir: filepath.Join(dir, "shims"), Checkpoints: filepath.Join(dir, "checkpoints"), Parallel: 2}
	if change != nil {
		change(&o)
	}
	m, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endReal(t, m, o) })
	return m
}

// endReal removes all jobs, of whichever manager is the last.
func endReal(t *testing.T, m *Manager, o Options) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_ = m.Close(ctx)
	o.DumpOnStop = false
	last, err := Open(ctx, o)
	if err != nil {
		t.Error(err)
		return
	}
	for _, info := range last.List(0) {
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(last.shimDir(info.Spec.Name), "shim.log"))
			t.Logf("%s is %s: %s %s", info.Spec.Name, info.State, info.Message, text)
		}
		if _, err := last.Remove(ctx, info.Spec.Name, true, true); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		for e := range last.Events(ctx, 0, false) {
			t.Logf("%s %s %s: %s", e.At.Format("05.000"), e.Job, e.Kind, e.Text)
		}
	}
	if err := last.Close(ctx); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(o.Dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// until waits for something.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// counted reads a job's log: every run has to go on from a state that an earlier one has been in. It gives the last number, and where
// runs went back to.
func counted(t *testing.T, m *Manager, name string) (last uint64, back [][2]uint64) {
	t.Helper()
	var text strings.Builder
	if err := m.Logs(t.Context(), name, -1, false, &text); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(strings.NewReader(text.String()))
	sums := map[uint64]uint64{}
	for lines.Scan() {
		var n, sum uint64
		if _, err := fmt.Sscanf(lines.Text(), "%d %x", &n, &sum); err != nil {
			continue // half a line, where a run was killed
		}
		if want := step(sums[n-1], n); sum != want || n > 1 && sums[n-1] == 0 {
			t.Fatalf("after %d came %q, want %016x", last, lines.Text(), want)
		}
		if n != last+1 {
			if n > last {
				t.Fatalf("after %d came %d", last, n)
			}
			back = append(back, [2]uint64{last, n})
		}
		sums[n], last = sum, n
	}
	return last, back
}

func TestKilledJobComesBackFromItsLastCheckpoint(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	m := openReal(t, t.TempDir(), nil)
	spec := counting()
	spec.Name, spec.Every, spec.Keep = "sum", 500*time.Millisecond, db.Keep{Last: 3}
	info, err := m.Run(t.Context(), spec, 0)
	if err != nil {
		t.Fatal(err)
	}
	for crash := range 2 {
		before := get(t, m, "sum").LastSeq
		until(t, "three checkpoints", func() bool { i := get(t, m, "sum"); return i.Last != nil && i.Last.Seq >= before+3 && !i.Dumping })
		reached, _ := counted(t, m, "sum")
		killed := time.Now()
		if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the job is back", func() bool { i := get(t, m, "sum"); return i.Restores == crash+1 && i.State == db.StateRunning })
		until(t, "the job goes on", func() bool { _, back := counted(t, m, "sum"); return len(back) == crash+1 })
		t.Logf("back and printing %v after SIGKILL", time.Since(killed).Round(time.Millisecond))
		until(t, "the job gets further", func() bool { n, _ := counted(t, m, "sum"); return n > reached+20 })
		_, back := counted(t, m, "sum")
		// At most the half second since the last checkpoint is lost, some more on a busy machine, and never all of it.
		if lost := back[crash][0] - back[crash][1]; back[crash][1] < 50 || lost > 1000 {
			t.Fatalf("it went back from %d to %d", back[crash][0], back[crash][1])
		}
		if now := get(t, m, "sum"); now.PID != info.PID {
			t.Fatalf("its pid was %d and is %d", info.PID, now.PID)
		}
	}
	list, err := m.Checkpoints("sum")
	if err != nil || len(list) > 4 || list[len(list)-1].Parent == "" {
		t.Fatalf("%d checkpoints are kept: %+v, %v", len(list), list, err)
	}
}

// A daemon that is killed leaves its jobs alone; the next one looks after them again, with the history that they have. One that crashed meanwhile
// is brought back.
func TestJobsOutliveTheManager(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	dir := t.TempDir()
	m := openReal(t, dir, nil)
	for _, name := range []string{"runs", "crashes", "orphan"} {
		spec := counting()
		spec.Name, spec.Terminal = name, name != "orphan"
		if _, err := m.Run(t.Context(), spec, 0); err != nil {
			t.Fatal(err)
		}
		until(t, "it counts", func() bool { n, _ := counted(t, m, name); return n > 20 })
		if _, err := m.Dump(t.Context(), name, DumpRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	runs, crashes, orphan := get(t, m, "runs"), get(t, m, "crashes"), get(t, m, "orphan")
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{crashes.PID, parentOf(t, orphan.PID)} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "it has crashed", func() bool { task, err := proc.ReadTask(crashes.PID); return err != nil || task.Zombie() })
	m = openReal(t, dir, nil)
	if now := get(t, m, "runs"); now.State != db.StateRunning || now.PID != runs.PID || now.Restores != 0 || now.Checkpoints != 1 {
		t.Fatalf("the one that runs: %+v", now)
	}
	until(t, "the crashed one is back", func() bool { i := get(t, m, "crashes"); return i.State == db.StateRunning && i.Restores == 1 })
	// What was behind the pipe is gone with the shim: the job ends at its next write, and comes back with a new one.
	until(t, "the one without a shim is back", func() bool { i := get(t, m, "orphan"); return i.State == db.StateRunning && i.Restores == 1 })
	for _, name := range []string{"runs", "crashes", "orphan"} {
		reached, _ := counted(t, m, name)
		until(t, name+" goes on", func() bool { n, _ := counted(t, m, name); return n > reached+10 })
	}
	if _, err := m.Dump(t.Context(), "runs", DumpRequest{}); err != nil {
		t.Fatal(err)
	}
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	task, err := proc.ReadTask(pid)
	if err != nil {
		t.Fatal(err)
	}
	return task.PPID
}

// A damaged newest checkpoint costs the time since the one before it, not the job.
func TestDamagedNewestCheckpoint(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	m := openReal(t, t.TempDir(), nil)
	spec := counting()
	spec.Name, spec.Settings.MaxChain = "sum", 1
	info, err := m.Run(t.Context(), spec, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		reached, _ := counted(t, m, "sum")
		until(t, "it counts", func() bool { n, _ := counted(t, m, "sum"); return n > reached+20 })
		if _, err := m.Dump(t.Context(), "sum", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	list, _ := m.Checkpoints("sum")
	err = filepath.WalkDir(list[1].Dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasPrefix(filepath.Base(path), "img-") {
			return err
		}
		shard, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := 100; i < len(shard)/2; i += 512 {
			shard[i] ^= 0xff
		}
		return os.WriteFile(path, shard, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the job is back", func() bool { i := get(t, m, "sum"); return i.State == db.StateRunning && i.Restores == 1 })
	if now := get(t, m, "sum"); now.Parent != 1 || now.Last.Seq != 1 {
		t.Fatalf("it came back from %d: %+v", now.Parent, now)
	}
	if said := events(t, m, EventRestoreFailed); len(said) != 1 || !strings.Contains(said[0].Text, "trying the older checkpoint 1") {
		t.Fatalf("said: %+v", said)
	}
	reached, _ := counted(t, m, "sum")
	until(t, "the job goes on", func() bool { n, _ := counted(t, m, "sum"); return n > reached })
}

// A process that somebody else has started is taken up, checkpointed, and comes back with a log.
func TestManage(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	m := openReal(t, t.TempDir(), nil)
	spec := counting()
	cmd := exec.Command(spec.Argv[0])
	cmd.Env, cmd.Dir = spec.Env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	first := bufio.NewScanner(out)
	for range 20 {
		first.Scan()
	}
	go func() {
		for first.Scan() {
		}
	}()
	info, err := m.Manage(t.Context(), cmd.Process.Pid, db.Spec{Name: "taken", Restart: db.RestartOnFailure}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !info.Managed || info.PID != cmd.Process.Pid || info.Spec.Argv[0] != spec.Argv[0] {
		t.Fatalf("%+v", info)
	}
	if _, err := m.Manage(t.Context(), cmd.Process.Pid, db.Spec{Name: "again"}, 0); err == nil {
		t.Fatal("it was taken up twice")
	}
	if _, err := m.Attach(t.Context(), "taken", 0, 0); err == nil {
		t.Fatal("attached to a process that has no terminal here")
	}
	if _, err := m.Dump(t.Context(), "taken", DumpRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	until(t, "the job is back", func() bool {
		i := get(t, m, "taken")
		return i.State == db.StateRunning && i.Restores == 1 && !i.Managed
	})
	var log strings.Builder
	until(t, "it has a log", func() bool {
		log.Reset()
		return m.Logs(t.Context(), "taken", -1, false, &log) == nil && strings.Count(log.String(), "\n") > 5
	})
	if _, err := m.Dump(t.Context(), "taken", DumpRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Kill(t.Context(), "taken", syscall.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
}
