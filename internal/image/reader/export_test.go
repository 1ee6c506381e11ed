package reader

import (
	"stasis/internal/image/ondisk"
	"stasis/internal/image/tables"
)

// AncestorFile describes the shard of an ancestor that a checkpoint holds: whether it is there, mapped, and open.
func AncestorFile(c *Checkpoint, origin, shard uint16) (there, mapped, open bool) {
	f := c.ancestors[tables.AncestorShard{Origin: origin, Shard: shard}]
	return f != nil, f != nil && f.mapped != nil, f != nil && f.File != nil
}

// MapAncestor makes a small shard of an ancestor look large.
func MapAncestor(c *Checkpoint, origin, shard uint16) error {
	at := tables.AncestorShard{Origin: origin, Shard: shard}
	large, err := newAncestorFile(c.ancestors[at].File, maxKeptOpen())
	if err == nil {
		c.ancestors[at] = large
	}
	return err
}

// IsMapped says whether a shard of its own is mapped.
func IsMapped(c *Checkpoint, shard int) bool { return c.shards[shard].mapped != nil }

// stored is what a Buffer has of a block as it is in the shard, behind a header of one extent.
func StoredIn(b *Buffer) []byte { return b.stored[ondisk.HeadLen(1):] }

// LetGoAfter is how much is read before mappings are let go, in bytes.
const LetGoAfter = resident

// DamagesListed is how many places Verify lists.
const DamagesListed = maxDamages
