package writer

import (
	"math/rand/v2"
	"sync"

	"github.com/zeebo/xxh3"

	"stasis/internal/image"
	"stasis/internal/image/plan"
)

// tableSize is how many pages a pageTable remembers: 512 MiB of them, in 4 MiB.
const tableSize = 1 << 17

// maxShares bounds how many pages are about the same stored one: all of them come back at once, when the block is read in a
// restore, and by one worker. The next one is stored again.
const maxShares = 256

// pageTable remembers the pages that were stored last by their hashes, so that equal ones are stored once. The hashes are of 128
// bits and of a random seed: no program can make two different pages whose hashes are equal, and by chance it does not happen.
// A page takes the place of another one of the same slot; what is forgotten so is stored again when it comes again.
type pageTable struct {
	seed  uint64
	mu    sync.Mutex
	slots []tableSlot // guarded by mu; made when it is first needed
}

type tableSlot struct {
	hash xxh3.Uint128
	at   plan.PageAt
	uses int // 0: the slot is free
}

func newPageTable() *pageTable { return &pageTable{seed: rand.Uint64()} }

// share finds the pages that are equal to one that is stored, or to one before them.
func (w *Writer) share(s *scratch, b image.PageBlock) {
	if w.table == nil {
		return
	}
	var mine [2 * image.MaxPages]uint8 // number of a page of this call, counted from 1, by its hash
	var uses [image.MaxPages]int       // of each page of this call, by itself and its twins
	for i := range s.fates {
		f := &s.fates[i]
		if f.kind != kept {
			continue
		}
		f.hash = xxh3.Hash128Seed(content(&b, i), w.table.seed)
		at := f.hash.Lo % uint64(len(mine))
		for mine[at] != 0 && s.fates[mine[at]-1].hash != f.hash {
			at = (at + 1) % uint64(len(mine))
		}
		if mine[at] != 0 {
			f.kind, f.twin = twin, mine[at]-1
			uses[f.twin]++
		} else {
			mine[at] = uint8(i + 1)
			uses[i]++
		}
	}
	w.table.find(s.fates, &uses)
	for i := range s.fates {
		if f := &s.fates[i]; f.kind == twin && s.fates[f.twin].kind == elsewhere {
			f.kind, f.at = elsewhere, s.fates[f.twin].at
		}
	}
}

// find looks the pages up that are kept, for so many uses of each.
func (t *pageTable) find(fates []fate, uses *[image.MaxPages]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range fates {
		f := &fates[i]
		if f.kind != kept || len(t.slots) == 0 {
			continue
		}
		if slot := &t.slots[f.hash.Lo%tableSize]; slot.uses > 0 && slot.hash == f.hash && slot.uses+uses[i] <= maxShares {
			f.kind, f.at = elsewhere, slot.at
			slot.uses += uses[i]
		}
	}
}

// add remembers the pages that were kept. Their blocks must have been written.
func (t *pageTable) add(fates []fate) {
	if t == nil {
		return
	}
	var uses [image.MaxPages]int
	for i := range fates {
		switch f := &fates[i]; f.kind {
		case kept:
			uses[i]++
		case twin:
			uses[f.twin]++
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.slots == nil {
		t.slots = make([]tableSlot, tableSize)
	}
	for i := range fates {
		if f := &fates[i]; f.kind == kept {
			t.slots[f.hash.Lo%tableSize] = tableSlot{f.hash, f.at, uses[i]}
		}
	}
}
