package service

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
)

// What somebody was told of is in every list from then on, however often lists are asked for meanwhile: each change of a job is looked for in
// the lists of all who may see it, brief and in full, and in those of others never.
func TestListsAreNeverOld(t *testing.T) {
	as := serve(t)
	const owner, stranger = 65534, 65533
	clients := map[uint32]stasisv1connect.JobServiceClient{0: as(0), owner: as(owner), stranger: as(stranger)}
	list := func(ctx context.Context, uid uint32, brief bool) (*v1.Job, error) {
		response, err := clients[uid].List(ctx, connect.NewRequest(&v1.ListJobsRequest{Brief: brief}))
		if err != nil || len(response.Msg.GetJobs()) == 0 {
			return nil, err
		}
		return response.Msg.GetJobs()[0], nil
	}
	asking, done := context.WithCancel(t.Context())
	var others sync.WaitGroup
	t.Cleanup(func() { done(); others.Wait() })
	for uid := range clients {
		others.Go(func() {
			for brief := false; asking.Err() == nil; brief = !brief {
				if j, err := list(asking, uid, brief); uid == stranger && j != nil {
					t.Errorf("a stranger sees %v", j)
				} else if err != nil && asking.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	see := func(what string, is func(j *v1.Job, brief bool) bool) {
		t.Helper()
		for _, uid := range []uint32{0, owner} {
			for _, brief := range []bool{true, false} {
				if j, err := list(within(t), uid, brief); err != nil || !is(j, brief) {
					t.Fatalf("%s: user %d, brief %v: %v, %v", what, uid, brief, j, err)
				}
			}
		}
	}
	c := clients[owner]
	for round := range 3 {
		j := start(t, c, &v1.JobSpec{Name: fmt.Sprint("j", round), Command: []string{"sleep", "1000"}})
		see("run", func(seen *v1.Job, _ bool) bool {
			return seen.GetPid() == j.GetPid() && seen.GetState() == v1.JobState_JOB_STATE_RUNNING
		})
		for n := range int32(3) {
			change := &v1.UpdateJobRequest{Job: j.GetId(), Retention: &v1.Retention{KeepLast: n + 1}}
			if _, err := c.Update(within(t), connect.NewRequest(change)); err != nil {
				t.Fatal(err)
			}
			see("update", func(seen *v1.Job, brief bool) bool {
				return brief || seen.GetSpec().GetRetention().GetKeepLast() == n+1
			})
			if err := ended(c.Dump(within(t), connect.NewRequest(&v1.DumpJobRequest{Job: j.GetId()}))); err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("j%d-%d", round, n+1)
			see("dump", func(seen *v1.Job, _ bool) bool {
				return seen.GetState() == v1.JobState_JOB_STATE_RUNNING && seen.GetLastCheckpoint().GetName() == name
			})
		}
		if _, err := c.Kill(within(t), connect.NewRequest(&v1.KillRequest{Job: j.GetId(), Signal: 9})); err != nil {
			t.Fatal(err)
		}
		see("kill", func(seen *v1.Job, _ bool) bool {
			return seen.GetState() == v1.JobState_JOB_STATE_KILLED && seen.GetPid() == 0
		})
		if _, err := c.Remove(within(t), connect.NewRequest(&v1.RemoveJobRequest{Job: j.GetId(), Checkpoints: true})); err != nil {
			t.Fatal(err)
		}
		see("rm", func(seen *v1.Job, _ bool) bool { return seen == nil })
	}
}
