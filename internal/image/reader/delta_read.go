package reader

import (
	"errors"

	"stasis/internal/image"
	"stasis/internal/image/delta"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/tables"
)

// deltaSpace is the space that reading blocks of differences takes.
type deltaSpace struct {
	payload Buffer
	delta   delta.Pages
	bases   BlockCache
	pages   []byte
}

// readDelta makes the pages of a block of differences: each is its base, patched. Pages that nobody needs are zero. The bases of
// neighbours are mostly in one block, which is read once.
func (c *Checkpoint) readDelta(k *tables.Block, b *Buffer) ([]byte, error) {
	if b.delta == nil {
		b.delta = &deltaSpace{pages: make([]byte, image.MaxBlock)}
	}
	s := b.delta
	payload, err := c.ReadPayload(k, &s.payload, false)
	if err != nil {
		return nil, err
	}
	if err := s.delta.Parse(payload, int(k.Pages)); err != nil {
		return nil, c.BlockDamage(k, "a block there can't be used", err)
	}
	out := s.pages[:int(k.Pages)*image.PageSize]
	bases := c.BasesOf(k)
	for i := 0; i < len(bases); {
		n := 1
		for i+n < len(bases) && bases[i+n].Block == bases[i].Block {
			n++
		}
		if err := c.takeBases(bases[i:i+n], out[i*image.PageSize:(i+n)*image.PageSize], &s.bases); err != nil {
			return nil, err
		}
		i += n
	}
	for i, from := range bases {
		if from.Block != ondisk.NoBlock {
			s.delta.Patch(i, out[i*image.PageSize:(i+1)*image.PageSize])
		}
	}
	return out, nil
}

// takeBases copies bases, all of one block.
func (c *Checkpoint) takeBases(bases []ondisk.Base, to []byte, cache *BlockCache) (err error) {
	number := bases[0].Block
	if number == ondisk.NoBlock {
		clear(to)
		return nil
	}
	data, err := cache.read(c, int(number), true)
	if err != nil {
		return err
	}
	k := &c.BlockTable[number]
	f, err := c.file(k)
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, errTruncated) {
			err = c.BlockDamage(k, "a block there can't be used", err)
		}
	}()
	defer f.guard(&err)()
	for i, from := range bases {
		copy(to[i*image.PageSize:(i+1)*image.PageSize], data[int(from.Page)*image.PageSize:])
	}
	return nil
}

// Page is a page as a checkpoint has it, and the page that it is in full in: that one itself, or what it is a difference from.
type Page struct {
	Content []byte
	Full    ondisk.Base
	Base    []byte // content of full
	space   [2 * image.PageSize]byte

	LacksBase bool // after an error: it was full that could not be read
}

// ReadPage reads a page of a block. What p has had before is replaced.
func (c *Checkpoint) ReadPage(number int, page uint8, cache *BlockCache, p *Page) error {
	k := &c.BlockTable[number]
	p.Full = ondisk.Base{Block: uint32(number), Page: page}
	if k.Kind == ondisk.KindDifferences {
		p.Full = c.BasesOf(k)[page]
	}
	p.Base = p.space[:image.PageSize]
	p.Content = p.Base
	p.LacksBase = true
	if err := c.takeBases([]ondisk.Base{p.Full}, p.Base, cache); err != nil {
		return err
	}
	p.LacksBase = false
	if k.Kind != ondisk.KindDifferences {
		return nil
	}
	delta, err := cache.deltas(c, number)
	if err != nil {
		return err
	}
	p.Content = p.space[image.PageSize:]
	copy(p.Content, p.Base)
	delta.Patch(int(page), p.Content)
	return nil
}
