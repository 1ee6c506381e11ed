package image

// blockCache keeps the payloads of the last few blocks that were read. It belongs to one goroutine at a time. The zero
// blockCache is ready.
type blockCache struct {
	slots [4]cachedBlock
	turn  int // of whom it is to be replaced
}

type cachedBlock struct {
	of     *Checkpoint // nil: none
	number int         // of the block
	data   []byte
	buffer Buffer
}

// read returns a block's payload, decompressed: pages or differences. It is valid until two others were read. Where it may be
// mapped, it goes away with the file.
func (k *blockCache) read(c *Checkpoint, number int, mapped bool) ([]byte, error) {
	for i := range k.slots {
		if k.slots[i].of == c && k.slots[i].number == number {
			return k.slots[i].data, nil
		}
	}
	s := &k.slots[k.turn]
	k.turn = (k.turn + 1) % len(k.slots)
	s.of = nil
	data, err := c.readPayload(&c.blocks[number], &s.buffer, mapped)
	if err != nil {
		return nil, err
	}
	s.of, s.number, s.data = c, number, data
	return data, nil
}
