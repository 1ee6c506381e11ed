package stasis

import (
	"math"
	"time"

	"stasis/internal/image"
)

// A round costs the time to copy what it copies, and a part of the machine
// meanwhile. It buys a shorter freeze, if the program writes less during it than
// it copies. Where the program writes as fast as it is copied, rounds copy the
// same memory again and again, and what is left for the freeze stays what it is:
// then the best is to freeze at once.
//
// How that goes is seen before a round is paid for: the trackers tell how much
// was written while the last one went on. A round looks for written pages as it
// goes, so that those at its end were copied a moment ago, and those at its
// beginning as long ago as it took. Of a program that writes everywhere as fast as
// it is copied, half of what a round has copied is written anew when it ends, and
// the next one will copy as much as this one, since more is written in front of
// it. In general, where u is that share, the next round copies u/(1-u) times as
// much as the last one, and leaves that much less for the freeze.

const (
	// pendingLimit is the share of what a round copied that may be written
	// anew at its end, for another one to pay. One second more of copying
	// while the tree runs then spares it 0.3 seconds of standing still.
	pendingLimit = 0.35

	// smallLimit is the same where all that is left fits into the RAM that the
	// freeze may use. Such a round is short, how fast the program writes differs
	// more from one to the next, and what it leaves may be little enough for a
	// round into RAM.
	smallLimit = 0.5

	// shrinkLimit is the share of what the round before copied that a round
	// may copy for another one to pay, where nobody tells what is left.
	shrinkLimit = 0.7

	// nothing is the share of what the freeze may copy that is not worth a
	// round of its own: some mappings are read and scanned for each.
	nothing = 1.0 / 8

	// hopelessRate is how many times as fast as it can be copied a program has
	// to write for not even the first round to be made.
	hopelessRate = 1.5

	// ramBytes is how much is copied into RAM rather than into the checkpoint,
	// although that would pay as well: so little is there in some
	// hundredths of a second, and is not missed as memory.
	ramBytes = 24 << 20

	// ramLimit is the share of what a round into RAM copied that may be
	// written anew at its end, for another one to pay.
	ramLimit = 0.5

	// unknown stands for a number of bytes that no tracker tells.
	unknown = int64(-1)
)

// A round into RAM copies some ten times as fast as one into the checkpoint, which
// compresses and writes. The last ones go there: the program writes little meanwhile,
// however slow the disk is, and what is left for the freeze is small. What they have
// kept is written after the freeze, but for what was copied once more.

// pace decides how many rounds there are.
type pace struct {
	enough int64 // bytes that the freeze may copy
	buffer int64 // bytes that the freeze may keep in RAM; what is more is written meanwhile
}

// target is where a round goes, if there is one.
type target int

const (
	noRound target = iota
	intoCheckpoint
	intoRAM
)

// next says where another round goes after some rounds, of which there is one at
// least, and the last of which went to last. pending is how many bytes it would copy
// if it began now, or unknown, and room how many may be kept in RAM.
func (p pace) next(rounds []image.Round, last target, pending, room int64) target {
	pays := last == intoCheckpoint && p.another(rounds, pending)
	switch {
	case p.quickPays(rounds, last, pending, room) && (pending <= ramBytes || !pays):
		return intoRAM
	case pays:
		return intoCheckpoint
	}
	return noRound
}

// quickPays says whether a round into RAM spares the freeze something. One is
// tried wherever there is room for it and for as much again, in the freeze; whether
// it pays is known when it was made.
func (p pace) quickPays(rounds []image.Round, last target, pending, room int64) bool {
	if pending == unknown || float64(pending) <= nothing*float64(p.enough) || 2*pending > room {
		return false
	}
	return last != intoRAM || float64(pending) <= ramLimit*float64(rounds[len(rounds)-1].Bytes)
}

// another says whether to make another round after these, of which there is one
// at least. pending is how many bytes it would copy if it began now, or unknown.
func (p pace) another(rounds []image.Round, pending int64) bool {
	last := rounds[len(rounds)-1].Bytes
	if last <= p.enough {
		return false // so short a round leaves little, or the program is too fast
	}
	if pending == unknown {
		return len(rounds) == 1 || float64(last) <= shrinkLimit*float64(rounds[len(rounds)-2].Bytes)
	}
	limit := pendingLimit
	if pending <= p.buffer {
		limit = smallLimit
	}
	return float64(pending) > nothing*float64(p.enough) && float64(pending) <= limit*float64(last)
}

// hopeless says whether even the first round would find everything written anew:
// pending bytes of so much memory were written in a time, which could be copied at
// some bytes per second. In a long time a program writes the same pages again and
// again, so that this tells of programs only that are dumped every few seconds. As
// far as it writes everywhere, how often it has done so by then follows from how
// much of its memory is left unwritten.
func (p pace) hopeless(pending, memory int64, in time.Duration, rate float64) bool {
	if pending <= p.buffer || in <= 0 || rate <= 0 {
		return false
	}
	unwritten := max(1-float64(pending)/float64(max(memory, pending)), 1e-3)
	written := -math.Log(unwritten) * float64(memory)
	return max(written, float64(pending)) > hopelessRate*rate*in.Seconds()
}

// fastest is how many bytes per second the fastest round of a dump copied; 0 where
// that is not known. Rounds that were kept in RAM say nothing.
func fastest(m *image.Manifest, buffer int64) (rate float64) {
	for _, r := range m.Figures.Rounds {
		if r.Bytes > buffer && r.US > 0 {
			rate = max(rate, float64(r.Bytes)/(time.Duration(r.US)*time.Microsecond).Seconds())
		}
	}
	return rate
}
