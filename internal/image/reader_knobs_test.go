package image

// ancestorFile describes the shard of an ancestor that a checkpoint holds: whether it is there, mapped, and open.
func ancestorFile(c *Checkpoint, origin, shard uint16) (there, mapped, open bool) {
	f := c.ancestors[ancestorShard{origin, shard}]
	return f != nil, f != nil && f.mapped != nil, f != nil && f.File != nil
}

// mapAncestor makes a small shard of an ancestor look large.
func mapAncestor(c *Checkpoint, origin, shard uint16) error {
	at := ancestorShard{origin, shard}
	large, err := newAncestorFile(c.ancestors[at].File, maxKeptOpen())
	if err == nil {
		c.ancestors[at] = large
	}
	return err
}

// isMapped says whether a shard of its own is mapped.
func isMapped(c *Checkpoint, shard int) bool { return c.shards[shard].mapped != nil }

// stored is what a Buffer has of a block as it is in the shard, behind a header of one extent.
func storedIn(b *Buffer) []byte { return b.stored[headLen(1):] }

// letGoAfter is how much is read before mappings are let go, in bytes.
const letGoAfter = resident

// damagesListed is how many places Verify lists.
const damagesListed = maxDamages
