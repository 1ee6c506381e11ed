package jobs

import (
	"time"

	"stasis/internal/chain"
	"stasis/internal/jobs/db"
)

// surplus lists the checkpoints that a policy does not keep. list has the oldest first; its last one is always kept, and so are
// those whose numbers are in needed.
func surplus(list []db.Checkpoint, keep db.Keep, needed map[uint64]bool) []db.Checkpoint {
	if keep == (db.Keep{}) || len(list) == 0 {
		return nil
	}
	kept := keptByRules(list, keep)
	kept[len(list)-1] = true
	if keep.Bytes > 0 {
		keepBytes(list, kept, keep.Bytes)
	}
	var gone []db.Checkpoint
	for i, cp := range list {
		if !kept[i] && !needed[cp.Seq] {
			gone = append(gone, cp)
		}
	}
	return gone
}

// keptByRules says which checkpoints are kept whatever they take.
func keptByRules(list []db.Checkpoint, keep db.Keep) []bool {
	kept := make([]bool, len(list))
	policy := chain.Policy{Last: keep.Last, Hourly: keep.Hourly, Daily: keep.Daily, Weekly: keep.Weekly, Monthly: keep.Monthly}
	if policy.Empty() { // by size alone
		policy.Last = chain.All
	}
	times := make([]time.Time, len(list))
	for i := range list {
		times[i] = list[i].Created.Local()
	}
	for i, reasons := range policy.Keep(times) {
		kept[i] = len(reasons) > 0
	}
	return kept
}

// keepBytes drops the oldest until the rest takes no more than limit.
func keepBytes(list []db.Checkpoint, kept []bool, limit int64) {
	var total int64
	for i := len(list) - 1; i >= 0; i-- {
		if !kept[i] {
			continue
		}
		if total += list[i].Bytes; total > limit && i < len(list)-1 {
			kept[i] = false
		}
	}
}
