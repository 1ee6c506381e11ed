package image

// blockCache keeps the last few blocks that were read of one checkpoint. It belongs to one goroutine at a time. The zero
// blockCache is ready.
type blockCache struct {
	slots [4]cachedBlock
	turn  int // of whom it is to be replaced
}

type cachedBlock struct {
	number int // of the block, counted from 1; 0: none
	data   []byte
	buffer Buffer
}

// read returns a block's data, which is valid until as many others were read as there are slots.
func (k *blockCache) read(c *Checkpoint, number int) ([]byte, error) {
	for i := range k.slots {
		if k.slots[i].number == number+1 {
			return k.slots[i].data, nil
		}
	}
	s := &k.slots[k.turn]
	k.turn = (k.turn + 1) % len(k.slots)
	s.number = 0
	// Not where it is mapped: what is kept must not go away with the file.
	data, err := c.read(&c.blocks[number], &s.buffer, false)
	if err != nil {
		return nil, err
	}
	s.number, s.data = number+1, data
	return data, nil
}
