package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/chain"
	"stasis/internal/config"
)

// ownDaemon knows three checkpoints of the caller's, the newest first as the daemon has it, one on a page.
type ownDaemon struct {
	stasisv1connect.UnimplementedCheckpointServiceHandler
}

func (*ownDaemon) List(_ context.Context, r *connect.Request[v1.ListCheckpointsRequest]) (*connect.Response[v1.ListCheckpointsResponse], error) {
	at := time.Date(2026, 11, 21, 13, 0, 0, 0, time.UTC)
	of := func(dir, job string, minute int) *v1.Checkpoint {
		return &v1.Checkpoint{
			Id: fmt.Sprintf("%032x", minute), Name: "n", Dir: "/cp/users/1000/" + dir, Job: job, Kind: v1.CheckpointKind_CHECKPOINT_KIND_FULL, Bytes: 1 << 20,
			Created: timestamppb.New(at.Add(time.Duration(minute) * time.Minute)), RootPid: 7, Command: "/usr/bin/sleep 9", ChainLength: 1,
		}
	}
	all := []*v1.Checkpoint{of("jobs/b/000001", "b", 3), of("jobs/a/000001", "a", 2), of("mine", "", 1)}
	all[1].Kind = v1.CheckpointKind_CHECKPOINT_KIND_PRE_DUMP
	if r.Msg.GetJob() != "" {
		all = all[:1]
	}
	n := len(r.Msg.GetPageToken())
	response := &v1.ListCheckpointsResponse{Checkpoints: all[n : n+1], Total: int32(len(all))}
	if n+1 < len(all) {
		response.NextPageToken = strings.Repeat("x", n+1)
	}
	return connect.NewResponse(response), nil
}

// A user sees his own checkpoints, by the daemon, in the form in which root sees those in a folder.
func TestOwnCheckpoints(t *testing.T) {
	_, b := severalOf(t)
	show := func(job string, all, asJSON bool) (string, error) {
		b.out.Reset()
		a := &app{out: &b.out, results: &b.out, err: &b.err, config: config.Default()}
		for _, entry := range b.environ {
			if socket, ok := strings.CutPrefix(entry, "STASIS_DAEMON_SOCKET="); ok {
				a.config.Daemon.Socket = socket
			}
		}
		if asJSON {
			a.output = outputJSON
		}
		err := a.ownCheckpoints(t.Context(), job, all)
		return b.out.String(), err
	}
	text, err := show("", true, false)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(text) {
		names = append(names, strings.Fields(line)[0])
	}
	if got := strings.Join(names, " "); got != "NAME mine a/000001 b/000001" || !strings.Contains(text, "sleep 9 (7)") {
		t.Errorf("%s", text)
	}
	if text, err = show("b", false, false); err != nil || strings.Count(text, "\n") != 2 || !strings.Contains(text, "b/000001") {
		t.Errorf("of one job: %v\n%s", err, text)
	}
	if text, err = show("none", false, false); err == nil {
		t.Errorf("of a job that is not there: %s", text)
	}
	if text, err = show("", false, true); err != nil {
		t.Fatal(err)
	}
	var list []chain.Info
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 2 || list[0].PID != 7 || list[1].Dir != "/cp/users/1000/jobs/b/000001" || list[0].BytesDisk != 1<<20 {
		t.Errorf("%v\n%s", err, text)
	}
}
