package keeper

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/require"
)

// tree starts a process and says what it is.
func tree(t *testing.T) (*exec.Cmd, *proc.Task) {
	t.Helper()
	require.Root(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		_ = cmd.Wait()
	})
	task, err := proc.ReadTask(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Stop(task.PID, task.StartTime) })
	return cmd, task
}

// pipes makes n descriptors whose other ends tell when the last copy is closed.
func pipes(t *testing.T, n int) (keep, watch []int) {
	t.Helper()
	for range n {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		watch, keep = append(watch, ends[0]), append(keep, ends[1])
		t.Cleanup(func() { unix.Close(ends[0]) })
	}
	return keep, watch
}

// closed says whether all copies of a pipe's writing end are closed.
func closed(t *testing.T, fd int, within time.Duration) bool {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd)}}
	for deadline := time.Now().Add(within); ; <-time.After(time.Millisecond) {
		if _, err := unix.Poll(poll, 0); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		if poll[0].Revents&unix.POLLHUP != 0 {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func stateOf(task *proc.Task, processes int) *State {
	s := &State{Root: task.PID, Start: task.StartTime, Comm: task.Comm, Armed: "some-id", Lost: []Lost{{task.PID, 4096, 8192}}}
	for i := range processes {
		s.Processes = append(s.Processes, Process{PID: 1000 + i, Start: uint64(i)})
	}
	return s
}

// TestKeepsWhatItIsGiven: more descriptors than fit into one message.
func TestKeepsWhatItIsGiven(t *testing.T) {
	_, task := tree(t)
	if _, _, err := Take(task); !errors.Is(err, ErrNone) {
		t.Fatalf("before there is a keeper: %v", err)
	}
	const n = 2*maxFDs + 7
	fds, watch := pipes(t, n)
	if err := Put(stateOf(task, n), fds); err != nil {
		t.Fatal(err)
	}
	closeAll(fds)
	state, taken, err := Take(task)
	if err != nil {
		t.Fatal(err)
	}
	if state.Armed != "some-id" || len(taken) != n || len(state.Lost) != 1 || state.Processes[n-1].PID != 1000+n-1 {
		t.Errorf("%d descriptors and %q, %v came back", len(taken), state.Armed, state.Lost)
	}
	if closed(t, watch[n-1], 0) {
		t.Error("a descriptor is closed while it is kept")
	}
	closeAll(taken)

	if err := Disarm(task); err != nil {
		t.Fatal(err)
	}
	state, taken, err = Take(task)
	if err != nil || state.Armed != "" || len(taken) != n {
		t.Errorf("after it was disarmed: %+v, %v", state, err)
	}
	closeAll(taken)

	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, info := range list {
		if info.Root == task.PID {
			found = true
			t.Logf("a keeper takes %d KiB", info.Memory>>10)
			if info.Memory > 16<<20 {
				t.Errorf("a keeper takes %d MiB", info.Memory>>20)
			}
		}
	}
	if !found {
		t.Errorf("the keeper is not in the list: %+v", list)
	}

	// Others in place of the first ones.
	more, watchMore := pipes(t, 1)
	if err := Put(stateOf(task, 1), more); err != nil {
		t.Fatal(err)
	}
	closeAll(more)
	if !closed(t, watch[0], 5*time.Second) {
		t.Error("what was replaced is still open")
	}
	if err := Stop(task.PID, task.StartTime); err != nil {
		t.Fatal(err)
	}
	if !closed(t, watchMore[0], 5*time.Second) {
		t.Error("the tracking goes on after its end was asked for")
	}
	if _, _, err := Take(task); !errors.Is(err, ErrNone) {
		t.Errorf("after the end: %v", err)
	}
}

func TestEndsWithTheTree(t *testing.T) {
	cmd, task := tree(t)
	fds, watch := pipes(t, 1)
	if err := Put(stateOf(task, 1), fds); err != nil {
		t.Fatal(err)
	}
	closeAll(fds)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !closed(t, watch[0], 5*time.Second) {
		t.Error("the keeper lives longer than its tree")
	}
	_ = cmd.Wait()
}

// TestAKilledKeeperIsForgotten, its socket too.
func TestAKilledKeeperIsForgotten(t *testing.T) {
	_, task := tree(t)
	fds, watch := pipes(t, 1)
	if err := Put(stateOf(task, 1), fds); err != nil {
		t.Fatal(err)
	}
	closeAll(fds)
	info, err := infoOf(task.PID, task.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(info.Keeper, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !closed(t, watch[0], 5*time.Second) {
		t.Fatal("it was not killed")
	}
	if _, _, err := Take(task); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(socketPath(task.PID, task.StartTime)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is left: %v", err)
	}
}

// TestRefusesWhatIsNotItsTree, and what is no message, and goes on.
func TestRefusesWhatIsNotItsTree(t *testing.T) {
	_, task := tree(t)
	if err := Put(stateOf(task, 0), nil); err != nil {
		t.Fatal(err)
	}
	c, err := dial(task.PID, task.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	other := stateOf(task, 0)
	other.Root++
	if err := c.ask(order{Do: doPut, State: other}, nil); err == nil {
		t.Error("it took the trackers of another tree")
	}
	c.close()
	for _, garbage := range []string{"\xff\xff\xff\xff\xff\xff\xff\xff", "\x04\x00\x00\x00\x00\x00\x00\x00junk", "\x02"} {
		c, err := dial(task.PID, task.StartTime)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.write([]byte(garbage))
		c.close()
	}
	if state, _, err := Take(task); err != nil || state.Root != task.PID {
		t.Errorf("after garbage: %+v, %v", state, err)
	}
}

// TestAStuckKeeperIsListed beside others, with its pid, and can be ended.
func TestAStuckKeeperIsListed(t *testing.T) {
	_, stopped := tree(t)
	_, other := tree(t)
	for _, task := range []*proc.Task{stopped, other} {
		keep, _ := pipes(t, 1)
		if err := Put(stateOf(task, 1), keep); err != nil {
			t.Fatal(err)
		}
		closeAll(keep)
	}
	of := func(task *proc.Task) *Info {
		t.Helper()
		list, err := List()
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range list {
			if info.Root == task.PID && info.Start == task.StartTime {
				return &info
			}
		}
		return nil
	}
	answering := func(task *proc.Task) *Info {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; { // one that answers may have to wait for a busy machine
			info := of(task)
			if info == nil || info.Err == nil || time.Now().After(deadline) {
				return info
			}
		}
	}
	before := answering(stopped)
	if before == nil || before.Err != nil || before.Keeper == 0 {
		t.Fatalf("before it is %+v", before)
	}
	if err := unix.Kill(before.Keeper, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(before.Keeper, unix.SIGCONT) })
	if info := of(stopped); info == nil || info.Err == nil || info.Keeper != before.Keeper || info.Comm != "sleep" {
		t.Errorf("the one that is stopped is %+v", info)
	}
	if info := answering(other); info == nil || info.Err != nil || info.Armed != "some-id" {
		t.Errorf("the other is %+v", info)
	}
	if err := Stop(stopped.PID, stopped.StartTime); err != nil {
		t.Fatal(err)
	}
	if info := of(stopped); info != nil {
		t.Errorf("it was ended, and is %+v", info)
	}
	if info := of(other); info == nil {
		t.Error("the other has ended, too")
	}
}
