package writer

import (
	"math/bits"

	"stasis/internal/image"
	"stasis/internal/image/delta"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/plan"
	"stasis/internal/image/reader"
)

// mover writes pages of the parent once more. It belongs to one goroutine.
type mover struct {
	w     *Writer
	s     *scratch
	moved plan.Moves

	buffer  reader.Buffer
	delta   delta.Pages
	pid     uint32 // of what is collected
	extents []image.Extent
	data    []byte        // pages that are collected; differences are in s.delta
	from    []ondisk.Base // of data
	fromOf  []ondisk.Base // of s.delta
}

// move takes over some pages of a block.
func (m *mover) move(number uint32, wanted uint64) error {
	c := m.w.parent
	k := &c.BlockTable[number]
	data, err := c.ReadPayload(k, &m.buffer, false)
	if err == nil && k.Kind == ondisk.KindDifferences {
		err = m.delta.Parse(data, int(k.Pages))
	}
	var pid uint32
	var at [image.MaxPages]uint64
	if err == nil {
		pid, err = c.HeadOf(k, &at)
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
		from := ondisk.Base{Block: number, Page: page}
		if k.Kind == ondisk.KindDifferences {
			err = m.addDelta(from, at[page], c.BasesOf(k)[page])
		} else {
			err = m.addPage(from, at[page], data[int(page)*image.PageSize:][:image.PageSize])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) addPage(from ondisk.Base, at uint64, content []byte) error {
	if len(m.from) == image.MaxPages {
		if err := m.flushPages(); err != nil {
			return err
		}
	}
	m.extents, m.data, m.from = image.AppendPage(m.extents, at), append(m.data, content...), append(m.from, from)
	return nil
}

func (m *mover) addDelta(from ondisk.Base, at uint64, of ondisk.Base) error {
	d := &m.s.delta
	if len(m.fromOf) == image.MaxPages || d.Full(of) {
		if err := m.flushDeltas(); err != nil {
			return err
		}
	}
	d.AddEncoded(at, of, &m.delta, int(from.Page))
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
	err := m.put(ondisk.KindPages, m.extents, m.data, m.from)
	m.extents, m.data, m.from = m.extents[:0], m.data[:0], m.from[:0]
	return err
}

func (m *mover) flushDeltas() error {
	d := &m.s.delta
	m.s.packed = d.AppendPayload(m.s.packed[:0])
	err := m.put(ondisk.KindDifferences, d.Extents, m.s.packed, m.fromOf)
	d.Reset()
	m.fromOf = m.fromOf[:0]
	return err
}

// put writes a block and notes what was moved into it.
func (m *mover) put(kind ondisk.BlockKind, extents []image.Extent, data []byte, from []ondisk.Base) error {
	if len(from) == 0 {
		return nil
	}
	at, err := m.w.put(m.s, ondisk.BlockHead{Kind: kind, Owner: m.pid, Extents: extents}, data, plan.MovedOrder)
	if err != nil {
		return err
	}
	for i, f := range from {
		m.moved = append(m.moved, plan.Move{From: f, To: at.After(uint8(i))})
	}
	return nil
}
