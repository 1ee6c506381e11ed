package daemon

import (
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/internal/catalog/catalogtest"
	"stasis/internal/image"
)

// Two pages, one of which differs by some bytes: the map of a child has what it stores and what its parent does; the first of a chain has everything itself.
func TestMap(t *testing.T) {
	b := serve(t, nil)
	parent, child := filepath.Join(b.config.Checkpoint.Dir, "parent"), filepath.Join(b.config.Checkpoint.Dir, "child")
	catalogtest.Make(t, parent, catalogtest.Options{})
	catalogtest.Make(t, child, catalogtest.Options{Parent: parent})
	for name, want := range map[string]*v1.MemoryParts{"parent": {Changed: 2 * image.PageSize}, "child": {ChangedPartly: image.PageSize, Unchanged: image.PageSize}} {
		response, err := b.checkpoints(t, 0).Map(t.Context(), connect.NewRequest(&v1.MapRequest{Checkpoint: name}))
		if err != nil {
			t.Fatal(err)
		}
		m := response.Msg
		if m.GetCheckpoint().GetName() != name || len(m.GetProcesses()) != 1 || m.GetProcesses()[0].GetCommand() != "sleep" || m.GetCellBytes() != image.PageSize || len(m.GetCells()) != 2 {
			t.Errorf("%s: %v", name, m)
		}
		if got := m.GetProcesses()[0].GetParts(); got.GetChanged() != want.GetChanged() || got.GetChangedPartly() != want.GetChangedPartly() || got.GetUnchanged() != want.GetUnchanged() || got.GetZero() != 0 {
			t.Errorf("%s: %v, expected %v", name, got, want)
		}
	}
	one, err := b.checkpoints(t, 0).Map(t.Context(), connect.NewRequest(&v1.MapRequest{Checkpoint: "child", Cells: 1}))
	if err != nil || len(one.Msg.GetCells()) != 1 || one.Msg.GetCellBytes() != 2*image.PageSize {
		t.Errorf("in one cell: %v, %v", one, err)
	}
	for _, q := range []*v1.MapRequest{{Checkpoint: "child", Cells: -1}, {Checkpoint: "child", Cells: mostCells + 1}} {
		_, err := b.checkpoints(t, 0).Map(t.Context(), connect.NewRequest(q))
		expect(t, "cells", err, connect.CodeInvalidArgument, "cells")
	}
	_, err = b.checkpoints(t, 0).Map(t.Context(), connect.NewRequest(&v1.MapRequest{Checkpoint: "nothing"}))
	expect(t, "no checkpoint", err, connect.CodeNotFound)
}

// Groups count what List gives for each of them.
func TestGroups(t *testing.T) {
	b := serve(t, nil)
	newest := time.Now().Truncate(time.Millisecond)
	for i, place := range []string{"one", "two", "jobs/j/000001", "jobs/j/000002", "jobs/k/000001", "users/1234/three", "users/1234/jobs/j/000001"} {
		catalogtest.Make(t, filepath.Join(b.config.Checkpoint.Dir, place), catalogtest.Options{Created: newest.Add(-time.Duration(i) * time.Minute)})
	}
	c := b.checkpoints(t, 0)
	groups, err := c.Groups(t.Context(), connect.NewRequest(&v1.GroupsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int32{"/0": 2, "j/0": 2, "k/0": 1, "/1234": 1, "j/1234": 1}
	for i, g := range groups.Msg.GetGroups() {
		key := g.GetJob() + map[bool]string{true: "/0", false: "/1234"}[g.GetOwnerUid() == 0]
		list, err := c.List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{Job: g.GetJob(), NoJob: g.GetJob() == "", OwnerUid: &g.OwnerUid}))
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, one := range list.Msg.GetCheckpoints() {
			sum += one.GetBytes()
			if one.GetJob() != g.GetJob() || one.GetOwnerUid() != g.GetOwnerUid() {
				t.Errorf("%s has %v", key, one)
			}
		}
		if g.GetCheckpoints() != want[key] || list.Msg.GetTotal() != want[key] || sum != g.GetBytes() || sum == 0 {
			t.Errorf("%s: %v, and the list has %d", key, g, list.Msg.GetTotal())
		}
		if !g.GetNewest().AsTime().Equal(list.Msg.GetCheckpoints()[0].GetCreated().AsTime()) {
			t.Errorf("%s: the newest is of %v", key, g.GetNewest().AsTime())
		}
		if i > 0 && g.GetNewest().AsTime().After(groups.Msg.GetGroups()[i-1].GetNewest().AsTime()) {
			t.Error("they are not in order")
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	_, err = c.List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{Job: "j", NoJob: true}))
	expect(t, "a job and none", err, connect.CodeInvalidArgument, "no_job")
}
