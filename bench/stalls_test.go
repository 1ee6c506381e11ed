package main

import (
	"testing"
	"time"
)

func at(ms int) time.Time              { return time.UnixMilli(1_700_000_000_000 + int64(ms)) }
func between(begin, end int) span      { return span{at(begin), at(end)} }
func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func TestOnlyStallsOfAllCPUsCount(t *testing.T) {
	s := &stalls{cpus: [][]span{
		{between(100, 130), between(200, 240), between(300, 310)},
		{between(101, 131), between(205, 215), between(220, 230), between(320, 330)},
	}}
	for _, c := range []struct {
		name string
		gap  span
		left int // ms
	}{
		{"nothing", between(10, 20), 10},
		{"before, in and after a stall", between(90, 140), 21},
		{"inside of a stall", between(105, 125), 0},
		{"the end of a stall", between(120, 135), 5},
		{"two stalls of one CPU within one of the other", between(190, 250), 40},
		{"one CPU alone", between(290, 312), 22},
		{"one after the other", between(295, 335), 40},
	} {
		if got := s.without(c.gap); got != milliseconds(c.left) {
			t.Errorf("%s: %v of %v are left, want %d ms", c.name, got, c.gap.length(), c.left)
		}
	}
	if got := s.longest([]span{between(90, 140), between(10, 20), between(105, 125)}); got != milliseconds(21) {
		t.Errorf("the longest is %v", got)
	}
}

func TestGapsAreRead(t *testing.T) {
	a, err := parseAnswer("note 3 gap_us=81 gaps=2500@1700000000002500,700@1700000000900000 written=4")
	if err != nil || a.written != 4 || len(a.gaps) != 2 {
		t.Fatalf("%+v, %v", a, err)
	}
	if g := a.gaps[0]; g.length() != 2500*time.Microsecond || !g.begin.Equal(at(0)) {
		t.Errorf("%+v", g)
	}
	if a, err := parseAnswer("note 3 gaps= written=4"); err != nil || len(a.gaps) != 0 {
		t.Errorf("none: %+v, %v", a, err)
	}
}
