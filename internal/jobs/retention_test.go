package jobs

import (
	"math/rand/v2"
	"testing"
	"time"

	"stasis/internal/jobs/db"
)

func TestSurplus(t *testing.T) {
	begin := time.Date(2026, 5, 1, 0, 0, 0, 0, time.Local)
	var list []db.Checkpoint
	for i := range 48 * 4 { // two days, four an hour
		list = append(list, db.Checkpoint{Seq: uint64(i + 1), Created: begin.Add(time.Duration(i) * 15 * time.Minute), Bytes: 10})
	}
	for _, c := range []struct {
		name string
		keep db.Keep
		want int // how many are kept
	}{
		{"no rule", db.Keep{}, len(list)},
		{"last", db.Keep{Last: 5}, 5},
		{"hourly", db.Keep{Hourly: 24}, 24},
		{"daily", db.Keep{Daily: 7}, 3}, // and the oldest
		{"last and hourly", db.Keep{Last: 5, Hourly: 3}, 6},
		{"bytes alone", db.Keep{Bytes: 105}, 10},
		{"bytes and last", db.Keep{Last: 50, Bytes: 105}, 10},
		{"less than one", db.Keep{Bytes: 1}, 1},
		{"one", db.Keep{Last: 1}, 1},
	} {
		gone := surplus(list, c.keep, nil)
		if got := len(list) - len(gone); got != c.want {
			t.Errorf("%s: %d are kept, want %d", c.name, got, c.want)
		}
		for _, cp := range gone {
			if cp.Seq == list[len(list)-1].Seq {
				t.Errorf("%s: the newest goes", c.name)
			}
		}
	}
	if gone := surplus(list, db.Keep{Last: 1}, map[uint64]bool{3: true}); len(gone) != len(list)-2 {
		t.Errorf("one that is needed goes")
	}
}

// Applied again and again, as after each dump, a policy keeps the newest, and what it keeps at last it would keep at once.
func TestSurplusOneByOne(t *testing.T) {
	for range 50 {
		keep := db.Keep{Last: rand.IntN(4), Hourly: rand.IntN(4), Bytes: rand.Int64N(3) * 40}
		at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.Local)
		var left []db.Checkpoint
		for seq := uint64(1); seq < 100; seq++ {
			at = at.Add(time.Duration(rand.IntN(40)) * time.Minute)
			left = append(left, db.Checkpoint{Seq: seq, Created: at, Bytes: 1 + rand.Int64N(30)})
			gone := make(map[uint64]bool)
			for _, cp := range surplus(left, keep, nil) {
				gone[cp.Seq] = true
			}
			var stay []db.Checkpoint
			for _, cp := range left {
				if !gone[cp.Seq] {
					stay = append(stay, cp)
				}
			}
			left = stay
			if len(left) == 0 || left[len(left)-1].Seq != seq || len(surplus(left, keep, nil)) > 0 {
				t.Fatalf("%+v: after checkpoint %d there are %v", keep, seq, left)
			}
		}
	}
}
