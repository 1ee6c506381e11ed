package jobs

import (
	"fmt"
	"path/filepath"
	"testing"

	"stasis/internal/jobs/db"
)

// BenchmarkList lists 200 jobs that have 10 000 checkpoints together.
func BenchmarkList(b *testing.B) {
	m := &Manager{jobs: make(map[string]*job)}
	for i := range 200 {
		var cps []db.Checkpoint
		for seq := range uint64(50) {
			cps = append(cps, db.Checkpoint{Seq: seq + 1, Bytes: 1, Dir: filepath.Join("/x", number(seq))})
		}
		j := newJob(m, db.Job{ID: fmt.Sprintf("%016x", i), Spec: db.Spec{Name: fmt.Sprint("j", i)}}, cps)
		m.jobs[j.name()] = j
	}
	b.ReportAllocs()
	for b.Loop() {
		if list := m.List(0); len(list) != 200 || list[0].Bytes != 50 {
			b.Fatal(len(list))
		}
	}
}
