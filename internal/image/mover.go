package image

import "math/bits"

// mover writes pages of the parent once more. It belongs to one goroutine.
type mover struct {
	w     *Writer
	s     *scratch
	moved moves

	buffer  Buffer
	delta   deltaPages
	pid     uint32 // of what is collected
	extents []Extent
	data    []byte // pages that are collected; differences are in s.delta
	from    []base // of data
	fromOf  []base // of s.delta
}

// move takes over some pages of a block.
func (m *mover) move(number uint32, wanted uint64) error {
	c := m.w.parent
	k := &c.blocks[number]
	data, err := c.readPayload(k, &m.buffer, false)
	if err == nil && k.kind == deltaBlock {
		err = m.delta.parse(data, int(k.pages))
	}
	var pid uint32
	var at [MaxPages]uint64
	if err == nil {
		pid, err = c.headOf(k, &at)
	}
	if err != nil {
		return nil //nolint:nilerr // it is not moved: whoever needs it finds it as damaged as before
	}
	if pid != m.pid {
		if err := m.flush(); err != nil {
			return err
		}
		m.pid = pid
	}
	for ; wanted != 0; wanted &= wanted - 1 {
		page := uint8(bits.TrailingZeros64(wanted))
		from := base{number, page}
		if k.kind == deltaBlock {
			err = m.addDelta(from, at[page], c.basesOf(k)[page])
		} else {
			err = m.addPage(from, at[page], data[int(page)*PageSize:][:PageSize])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) addPage(from base, at uint64, content []byte) error {
	if len(m.from) == MaxPages {
		if err := m.flushPages(); err != nil {
			return err
		}
	}
	m.extents, m.data, m.from = appendPage(m.extents, at), append(m.data, content...), append(m.from, from)
	return nil
}

func (m *mover) addDelta(from base, at uint64, of base) error {
	d := &m.s.delta
	if len(m.fromOf) == MaxPages || d.full(of) {
		if err := m.flushDeltas(); err != nil {
			return err
		}
	}
	d.addEncoded(at, of, &m.delta, int(from.page))
	m.fromOf = append(m.fromOf, from)
	return nil
}

func (m *mover) flush() error {
	if err := m.flushPages(); err != nil {
		return err
	}
	return m.flushDeltas()
}

func (m *mover) flushPages() error {
	err := m.put(pageBlock, m.extents, m.data, m.from)
	m.extents, m.data, m.from = m.extents[:0], m.data[:0], m.from[:0]
	return err
}

func (m *mover) flushDeltas() error {
	d := &m.s.delta
	m.s.packed = d.appendPayload(m.s.packed[:0])
	err := m.put(deltaBlock, d.extents, m.s.packed, m.fromOf)
	d.reset()
	m.fromOf = m.fromOf[:0]
	return err
}

// put writes a block and notes what was moved into it.
func (m *mover) put(kind blockKind, extents []Extent, data []byte, from []base) error {
	if len(from) == 0 {
		return nil
	}
	at, err := m.w.put(m.s, blockHead{kind: kind, owner: m.pid, extents: extents}, data, movedOrder)
	if err != nil {
		return err
	}
	for i, f := range from {
		m.moved = append(m.moved, move{from: f, to: at.after(uint8(i))})
	}
	return nil
}
