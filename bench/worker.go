package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"stasis"
)

// workerVariable is the environment variable that makes this program a worker:
// it then does one job and ends. Stasis is measured in a process of its own, as
// its users run it, so that its memory and its start count.
const workerVariable = "STASIS_BENCH_JOB"

// job is what a worker does.
type job struct {
	Do string // dump, pre-dump, restore, codec or populate

	PID         int
	Dir         string
	Compression string       // dump, codec; "": the default
	After       stasis.After // dump
	TCP         bool         // dump: keep established connections
	Parent      string       // dump, pre-dump: folder of the checkpoint to build on
	Track       bool         // dump: keep track of what is written afterwards
	Lazy        bool         // restore
	Bytes       int64        // codec, populate: how much
	WatchMemory bool         // dump, restore: see how much memory of its own the worker uses
}

// outcome is what a worker reports.
type outcome struct {
	Error    string
	FillUS   int64   // restore: putting the memory in place
	Bytes    int64   // dump, restore: memory of the tree
	Stored   int64   // dump: size of the checkpoint
	Raw      int64   // dump: bytes of memory and state that were copied, in all rounds
	PauseUS  int64   // dump: as Stasis says
	Rounds   int     // dump: copies of the memory or of changes
	Rate     float64 // codec, populate: bytes a second
	PeakKiB  int64   // VmHWM
	OwnKiB   int64   // largest RssAnon + RssShmem that was seen, with WatchMemory
	ResumeUS int64   // restore: until the tree ran

	// Seen from outside; all of it, the start of the process included.
	begun time.Time
	took  time.Duration
}

// workLimit bounds a job; the longest take some ten seconds.
const workLimit = 5 * time.Minute

// work starts a worker and waits for it. A worker that has to end early gets the
// time to undo what it began.
func work(ctx context.Context, j job) (*outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, workLimit)
	defer cancel()
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), workerVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	begun := time.Now()
	out, err := cmd.Output()
	took := time.Since(begun)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", j.Do, err)
	}
	o := new(outcome)
	if err := json.Unmarshal(out, o); err != nil {
		return nil, fmt.Errorf("%s: the worker's answer %q: %w", j.Do, out, err)
	}
	o.begun, o.took = begun, took
	if o.Error != "" {
		return nil, fmt.Errorf("%s: %s", j.Do, o.Error)
	}
	return o, nil
}

// workerMain does the job and writes the outcome to standard output.
func workerMain(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	if err := os.Unsetenv(workerVariable); err != nil { // CRIU and the guard need not see it
		return err
	}
	stop := func() int64 { return 0 }
	if j.WatchMemory {
		stop = watchMemory()
	}
	var o outcome
	ctx, ignore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer ignore()
	err := j.run(ctx, &o)
	o.OwnKiB = stop()
	o.PeakKiB = ownStatus("VmHWM:")
	if err != nil {
		o.Error = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(&o)
}

func (j *job) run(ctx context.Context, o *outcome) error {
	switch j.Do {
	case "dump":
		return j.dump(ctx, o)
	case "pre-dump":
		return j.preDump(ctx, o)
	case "restore":
		return j.restore(ctx, o)
	case "codec":
		return j.codecSpeed(o)
	case "populate":
		return j.populate(o)
	}
	return fmt.Errorf("no job %q", j.Do)
}

func (j *job) dump(ctx context.Context, o *outcome) error {
	r, err := stasis.Dump(ctx, stasis.DumpOptions{
		PID: j.PID, Dir: j.Dir, Compression: j.Compression, After: j.After,
		CRIU: stasis.CRIUOptions{TCPEstablished: j.TCP}, Parent: j.Parent, Track: j.Track,
	})
	if err != nil {
		return err
	}
	o.note(r)
	return nil
}

func (j *job) preDump(ctx context.Context, o *outcome) error {
	r, err := stasis.PreDump(ctx, stasis.PreDumpOptions{PID: j.PID, Dir: j.Dir, Compression: j.Compression, Parent: j.Parent})
	if err != nil {
		return err
	}
	o.note(r)
	return nil
}

// note takes over the figures of a dump.
func (o *outcome) note(r *stasis.DumpResult) {
	f := r.Manifest.Figures
	o.Bytes, o.Stored, o.Raw, o.PauseUS, o.Rounds = f.BytesMemory, f.BytesStored, f.BytesRaw, f.PauseUS, len(f.Rounds)
}

// restore restores a tree. The time of the fill is from the step's beginning to
// its last report.
func (j *job) restore(ctx context.Context, o *outcome) error {
	var begun, ended time.Time
	r, err := stasis.Restore(ctx, stasis.RestoreOptions{
		Dir: j.Dir, Lazy: j.Lazy,
		Progress: func(p stasis.Progress) {
			if p.Step == stasis.StepFill {
				ended = time.Now()
				if begun.IsZero() {
					begun = ended
				}
			}
		},
	})
	if err != nil {
		return err
	}
	o.Bytes, o.FillUS, o.ResumeUS = r.BytesMemory, ended.Sub(begun).Microseconds(), r.ToResume.Microseconds()
	return nil
}

// watchMemory looks all the time how much memory this process uses of its own,
// without the files that it maps: those are the page cache's. It returns a
// function that ends the watch and gives the most that was seen, in KiB.
func watchMemory() (stop func() int64) {
	end, result := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		for {
			most = max(most, ownStatus("RssAnon:")+ownStatus("RssShmem:"))
			select {
			case <-end:
				result <- most
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(end); return <-result }
}

// ownStatus reads a number of this process from /proc, or 0.
func ownStatus(key string) int64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == key {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err == nil {
				return kib
			}
		}
	}
	return 0
}
