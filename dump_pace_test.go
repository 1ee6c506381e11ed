package stasis

import (
	"math"
	"testing"
	"time"

	"stasis/internal/image"
)

// simulation is a program of some regions of memory, which are written at random and copied one after the other.
type simulation struct {
	dirty   []float64 // of each region, the share of its pages that were written since they were copied
	region  float64   // bytes
	written float64   // bytes per second that the program writes, somewhere in hot regions
	hot     int       // the first so many regions
	copies  float64   // bytes per second
	copied  float64   // in all rounds
}

const regions = 100

func simulate(memory, written, copies, hot float64) *simulation {
	s := &simulation{dirty: make([]float64, regions), region: memory / regions, written: written, copies: copies, hot: int(regions * hot)}
	for i := range s.dirty {
		s.dirty[i] = 1
	}
	return s
}

// run lets the program write for some seconds. Some of the pages have been written already.
func (s *simulation) run(seconds float64) {
	share := s.written * seconds / (float64(s.hot) * s.region)
	for i := range s.hot {
		s.dirty[i] = 1 - (1-s.dirty[i])*math.Exp(-share)
	}
}

func (s *simulation) pending() (bytes float64) {
	for _, share := range s.dirty {
		bytes += share * s.region
	}
	return bytes
}

// round is how a round goes that copies so many bytes per second: region by region,
// and the program writes meanwhile.
func (s *simulation) round(rate float64) image.Round {
	const overhead = 0.02 // seconds, for mappings and a scan
	s.run(overhead)
	total := 0.0
	for i := range s.dirty {
		bytes := s.dirty[i] * s.region
		s.dirty[i] = 0
		s.run(bytes / rate)
		total += bytes
	}
	return image.Round{Bytes: int64(total), US: int64((total/rate + overhead) * 1e6)}
}

// rounds makes as many as pay, at most DefaultRounds. Those into RAM are three times
// as fast; what they have kept may be superseded before it is written.
func (s *simulation) rounds(p pace) (all []image.Round, inRAM float64) {
	for to := intoCheckpoint; to != noRound && len(all) < DefaultRounds; {
		if to == intoRAM {
			all = append(all, s.round(3*s.copies))
			inRAM += float64(all[len(all)-1].Bytes)
		} else {
			all = append(all, s.round(s.copies))
			s.copied += float64(all[len(all)-1].Bytes)
		}
		to = p.next(all, to, int64(s.pending()), p.buffer-int64(inRAM))
	}
	return all, inRAM
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

func TestRoundsThatPay(t *testing.T) {
	p := pace{enough: 8 * mib, buffer: DefaultFinalBuffer}
	for _, c := range []struct {
		name                         string
		memory, written, copies, hot float64
		mostRounds                   int
		mostCopied                   float64 // with the freeze, in times the memory
		mostLeft                     float64 // bytes for the freeze
	}{
		{"quiet", 4 * gib, 0, 500 * mib, 1, 1, 1.001, 0},
		{"slow", 4 * gib, 100 * mib, 500 * mib, 1, 4, 1.3, 2 * mib},
		{"half as fast", 4 * gib, 250 * mib, 500 * mib, 1, 7, 1.8, 2 * mib},
		{"as fast", 4 * gib, 500 * mib, 500 * mib, 1, 2, 2.1, 2 * gib},
		{"twice as fast", 4 * gib, 1000 * mib, 500 * mib, 1, 1, 1.8, 3.5 * gib},
		{"everything all the time", 4 * gib, 20 * gib, 500 * mib, 1, 1, 2, 4 * gib},
		{"as fast, in little memory", 1 * gib, 500 * mib, 500 * mib, 1, 3, 2.2, 512 * mib},
		{"hot spot", 4 * gib, 2 * gib, 500 * mib, 0.05, 2, 1.11, 0.05 * 4 * gib},
		{"small hot spot", 4 * gib, 5 * gib, 500 * mib, 0.02, 3, 1.11, 0.02 * 4 * gib},
		{"small", 16 * mib, 100 * mib, 500 * mib, 1, 4, 2, mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := simulate(c.memory, c.written, c.copies, c.hot)
			rounds, inRAM := s.rounds(p)
			left := s.pending()
			copied := (s.copied + inRAM + left) / c.memory
			t.Logf("%d rounds, %.2f times the memory, %.1f MiB in RAM, %.1f MiB left", len(rounds), copied, inRAM/mib, left/mib)
			if inRAM > 0 && inRAM+left > float64(p.buffer) {
				t.Errorf("the freeze finds no room for what is left")
			}
			if len(rounds) > c.mostRounds || copied > c.mostCopied || left > c.mostLeft+1 {
				t.Errorf("at most %d, %.2f and %.1f were to be", c.mostRounds, c.mostCopied, c.mostLeft/mib)
			}
		})
	}
}

// TestRoundsOfATrackerThatCannotTell decides by the rounds alone.
func TestRoundsOfATrackerThatCannotTell(t *testing.T) {
	p := pace{enough: 8 * mib, buffer: DefaultFinalBuffer}
	for _, c := range []struct {
		copied []int64
		want   bool
	}{{[]int64{gib}, true}, {[]int64{gib, gib / 2}, true}, {[]int64{gib, gib * 3 / 4}, false}, {[]int64{gib, 8 * mib}, false}, {[]int64{mib}, false}} {
		var rounds []image.Round
		for _, n := range c.copied {
			rounds = append(rounds, image.Round{Bytes: n})
		}
		if got := p.another(rounds, unknown); got != c.want {
			t.Errorf("after rounds of %d bytes: %v", c.copied, got)
		}
	}
}

func TestHopeless(t *testing.T) {
	p := pace{enough: 8 * mib, buffer: DefaultFinalBuffer}
	for _, c := range []struct {
		name    string
		pending int64
		in      time.Duration
		rate    float64
		want    bool
	}{
		{"all of it every two seconds", 4 * gib, 2 * time.Second, 500 * mib, true},
		{"two thirds of it, some of them often", 2765 * mib, 3400 * time.Millisecond, 540 * mib, true},
		{"as much of it in twice the time", 2765 * mib, 6800 * time.Millisecond, 540 * mib, false},
		{"a fifth every two seconds", gib, 2 * time.Second, 500 * mib, false},
		{"all of it in an hour", 4 * gib, time.Hour, 500 * mib, false},
		{"it fits into RAM", 200 * mib, 10 * time.Millisecond, 500 * mib, false},
		{"no rate is known", 4 * gib, time.Second, 0, false},
		{"the clock was set back", 4 * gib, -time.Second, 500 * mib, false},
		{"nobody tells", unknown, time.Second, 500 * mib, false},
	} {
		if got := p.hopeless(c.pending, 4*gib, c.in, c.rate); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	m := &image.Manifest{Figures: image.Figures{Rounds: []image.Round{{Bytes: gib, US: 2e6}, {Bytes: 2 * gib, US: 5e6}, {Bytes: mib, US: 10}}}}
	if got := fastest(m, p.buffer); got != gib/2 {
		t.Errorf("the fastest round copied %.0f bytes a second", got)
	}
}
