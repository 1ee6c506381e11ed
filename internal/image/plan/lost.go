package plan

import (
	"fmt"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/tables"
)

// IsLost says whether a page of a block needs a block that is lost.
func IsLost(c *tables.Tables, lost map[uint32]bool, block uint32, page uint8) bool {
	if lost[block] {
		return true
	}
	k := &c.BlockTable[block]
	return k.Kind == ondisk.KindDifferences && lost[c.BasesOf(k)[page].Block]
}

// withoutLost takes out of what comes from the parent the pages that need a block that could not be read, and returns how many these are.
func (p *Plan) withoutLost(claims []claim) (kept []claim, pages uint64) {
	if len(p.lost) == 0 {
		return claims, 0
	}
	for _, in := range claims {
		if in.block == zeroBlock {
			kept = append(kept, in)
			continue
		}
		from := uint64(0)
		cut := func(to uint64) {
			if from < to {
				kept = append(kept, claim{in.page + from, to - from, in.order, in.block, in.first + uint32(from)})
			}
		}
		for n := range in.pages {
			if IsLost(p.records.Parent, p.lost, in.block-uint32(p.own), uint8(in.first+uint32(n))) {
				cut(n)
				from = n + 1
				pages++
			}
		}
		cut(in.pages)
	}
	return kept, pages
}

// errLost says that the checkpoint would need what can't be read.
func (p *Plan) errLost(pid int, pages uint64) error {
	return fmt.Errorf("%d pages of process %d were not written since the parent, and can't be read there: %w: %w: dump again without a parent",
		pages, pid, image.ErrLost, p.records.LostWhy)
}

// checkLost sees that nothing needs a block that could be read when pages were found equal to it, or little different from it, and can't
// be read any more.
func (p *Plan) checkLost() error {
	for block := range p.lost {
		if at := uint32(p.own) + block; p.counts[at] > 0 || p.based[at] {
			return fmt.Errorf("a part of the parent that the checkpoint needs can't be read any more: %w: %w: dump again without a parent", image.ErrLost, p.records.LostWhy)
		}
	}
	return nil
}
