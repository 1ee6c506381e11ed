package jobs

import (
	"fmt"
	"time"

	"stasis/internal/jobs/db"
)

// surplus lists the checkpoints that a policy does not keep. list has the oldest first; its last one is always kept, and so are
// those whose numbers are in needed.
func surplus(list []db.Checkpoint, keep db.Keep, needed map[uint64]bool) []db.Checkpoint {
	if keep == (db.Keep{}) || len(list) == 0 {
		return nil
	}
	kept := make([]bool, len(list))
	kept[len(list)-1] = true
	rules := keep
	rules.Bytes = 0
	if rules == (db.Keep{}) { // by size alone
		for i := range kept {
			kept[i] = true
		}
	}
	for i := max(0, len(list)-keep.Last); i < len(list); i++ {
		kept[i] = true
	}
	for _, rule := range []struct {
		n    int
		span func(time.Time) string
	}{
		{keep.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15") }},
		{keep.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{keep.Weekly, func(t time.Time) string { year, week := t.ISOWeek(); return fmt.Sprint(year, "-", week) }},
		{keep.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
	} {
		keepNewestOfEach(list, kept, rule.n, rule.span)
	}
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

// keepNewestOfEach keeps the newest checkpoint of each of the last n spans that have one.
func keepNewestOfEach(list []db.Checkpoint, kept []bool, n int, span func(time.Time) string) {
	last := ""
	for i := len(list) - 1; i >= 0 && n > 0; i-- {
		if s := span(list[i].Created.Local()); s != last {
			kept[i], last = true, s
			n--
		}
	}
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
