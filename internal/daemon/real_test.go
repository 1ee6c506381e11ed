package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/internal/require"
)

func dumped(t *testing.T, stream *connect.ServerStreamForClient[v1.DumpResponse], err error) (result *v1.DumpResult, steps []string, failed error) {
	t.Helper()
	if err != nil {
		return nil, nil, err
	}
	defer stream.Close()
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *v1.DumpResponse_Progress:
			if s := e.Progress.GetStep(); len(steps) == 0 || steps[len(steps)-1] != s {
				steps = append(steps, s)
			}
		case *v1.DumpResponse_Result:
			if result != nil {
				t.Error("two results")
			}
			result = e.Result
		}
	}
	return result, steps, stream.Err()
}

// A process is dumped, listed, looked at, verified, and brought back, all by calls.
func TestDumpAndRestore(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	b := serve(t, nil)
	c := b.checkpoints(t, 0)
	ctx := t.Context()
	pid := sleeper(t, 0)

	stream, err := c.Dump(ctx, connect.NewRequest(&v1.DumpRequest{Pid: int32(pid), Name: "one", After: v1.After_AFTER_KILL}))
	result, steps, err := dumped(t, stream, err)
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) < 4 || steps[0] != "prepare" {
		t.Errorf("progress was %v", steps)
	}
	got := result.GetCheckpoint()
	if got.GetName() != "one" || got.GetCommand() != "sleep" || got.GetRootPid() != int32(pid) || got.GetDir() != filepath.Join(b.config.Checkpoint.Dir, "one") ||
		got.GetFigures().GetBytesMemory() == 0 || result.GetAfter() != v1.After_AFTER_KILL {
		t.Errorf("the result is %v", result)
	}
	until(t, "the process is ended", func() bool { return !runs(pid) })
	if info, err := os.Stat(got.GetDir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	files, _ := filepath.Glob(filepath.Join(got.GetDir(), "*"))
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}

	list, err := c.List(ctx, connect.NewRequest(&v1.ListCheckpointsRequest{}))
	if err != nil || list.Msg.GetTotal() != 1 || list.Msg.GetCheckpoints()[0].GetId() != got.GetId() {
		t.Fatalf("the list: %v, %v", list, err)
	}
	for _, ref := range []string{"one", got.GetId(), got.GetId()[:8], got.GetDir()} {
		found, err := c.Get(ctx, connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: ref}))
		if err != nil || found.Msg.GetCheckpoint().GetId() != got.GetId() || len(found.Msg.GetManifest()) == 0 {
			t.Errorf("get %s: %v, %v", ref, found, err)
		}
	}
	verify, err := c.Verify(ctx, connect.NewRequest(&v1.VerifyRequest{Checkpoint: "one"}))
	if err != nil {
		t.Fatal(err)
	}
	var verified *v1.VerifyResult
	for verify.Receive() {
		if r := verify.Msg().GetResult(); r != nil {
			verified = r
		}
	}
	if verify.Err() != nil || verified.GetBlocks() == 0 {
		t.Errorf("verified: %v, %v", verified, verify.Err())
	}

	restore, err := c.Restore(ctx, connect.NewRequest(&v1.RestoreRequest{Checkpoint: "one"}))
	if err != nil {
		t.Fatal(err)
	}
	var resumed int32
	var restored *v1.RestoreResult
	for restore.Receive() {
		if r := restore.Msg().GetResumed(); r != nil {
			resumed = r.GetPid()
		}
		if r := restore.Msg().GetResult(); r != nil {
			restored = r
		}
	}
	if restore.Err() != nil {
		t.Fatal(restore.Err())
	}
	if resumed != int32(pid) || restored.GetPid() != int32(pid) || !runs(pid) {
		t.Errorf("resumed %d, restored %v; it runs: %v", resumed, restored, runs(pid))
	}

	// What cannot be done leaves it as it is.
	stream, err = c.Dump(ctx, connect.NewRequest(&v1.DumpRequest{Pid: int32(pid), Name: "one"}))
	if _, _, err = dumped(t, stream, err); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("a second dump of that name: %v", err)
	}
	restore, err = c.Restore(ctx, connect.NewRequest(&v1.RestoreRequest{Checkpoint: "one"}))
	if err != nil {
		t.Fatal(err)
	}
	for restore.Receive() {
	}
	if connect.CodeOf(restore.Err()) != connect.CodeFailedPrecondition {
		t.Errorf("a restore of what runs: %v", restore.Err())
	}
	if !runs(pid) {
		t.Error("the process runs no more")
	}
}

// A call that is cancelled in the middle of a dump leaves the process as it was, and no checkpoint.
func TestCancelledDump(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	b := serve(t, nil)
	c := b.checkpoints(t, 0)
	pid := sleeper(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow := int64(1) // a byte a second
	stream, err := c.Dump(ctx, connect.NewRequest(&v1.DumpRequest{
		Pid: int32(pid), Name: "slow", After: v1.After_AFTER_KILL, Settings: &v1.DumpSettings{Bandwidth: &slow, Compression: "none"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		if stream.Msg().GetProgress().GetStep() == "copy" {
			break
		}
	}
	cancel()
	until(t, "the dump is given up", func() bool { dumps, _ := b.engine.Busy(); return dumps == 0 })
	if !runs(pid) {
		t.Fatal("the process runs no more")
	}
	if _, err := os.Stat(filepath.Join(b.config.Checkpoint.Dir, "slow")); err == nil {
		t.Error("something is left of the cancelled checkpoint")
	}
	again, err := c.Dump(t.Context(), connect.NewRequest(&v1.DumpRequest{Pid: int32(pid), Name: "slow", After: v1.After_AFTER_RUN}))
	if _, _, err := dumped(t, again, err); err != nil {
		t.Errorf("the next dump: %v", err)
	}
	if !runs(pid) {
		t.Error("the process runs no more")
	}
}

// The full check dumps and restores a process of its own.
func TestFullCheck(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	b := serve(t, nil)
	response, err := b.system(t, 0).Check(t.Context(), connect.NewRequest(&v1.CheckRequest{Full: true}))
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]v1.CheckStatus{}
	for _, r := range response.Msg.GetResults() {
		last[r.GetName()] = r.GetStatus()
		if r.GetStatus() == v1.CheckStatus_CHECK_STATUS_FAIL {
			t.Errorf("%s: %s", r.GetName(), r.GetDetail())
		}
	}
	if last["self-test: memory"] != v1.CheckStatus_CHECK_STATUS_OK {
		t.Errorf("the memory was not checked: %v", last)
	}
}
