package writer

import (
	"math/rand/v2"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/plan"
)

// TestPageTable fills the table beyond its size.
func TestPageTable(t *testing.T) {
	table, r := newPageTable(), rand.New(rand.NewPCG(1, 1))

	for i := range 100_000 {
		f := []fate{{at: plan.PageAt{Block: uint32(i)}}}
		f[0].hash.Lo, f[0].hash.Hi = r.Uint64(), r.Uint64()
		table.add(f)
		again := []fate{{hash: f[0].hash}, {hash: f[0].hash}}
		again[1].hash.Hi++
		table.find(again, &[image.MaxPages]int{1, 1})
		if again[0].kind != elsewhere || again[0].at != f[0].at || again[1].kind != kept {
			t.Fatalf("%+v was found as %+v", f, again)
		}
	}
}
