package stasis

import (
	"fmt"
	"time"

	"stasis/internal/keeper"
)

// TrackerInfo is a process tree whose writes are tracked between two dumps.
type TrackerInfo struct {
	PID       int       // of the tree's root
	Command   string    // of the root
	Processes int       // how many of the tree are tracked
	Keeper    int       // pid of the process that keeps the trackers
	Memory    int64     // RAM of that process, bytes
	Tracker   string    // how writes are tracked
	Armed     string    // id of the checkpoint since which writes are known; "": none
	Dir       string    // where that checkpoint was written
	Since     time.Time // when that checkpoint was taken
	Problem   string    // why the keeper did not answer; "": it did. Else only PID, Command and Keeper are known
}

// Trackers lists the trees that [Dump] with Track, or [PreDump], left tracked.
// The tracking of a tree ends with its root, or by [StopTracker]. It needs root,
// asks one small process for each tree, and so takes milliseconds; one that does
// not answer, for which it waits two seconds, is listed with its Problem.
func Trackers() ([]TrackerInfo, error) {
	kept, err := keeper.List()
	if err != nil {
		return nil, err
	}
	list := make([]TrackerInfo, len(kept))
	for i, k := range kept {
		list[i] = TrackerInfo{
			PID: k.Root, Command: k.Comm, Processes: len(k.Processes), Keeper: k.Keeper, Memory: k.Memory,
			Tracker: k.Tracker, Armed: k.Armed, Dir: k.Dir, Since: k.Since,
		}
		if k.Err != nil {
			list[i].Problem = k.Err.Error()
		}
	}
	return list, nil
}

// StopTracker ends the tracking of a tree, which notices nothing. The next
// chained dump compares all memory with its parent. The error wraps [ErrInput]
// when the tree is not tracked.
func StopTracker(pid int) error {
	kept, err := keeper.List()
	if err != nil {
		return err
	}
	for _, k := range kept {
		if k.Root == pid {
			return keeper.Stop(k.Root, k.Start)
		}
	}
	return fmt.Errorf("%w: process %d is not tracked; \"stasis trackers\" lists those that are", ErrInput, pid)
}
