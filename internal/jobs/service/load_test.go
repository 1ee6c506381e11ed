package service_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
	"stasis/internal/catalog/catalogtest"
	"stasis/internal/config"
	"stasis/internal/jobs/db"
	"stasis/internal/require"
)

const (
	manyJobs       = 200
	checkpointsOf  = 50
	allCheckpoints = manyJobs * checkpointsOf
)

// manyOf writes the state of jobs that have ended, with checkpoints that are good for lists.
func manyOf(b *testing.B, c *config.Config) {
	b.Helper()
	if err := os.MkdirAll(filepath.Dir(c.Jobs.State), 0o700); err != nil {
		b.Fatal(err)
	}
	d, _, err := db.Open(c.Jobs.State)
	if err != nil {
		b.Fatal(err)
	}
	var environment []string
	for i := range 25 {
		environment = append(environment, fmt.Sprintf("SOME_VARIABLE_%d=/usr/local/share/something/that/%d/is/as/long/as/they/are", i, i))
	}
	at := time.Unix(1_700_000_000, 0).UTC()
	for i := range manyJobs {
		name := fmt.Sprintf("job-%03d", i)
		rec := db.Job{
			ID: fmt.Sprintf("%016x", i+1), State: db.StateSuspended, Created: at.Add(time.Duration(i) * time.Second), Started: at, LastSeq: checkpointsOf,
			Parent: checkpointsOf,
			Spec: db.Spec{
				Name: name, Argv: []string{"/usr/bin/python3", "-u", "simulate.py", "--seed", "17"}, Env: environment, Dir: "/srv/work",
				Every: 5 * time.Minute, Keep: db.Keep{Last: checkpointsOf}, Restart: db.RestartOnFailure, Terminal: true,
			},
		}
		dir := filepath.Join(c.Checkpoint.Dir, "jobs", name)
		catalogtest.Many(b, dir, checkpointsOf)
		for n := range checkpointsOf {
			seq := uint64(n + 1) //nolint:gosec // small
			to := filepath.Join(dir, fmt.Sprintf("%06d", seq))
			if err := os.Rename(filepath.Join(dir, fmt.Sprintf("c-%05d", n)), to); err != nil {
				b.Fatal(err)
			}
			cp := db.Checkpoint{Job: name, Seq: seq, ID: fmt.Sprintf("%032x", n+1), Dir: to, Created: at, PauseUS: 5000, Bytes: 1 << 20, Memory: 4 << 20, RootPID: 4711}
			if err := d.PutCheckpoint(cp, rec); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
}

// manyServed is a daemon of its own process that knows 200 jobs with 10 000 checkpoints.
func manyServed(b *testing.B) (c *client.Client, pid int) {
	b.Helper()
	require.Root(b)
	dir := b.TempDir()
	settings := configOf(dir)
	manyOf(b, settings)
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	process := exec.Command(exe)
	process.Env = append(os.Environ(), roleVariable+"="+roleDaemon, dirVariable+"="+dir)
	if err := process.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = process.Process.Signal(syscall.SIGTERM)
		if err := process.Wait(); err != nil {
			b.Error(err)
		}
	})
	for c == nil {
		if c, err = client.Connect(b.Context(), client.Options{Socket: settings.Daemon.Socket}); err != nil {
			<-time.After(10 * time.Millisecond)
		}
	}
	b.Cleanup(c.Close)
	list, err := c.Checkpoints.List(b.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{}))
	if err != nil || list.Msg.GetTotal() != allCheckpoints {
		b.Fatalf("%d checkpoints, %v", list.Msg.GetTotal(), err)
	}
	return c, process.Process.Pid
}

// BenchmarkPs is what "stasis ps" and "stasis checkpoints" ask for, through the client and the socket of a daemon that knows 200 jobs with
// 10 000 checkpoints, from eight callers at once. What has to be seen is a thousand calls a second, in milliseconds each.
func BenchmarkPs(b *testing.B) {
	daemonClient, pid := manyServed(b)
	jobs := func(brief bool) func() error {
		return func() error {
			list, err := daemonClient.Jobs.List(b.Context(), connect.NewRequest(&v1.ListJobsRequest{PageSize: 1000, Brief: brief}))
			if err == nil && (list.Msg.GetTotal() != manyJobs || len(list.Msg.GetJobs()) != manyJobs || list.Msg.GetJobs()[0].GetCheckpoints() != checkpointsOf) {
				err = fmt.Errorf("%d jobs", list.Msg.GetTotal())
			}
			return err
		}
	}
	checkpoints := func() error {
		list, err := daemonClient.Checkpoints.List(b.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{}))
		if err == nil && (list.Msg.GetTotal() != allCheckpoints || len(list.Msg.GetCheckpoints()) != 100) {
			err = fmt.Errorf("%d checkpoints", list.Msg.GetTotal())
		}
		return err
	}
	b.Run("ps", func(b *testing.B) { ask(b, pid, jobs(true)) })
	b.Run("jobs-in-full", func(b *testing.B) { ask(b, pid, jobs(false)) })
	b.Run("checkpoints", func(b *testing.B) { ask(b, pid, checkpoints) })
}

// ask makes calls to a daemon, eight at once, and says what they cost.
func ask(b *testing.B, pid int, call func() error) {
	b.Helper()
	var mu sync.Mutex
	var took []time.Duration
	b.SetParallelism(max(1, 8/runtime.GOMAXPROCS(0)))
	spent, own := cpuTime(b, pid), cpuTime(b, os.Getpid())
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			at := time.Now()
			if err := call(); err != nil {
				b.Error(err)
				return
			}
			mu.Lock()
			took = append(took, time.Since(at))
			mu.Unlock()
		}
	})
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms/p99")
	b.ReportMetric(float64((cpuTime(b, pid)-spent).Microseconds())/1000/float64(b.N), "daemon-cpu-ms/call")
	b.ReportMetric(float64((cpuTime(b, os.Getpid())-own).Microseconds())/1000/float64(b.N), "client-cpu-ms/call")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// cpuTime is what a process has used so far, to the hundredth of a second.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] { // utime and stime of proc_pid_stat(5)
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
