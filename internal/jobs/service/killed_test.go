package service_test

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/client"
	"stasis/internal/require"
)

// patience bounds every wait; nothing here takes a hundredth of it on a machine that has time.
const patience = time.Minute

// scene is a job under a daemon that is killed again and again.
type scene struct {
	*testing.T
	dir      string
	daemon   *exec.Cmd
	log      bytes.Buffer // of the daemons
	c        *client.Client
	expected *state   // what the job does
	sums     []uint64 // by number
	read     int      // bytes of the job's log, with its last number, and how often it went back, so far
	last     uint64
	back     int
}

const jobName = "worker"

// begin starts a daemon and a job.
func begin(t *testing.T) *scene {
	t.Helper()
	require.Root(t)
	require.CRIU(t)
	s := &scene{T: t, dir: t.TempDir(), expected: newState(), sums: []uint64{0}}
	s.start()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec := &v1.JobSpec{
		Name: jobName, Command: []string{exe}, Environment: []string{roleVariable + "=" + roleWork, "GOMAXPROCS=1", "PATH=/usr/bin:/bin"},
		Restart: &v1.Restart{Policy: v1.RestartPolicy_RESTART_POLICY_ON_FAILURE},
		// A schedule, so that writes are tracked between checkpoints; it is never due here.
		Schedule: &v1.Schedule{When: &v1.Schedule_Cron{Cron: "0 0 1 1 *"}},
	}
	if _, err := s.c.Jobs.Run(s.within(), connect.NewRequest(&v1.RunRequest{Spec: spec})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	return s
}

func (s *scene) within() context.Context {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	s.Cleanup(cancel)
	return ctx
}

// start starts the daemon and waits until it answers.
func (s *scene) start() {
	s.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.Fatal(err)
	}
	s.daemon = exec.Command(exe)
	s.daemon.Env = append(os.Environ(), roleVariable+"="+roleDaemon, dirVariable+"="+s.dir)
	s.daemon.Stderr = &s.log
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	s.daemon.WaitDelay = time.Second // what it has started has its standard error
	if err := s.daemon.Start(); err != nil {
		s.Fatal(err)
	}
	s.until("the daemon answers", func() bool {
		s.c, err = client.Connect(s.Context(), client.Options{Socket: filepath.Join(s.dir, "s.sock")})
		return err == nil
	})
}

// end removes the job and stops the last daemon.
func (s *scene) end() {
	if s.Failed() {
		s.Logf("the daemons' log:\n%s", s.log.String())
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = os.Remove(filepath.Join(s.dir, killFile))
	remove := &v1.RemoveJobRequest{Job: jobName, Force: true, Checkpoints: true}
	if _, err := s.c.Jobs.Remove(ctx, connect.NewRequest(remove)); err != nil {
		s.Errorf("remove the job: %v", err)
	}
	s.c.Close()
	if err := s.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		s.Error(err)
	}
	_ = s.daemon.Wait()
}

func (s *scene) until(what string, is func() bool) {
	s.Helper()
	for deadline := time.Now().Add(patience); !is(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (s *scene) job() *v1.Job {
	s.Helper()
	response, err := s.c.Jobs.Get(s.within(), connect.NewRequest(&v1.GetJobRequest{Job: jobName}))
	if err != nil {
		s.Fatal(err)
	}
	return response.Msg.GetJob()
}

// stepPrinted is a line of the job; one that was killed while it printed leaves a part of one.
var stepPrinted = regexp.MustCompile(`<([0-9]+) ([0-9a-f]{16})>`)

// counted reads all that the job has printed, each line of which has to be what its memory says; it gives the last number, and how often
// the job went back to an earlier one.
func (s *scene) counted() (last uint64, back int) {
	s.Helper()
	stream, err := s.c.Jobs.Logs(s.within(), connect.NewRequest(&v1.LogsRequest{Job: jobName}))
	if err != nil {
		s.Fatal(err)
	}
	defer stream.Close()
	var text bytes.Buffer
	for stream.Receive() {
		text.Write(stream.Msg().GetData())
	}
	if stream.Err() != nil {
		s.Fatal(stream.Err())
	}
	whole := text.String()[s.read : strings.LastIndexByte(text.String(), '\n')+1]
	s.read += len(whole)
	for _, match := range stepPrinted.FindAllStringSubmatch(whole, -1) {
		n, err := strconv.ParseUint(match[1], 10, 64)
		if err != nil {
			s.Fatal(err)
		}
		sum, err := strconv.ParseUint(match[2], 16, 64)
		if err != nil {
			s.Fatal(err)
		}
		for uint64(len(s.sums)) <= n && n < 1<<20 {
			_, next := s.expected.step()
			s.sums = append(s.sums, next)
		}
		if n >= uint64(len(s.sums)) || s.sums[n] != sum {
			s.Fatalf("after %d came %s, which its memory does not say", s.last, match[0])
		}
		if n > s.last+1 {
			s.Fatalf("after %d came %d", s.last, n)
		}
		if n <= s.last {
			s.back++
		}
		s.last = n
	}
	return s.last, s.back
}

// goesOn waits until the job has got further.
func (s *scene) goesOn() {
	s.Helper()
	before, _ := s.counted()
	s.until("the job goes on", func() bool { n, _ := s.counted(); return n > before+writtenPages })
}

// dump makes a checkpoint, and gives its message where that succeeds.
func (s *scene) dump(after v1.After) (*v1.Checkpoint, error) {
	s.Helper()
	stream, err := s.c.Jobs.Dump(s.within(), connect.NewRequest(&v1.DumpJobRequest{Job: jobName, After: after}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var made *v1.Checkpoint
	for stream.Receive() {
		made = cmp.Or(stream.Msg().GetResult().GetCheckpoint(), made)
	}
	return made, stream.Err()
}

// checkpoints lists those that there are, the newest first. All of them are whole.
func (s *scene) checkpoints() []*v1.Checkpoint {
	s.Helper()
	list, err := s.c.Checkpoints.List(s.within(), connect.NewRequest(&v1.ListCheckpointsRequest{}))
	if err != nil {
		s.Fatal(err)
	}
	for _, cp := range list.Msg.GetCheckpoints() {
		stream, err := s.c.Checkpoints.Verify(s.within(), connect.NewRequest(&v1.VerifyRequest{Checkpoint: cp.GetDir()}))
		if err != nil {
			s.Fatal(err)
		}
		for stream.Receive() {
		}
		if stream.Err() != nil {
			s.Errorf("checkpoint %s is listed: %v", cp.GetName(), stream.Err())
		}
		_ = stream.Close()
	}
	return list.Msg.GetCheckpoints()
}

// killed dumps the job with a daemon that is killed at a step, and starts another.
func (s *scene) killed(at stasis.Step, after v1.After) {
	s.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, killFile), []byte(at), 0o600); err != nil {
		s.Fatal(err)
	}
	if _, err := s.dump(after); err == nil {
		s.Fatal("the dump succeeded: it has no such step")
	}
	s.c.Close()
	_ = s.daemon.Wait()
	if status, ok := s.daemon.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		s.Fatalf("the daemon ended by itself: %v", s.daemon.ProcessState)
	}
	if err := os.Remove(filepath.Join(s.dir, killFile)); err != nil {
		s.Fatal(err)
	}
	s.start()
}

// honest makes sure that a tracker of the job either knows since which checkpoint it tracks, or that it knows nothing.
func (s *scene) honest(pid int, newest string) {
	s.Helper()
	list, err := stasis.Trackers()
	if err != nil {
		s.Fatal(err)
	}
	for _, tracker := range list {
		if tracker.PID == pid && tracker.Armed != "" && tracker.Armed != newest {
			s.Errorf("the tracker is armed since %s, and the newest checkpoint is %s", tracker.Armed, newest)
		}
	}
}

// The daemon is killed at each step of a job's dump. The job runs on, or where the dump was to end it and had done so, is brought back; no half
// checkpoint is listed; what is tracked is known or given up; and the next checkpoint is as good as any.
func TestDaemonKilledAtEachStep(t *testing.T) {
	running := []stasis.Step{
		stasis.StepPrepare, stasis.StepArm, stasis.StepCopy, midCopy, stasis.StepFreeze, stasis.StepState, stasis.StepWrite, stasis.StepPublish, returned,
	}
	ending := []stasis.Step{stasis.StepArm, stasis.StepFreeze, stasis.StepState, stasis.StepWrite, stasis.StepPublish, stasis.StepEnd, returned}
	for _, c := range []struct {
		name   string
		after  v1.After
		steps  []stasis.Step
		exists []stasis.Step // the checkpoint does, when the daemon is killed there
		ended  []stasis.Step // and the job has been ended
	}{
		{name: "runs-on", after: v1.After_AFTER_RUN, steps: running, exists: []stasis.Step{returned}},
		{name: "ends", after: v1.After_AFTER_KILL, steps: ending, exists: []stasis.Step{stasis.StepEnd, returned}, ended: []stasis.Step{returned}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := begin(t)
			for _, step := range c.steps {
				t.Logf("killed at %s", step)
				s.goesOn()
				base, err := s.dump(v1.After_AFTER_RUN)
				if err != nil {
					t.Fatal(err)
				}
				s.goesOn()
				before := s.job()
				_, back := s.counted()
				s.killed(step, c.after)

				ended := slices.Contains(c.ended, step)
				s.until("the job runs", func() bool { return s.job().GetState() == v1.JobState_JOB_STATE_RUNNING })
				now := s.job()
				if now.GetPid() != before.GetPid() || ended != (now.GetRestores() == before.GetRestores()+1) {
					t.Errorf("at %s: it was %v and is %v", step, before, now)
				}
				s.goesOn()
				if _, again := s.counted(); again != back { // a job that was ended goes on exactly where it was
					t.Errorf("at %s: it went back", step)
				}
				list := s.checkpoints()
				if exists := slices.Contains(c.exists, step); exists != (list[0].GetId() != base.GetId()) || now.GetCheckpoints() != before.GetCheckpoints()+map[bool]int32{true: 1}[exists] {
					t.Errorf("at %s: the newest checkpoint is %s, and was %s; the job has %d, and had %d", step, list[0].GetName(), base.GetName(), now.GetCheckpoints(), before.GetCheckpoints())
				}
				s.honest(int(now.GetPid()), list[0].GetId())

				// What comes next builds on what is there, and the job comes back from it.
				next, err := s.dump(v1.After_AFTER_RUN)
				if err != nil {
					t.Fatalf("at %s: the next dump: %v", step, err)
				}
				if next.GetParent() != list[0].GetId() {
					t.Errorf("at %s: the next checkpoint builds on %s, and the newest was %s", step, next.GetParent(), list[0].GetId())
				}
				restores := s.job().GetRestores()
				if err := syscall.Kill(int(now.GetPid()), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				s.until("the job is back", func() bool {
					j := s.job()
					return j.GetState() == v1.JobState_JOB_STATE_RUNNING && j.GetRestores() == restores+1
				})
				if t.Failed() {
					return
				}
			}
			s.goesOn()
		})
	}
}
