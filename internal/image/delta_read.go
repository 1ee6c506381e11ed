package image

import "errors"

// deltaSpace is the space that reading blocks of differences takes.
type deltaSpace struct {
	payload Buffer
	delta   deltaPages
	bases   blockCache
	pages   []byte
}

// readDelta makes the pages of a block of differences: each is its base, patched. Pages that nobody needs are zero. The bases of
// neighbours are mostly in one block, which is read once.
func (c *Checkpoint) readDelta(k *block, b *Buffer) ([]byte, error) {
	if b.delta == nil {
		b.delta = &deltaSpace{pages: make([]byte, MaxBlock)}
	}
	s := b.delta
	payload, err := c.readPayload(k, &s.payload, false)
	if err != nil {
		return nil, err
	}
	if err := s.delta.parse(payload, int(k.pages)); err != nil {
		return nil, c.blockDamage(k, "a block there can't be used", err)
	}
	out := s.pages[:int(k.pages)*PageSize]
	bases := c.basesOf(k)
	for i := 0; i < len(bases); {
		n := 1
		for i+n < len(bases) && bases[i+n].block == bases[i].block {
			n++
		}
		if err := c.takeBases(bases[i:i+n], out[i*PageSize:(i+n)*PageSize], &s.bases); err != nil {
			return nil, err
		}
		i += n
	}
	for i, from := range bases {
		if from.block != noBlock {
			s.delta.patch(i, out[i*PageSize:(i+1)*PageSize])
		}
	}
	return out, nil
}

// takeBases copies bases, all of one block.
func (c *Checkpoint) takeBases(bases []base, to []byte, cache *blockCache) (err error) {
	number := bases[0].block
	if number == noBlock {
		clear(to)
		return nil
	}
	data, err := cache.read(c, int(number), true)
	if err != nil {
		return err
	}
	k := &c.blocks[number]
	f, err := c.file(k)
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, errTruncated) {
			err = c.blockDamage(k, "a block there can't be used", err)
		}
	}()
	defer f.guard(&err)()
	for i, from := range bases {
		copy(to[i*PageSize:(i+1)*PageSize], data[int(from.page)*PageSize:])
	}
	return nil
}

// oldPage is a page as a checkpoint has it, and the page that it is in full in: that one itself, or what it is a difference from.
type oldPage struct {
	content []byte
	full    base
	base    []byte // content of full
	space   [2 * PageSize]byte

	lacksBase bool // after an error: it was full that could not be read
}

// page reads a page of a block. What p has had before is replaced.
func (c *Checkpoint) page(number int, page uint8, cache *blockCache, p *oldPage) error {
	k := &c.blocks[number]
	p.full = base{uint32(number), page}
	if k.kind == deltaBlock {
		p.full = c.basesOf(k)[page]
	}
	p.base = p.space[:PageSize]
	p.content = p.base
	p.lacksBase = true
	if err := c.takeBases([]base{p.full}, p.base, cache); err != nil {
		return err
	}
	p.lacksBase = false
	if k.kind != deltaBlock {
		return nil
	}
	delta, err := cache.deltas(c, number)
	if err != nil {
		return err
	}
	p.content = p.space[PageSize:]
	copy(p.content, p.base)
	delta.patch(int(page), p.content)
	return nil
}
