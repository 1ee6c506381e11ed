package writer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/writer"
)

// scribbled makes a chain in which each checkpoint changes some pages a little and rewrites a few, and returns what all of them but
// the first take in their shards without the index, in bytes.
func scribbled(t *testing.T, depth, maxOrigins int) (imagetest.Chain, int64) {
	t.Helper()
	const pages, little, whole = 640, 16, 2
	r := rand.New(rand.NewPCG(5, 6))
	now := imagetest.Memory{7: {}}
	for page := range uint64(pages) {
		now[7][page] = imagetest.Tagged(page+1, 1)
	}
	var c imagetest.Chain
	stored := int64(0)
	for i := range depth {
		now = now.Clone()
		o := writer.Options{Shards: 2, Codec: imagetest.NewCodec(t, "lz4"), MaxOrigins: maxOrigins}
		c.Add(t, o, image.KindFull, now, now.Present(), func(w *writer.Writer) {
			for n := range uint64(pages) {
				switch {
				case i == 0:
				case n < little:
					page := r.Uint64N(pages)
					now[7][page] = bytes.Clone(now[7][page])
					binary.LittleEndian.PutUint64(now[7][page][8*r.IntN(image.PageSize/8):], r.Uint64())
					n = page
				case n < little+whole:
					n = r.Uint64N(pages)
					now[7][n] = imagetest.Tagged(r.Uint64(), 1)
				default:
					return
				}
				imagetest.Put(t, w, 0, 7, now[7][n], image.Extent{Addr: n * image.PageSize, Pages: 1})
			}
		})
		if p := c.Open(t, i); i > 0 {
			_, own := p.Wanted()
			stored += own
		}
	}
	return c, stored
}

// TestLongChainsReferToFew: at any depth a checkpoint needs few ancestors, what it takes is little more than without that limit, and all
// of them have what they must.
func TestLongChainsReferToFew(t *testing.T) {
	const depth = 70
	_, free := scribbled(t, depth, depth)
	c, stored := scribbled(t, depth, 0)
	most := 0
	for i := range c {
		p := c.Open(t, i)
		most = max(most, len(p.Manifest().Origins))
		if i%9 == 0 || i == depth-1 {
			imagetest.CheckMemory(t, p, c[i].Content)
			if err := p.Verify(context.Background(), 2, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if most > writer.MaxOrigins || most < writer.MaxOrigins/2 {
		t.Errorf("a checkpoint refers to %d ancestors, and may to %d", most, writer.MaxOrigins)
	}
	t.Logf("the checkpoints take %d bytes, and %d without a limit", stored, free)
	if stored > 3*free {
		t.Errorf("the checkpoints take %d bytes, and %d without a limit", stored, free)
	}
}

// TestDamagedAncestorIsNotMoved: a part of an ancestor that can't be read does not keep a checkpoint from being made. It depends on
// that ancestor, as it would have without a limit.
func TestDamagedAncestorIsNotMoved(t *testing.T) {
	c, _ := scribbled(t, 4, 100)
	for name, shard := range c[1].Files { // all blocks, no index
		end, err := ondisk.DecodeFooter(shard[len(shard)-image.ShardFooter:], int64(len(shard)))
		if err != nil {
			t.Fatal(name, err)
		}
		for i := image.ShardHeader; i < int(end.IndexOffset); i++ {
			shard[i] ^= 0xff
		}
	}
	c.Add(t, writer.Options{MaxOrigins: 2}, image.KindFull, c[3].Content, c[3].Content.Present(), func(*writer.Writer) {})
	m := c.Open(t, 4).Manifest()
	found := map[string]bool{}
	for _, o := range m.Origins {
		found[o.ID] = true
	}
	if !found[hex.EncodeToString(c[1].ID[:])] || len(m.Origins) > 2 {
		t.Errorf("it refers to %v", m.Origins)
	}
}
