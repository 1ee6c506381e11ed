package daemon

import (
	"cmp"
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/chain"
	"stasis/internal/memmap"
	"stasis/internal/wire"
)

// Numbers of cells of a map.
const (
	usualCells = 1024
	mostCells  = 4096
)

// Map shows the memory in a checkpoint.
func (s *checkpointService) Map(ctx context.Context, request *connect.Request[v1.MapRequest]) (*connect.Response[v1.MapResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	cells := int(request.Msg.GetCells())
	if cells < 0 || cells > mostCells {
		return nil, fmt.Errorf("%w: cells is %d: it is a number from 1 to %d, or 0 for %d", stasis.ErrInput, cells, mostCells, usualCells)
	}
	entry, err := s.daemon.engine.Catalog.Find(who.UID, request.Msg.GetCheckpoint())
	if err != nil {
		return nil, err
	}
	checkpoint, err := chain.OpenIndex(entry.Dir)
	if err != nil {
		return nil, err
	}
	defer checkpoint.Close()
	response := mapMessage(memmap.Of(checkpoint, cmp.Or(cells, usualCells)))
	response.Checkpoint = wire.Checkpoint(entry)
	response.Checkpoint.ChainLength = s.daemon.lists.chainLength(s.daemon.engine.Catalog.List(), entry)
	return connect.NewResponse(response), nil
}

var memoryKinds = map[memmap.Kind]v1.MemoryKind{
	memmap.Heap: v1.MemoryKind_MEMORY_KIND_HEAP, memmap.Stack: v1.MemoryKind_MEMORY_KIND_STACK,
	memmap.Anonymous: v1.MemoryKind_MEMORY_KIND_ANONYMOUS, memmap.File: v1.MemoryKind_MEMORY_KIND_FILE,
	memmap.Shared: v1.MemoryKind_MEMORY_KIND_SHARED, memmap.Huge: v1.MemoryKind_MEMORY_KIND_HUGE, memmap.Kernel: v1.MemoryKind_MEMORY_KIND_KERNEL,
}

func mapMessage(m *memmap.Map) *v1.MapResponse {
	response := &v1.MapResponse{MappingsLeftOut: int32(m.LeftOut), CellBytes: m.CellBytes, Notes: m.Notes} //nolint:gosec // processes have thousands
	for _, p := range m.Processes {
		response.Processes = append(response.Processes, &v1.MemoryProcess{Pid: int32(p.PID), Command: p.Command, Parts: partsMessage(p.Parts)})
	}
	for _, t := range m.Totals {
		response.Totals = append(response.Totals, &v1.MemoryTotal{
			Kind: memoryKinds[t.Kind], Mappings: int32(t.Mappings), Mapped: t.Mapped, Parts: partsMessage(t.Parts), //nolint:gosec // as above
		})
	}
	for i := range m.Mappings {
		g := &m.Mappings[i]
		response.Mappings = append(response.Mappings, &v1.MemoryMapping{
			Pid: int32(g.PID), Start: g.Start, Mapped: int64(g.End - g.Start), Kind: memoryKinds[g.Kind], //nolint:gosec // address spaces are smaller
			Permissions: g.Perms, File: g.File, Parts: partsMessage(g.Parts),
		})
	}
	for _, c := range m.Cells {
		response.Cells = append(response.Cells, &v1.MemoryCell{Pid: int32(c.PID), Start: c.Start, End: c.End, Kind: memoryKinds[c.Kind], Parts: partsMessage(c.Parts)})
	}
	return response
}

func partsMessage(p memmap.Parts) *v1.MemoryParts {
	return &v1.MemoryParts{Changed: p.Changed, ChangedPartly: p.ChangedPartly, Unchanged: p.Unchanged, Zero: p.Zero, StoredAgain: p.StoredAgain}
}

// Groups sums up whose the checkpoints are. The list has the newest first, and so have the groups.
func (s *checkpointService) Groups(ctx context.Context, _ *connect.Request[v1.GroupsRequest]) (*connect.Response[v1.GroupsResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	type key struct {
		job   string
		owner uint32
	}
	response := new(v1.GroupsResponse)
	groups := make(map[key]*v1.CheckpointGroup)
	for _, e := range s.daemon.engine.Catalog.List() {
		if !who.May(e.Owner) {
			continue
		}
		g := groups[key{e.Job, e.Owner}]
		if g == nil {
			g = &v1.CheckpointGroup{Job: e.Job, OwnerUid: e.Owner, Newest: timestamppb.New(e.Manifest.Created)}
			groups[key{e.Job, e.Owner}] = g
			response.Groups = append(response.Groups, g)
		}
		g.Checkpoints++
		g.Bytes += e.Bytes
	}
	return connect.NewResponse(response), nil
}
