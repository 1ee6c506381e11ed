package main

import (
	"fmt"
	"slices"
	"time"
)

// unit says what the numbers of a row are.
type unit string

const (
	seconds        unit = "s"   // less is better, as with bytes
	bytesPerSecond unit = "B/s" // more is better, as with the next two
	requestsEach   unit = "requests/s"
	bytesUsed      unit = "B"
)

// lessIsBetter says in which direction a number of that unit is good.
func (u unit) lessIsBetter() bool { return u == seconds || u == bytesUsed }

// series is what several runs gave, in the unit of the row.
type series struct {
	Median float64   `json:"median"`
	Worst  float64   `json:"worst"`
	Runs   []float64 `json:"runs"`

	// Seen are the same runs as the program saw them, where the times at which
	// the whole machine stood still were taken out of Runs.
	Seen []float64 `json:"seen,omitempty"`
}

func (s *series) empty() bool { return len(s.Runs) == 0 }

// row is one result: Stasis, what it is compared with, and whether its targets
// are reached.
type row struct {
	ID     string  `json:"id"`   // such as pause/4GiB
	What   string  `json:"what"` // for people
	Unit   unit    `json:"unit"`
	Ours   series  `json:"stasis"`
	Other  series  `json:"other"`
	Beside string  `json:"beside"` // what Other is: CRIU, or a limit of the machine
	Ratio  float64 `json:"ratio"`  // how many times better Stasis is; 0 without Other
	Checks []check `json:"checks,omitempty"`
	Note   string  `json:"note,omitempty"`
	Bytes  int64   `json:"bytes,omitempty"` // of a rate: what was done at that rate
}

// besideCRIU is the value of row.Beside for stock CRIU.
const besideCRIU = "CRIU"

// check is one target of a row.
type check struct {
	Want string  `json:"want"` // "≤ 40 ms"
	Met  bool    `json:"met"`
	Off  float64 `json:"off"` // by how much it is missed: 0.1 is a tenth of the target
}

// add notes a run.
func (s *series) add(value float64) { s.Runs = append(s.Runs, value) }

func (s *series) addTime(d time.Duration) { s.add(d.Seconds()) }

// median is the middle of some numbers.
func median(of []float64) float64 {
	sorted, n := slices.Sorted(slices.Values(of)), len(of)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// finish computes what follows from the runs.
func (r *row) finish() {
	if len(r.Ours.Seen) > 0 {
		r.Note = "with the machine's own stalls " + r.Unit.format(median(r.Ours.Seen))
	}
	for _, s := range []*series{&r.Ours, &r.Other} {
		if s.empty() {
			continue
		}
		sorted := slices.Sorted(slices.Values(s.Runs))
		n := len(sorted)
		s.Median = median(s.Runs)
		s.Worst = sorted[0]
		if r.Unit.lessIsBetter() {
			s.Worst = sorted[n-1]
		}
	}
	if r.Ours.Median == 0 || r.Other.Median == 0 {
		return
	}
	r.Ratio = r.Ours.Median / r.Other.Median
	if r.Unit.lessIsBetter() {
		r.Ratio = 1 / r.Ratio
	}
}

// within checks a row that should stay at or below a limit.
func (r *row) within(limit float64) {
	r.judge("≤ "+r.Unit.format(limit), r.Ours.Median/limit-1)
}

// times checks that Stasis is so many times better than what it is beside.
func (r *row) times(factor float64) {
	want := fmt.Sprintf("%.3g × %s", factor, r.Beside)
	if r.Unit.lessIsBetter() {
		want = fmt.Sprintf("≤ 1/%.3g of %s", factor, r.Beside)
	} else if factor < 1 {
		want = fmt.Sprintf("≥ %.3g %% of %s", 100*factor, r.Beside)
	}
	off := 1 - r.Ratio/factor
	if r.Unit.lessIsBetter() && r.Ratio > 0 {
		off = factor/r.Ratio - 1
	}
	r.judge(want, off)
}

func (r *row) judge(want string, off float64) {
	if r.Ours.empty() {
		off = 1 // not measured is not reached
	}
	r.Checks = append(r.Checks, check{Want: want, Met: off <= 0, Off: max(0, off)})
}

// format is a number with its unit, for people.
func (u unit) format(v float64) string {
	switch u {
	case seconds:
		if v < 0.9995 {
			return three(1000*v) + " ms"
		}
		return three(v) + " s"
	case bytesPerSecond:
		if v < 1e9 {
			return three(v/1e6) + " MB/s"
		}
		return three(v/1e9) + " GB/s"
	case bytesUsed:
		return three(v/(1<<20)) + " MiB"
	}
	return three(v/1000) + " k/s"
}

// three prints three digits, more only before the decimal point.
func three(v float64) string {
	switch {
	case v >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
