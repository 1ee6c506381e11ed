package reader

import (
	"stasis/internal/image/delta"
	"stasis/internal/image/ondisk"
)

// BlockCache keeps the payloads of the last few blocks that were read. It belongs to one goroutine at a time. The zero
// BlockCache is ready.
type BlockCache struct {
	slots [4]cachedBlock
	turn  int // of whom it is to be replaced
}

type cachedBlock struct {
	of     *Checkpoint // nil: none
	number int         // of the block
	data   []byte
	delta  delta.Pages // of a block of differences
	buffer Buffer
}

// read returns a block's pages, decompressed. They are valid until two others were read. Where they may be mapped, they go away
// with the file.
func (k *BlockCache) read(c *Checkpoint, number int, mapped bool) ([]byte, error) {
	s, err := k.slot(c, number, mapped)
	if err != nil {
		return nil, err
	}
	return s.data, nil
}

// deltas is read for a block of differences.
func (k *BlockCache) deltas(c *Checkpoint, number int) (*delta.Pages, error) {
	s, err := k.slot(c, number, false)
	if err != nil {
		return nil, err
	}
	return &s.delta, nil
}

func (k *BlockCache) slot(c *Checkpoint, number int, mapped bool) (*cachedBlock, error) {
	for i := range k.slots {
		if k.slots[i].of == c && k.slots[i].number == number {
			return &k.slots[i], nil
		}
	}
	s := &k.slots[k.turn]
	k.turn = (k.turn + 1) % len(k.slots)
	s.of = nil
	b := &c.BlockTable[number]
	data, err := c.ReadPayload(b, &s.buffer, mapped)
	if err != nil {
		return nil, err
	}
	if b.Kind == ondisk.KindDifferences {
		if err := s.delta.Parse(data, int(b.Pages)); err != nil {
			return nil, c.BlockDamage(b, "a block there can't be used", err)
		}
	}
	s.of, s.number, s.data = c, number, data
	return s, nil
}
