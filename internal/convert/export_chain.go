package convert

import (
	"bytes"
	"fmt"
	"io"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"google.golang.org/protobuf/proto"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
)

const (
	parentLink     = "parent"
	inventoryImage = "inventory.img"
)

// home names the place of a block of pages, wherever the checkpoint is that refers to it.
type home struct {
	checkpoint string // its id
	shard      int
	offset     int64
}

func homeOf(c *reader.Checkpoint, block int) home {
	info, m := c.Block(block), c.Manifest()
	id := m.ID
	if info.Origin > 0 {
		id = m.Origins[info.Origin-1].ID
	}
	return home{id, info.Shard, info.Offset}
}

// inherited lists the pages of a process whose content is in the folder of the parent: those that both checkpoints have in the
// same page of the same block. Equal pages in different places count as different, which costs room and nothing else.
func (f *folder) inherited(pid int) []image.Range {
	parents := f.parent.layouts[pid]
	if parents == nil {
		return nil
	}
	var list []image.Range
	homes, theirs := map[int]home{}, map[int]home{}
	at := func(known map[int]home, c *reader.Checkpoint, block int) home {
		h, ok := known[block]
		if !ok {
			h = homeOf(c, block)
			known[block] = h
		}
		return h
	}
	for _, r := range image.Subtract(f.checkpoint.Ranges(pid), f.checkpoint.ZeroRanges(pid)) {
		for addr := r.Start; addr < r.End; addr += pageSize {
			block, page, _ := f.checkpoint.Find(pid, addr)
			other, otherPage, kind := f.parent.checkpoint.Find(pid, addr)
			if kind != image.Data || page != otherPage || !parents.blocksHave(addr) ||
				at(homes, f.checkpoint, block) != at(theirs, f.parent.checkpoint, other) {
				continue
			}
			if n := len(list); n > 0 && list[n-1].End == addr {
				list[n-1].End += pageSize
				continue
			}
			list = append(list, image.Range{Start: addr, End: addr + pageSize})
		}
	}
	return list
}

// writeInventory gives a pre-dump the inventory that CRIU's have. It is that of the dump on top of it, but for the time.
func (f *folder) writeInventory() error {
	var text bytes.Buffer
	if err := f.last.WriteFile(inventoryImage, &text); err != nil {
		return err
	}
	var entry inventory.InventoryEntry
	err := criu.Entries(text.Bytes(), criu.MagicInventory, func(raw []byte) error { return proto.Unmarshal(raw, &entry) })
	if err == nil && text.Len() < 8 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%s: %w", inventoryImage, err)
	}
	entry.DumpUptime = nil
	raw, err := proto.Marshal(&entry)
	if err != nil {
		return fmt.Errorf("%s: %w", inventoryImage, err)
	}
	out := append([]byte(nil), text.Bytes()[:8]...) // the two numbers that say what it is
	out = append(out, byte(len(raw)), byte(len(raw)>>8), byte(len(raw)>>16), byte(len(raw)>>24))
	return f.writeFile(inventoryImage, append(out, raw...))
}
