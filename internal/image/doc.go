// Package image is the checkpoint format: its specification, which is this comment, versions 1 and 2, the manifest, and the words that all
// who have to do with checkpoints use. Checkpoints are written by package writer and read by package reader, below this folder. Where the
// bytes are kept is the business of package store.
//
// # Packages
//
// Each knows only those before it:
//
//	image     words, manifest, errors
//	ondisk    the bytes of headers, blocks, indexes and footers
//	delta     differences between pages
//	tables    the indexes of a checkpoint put together: what is where
//	reader    opening, reading and checking
//	families  reading all memory of a long chain, each block once
//	plan      what the indexes of a new checkpoint say (it reads nothing, and does not know reader)
//	writer    taking pages and files, and publishing
//
// radix sorts for some of them, and imagetest makes checkpoints for tests.
//
// # Words
//
// A checkpoint is a manifest and N shards, img-0 … img-N-1. A shard is a sequence of blocks and an index of them. A block holds
// up to 64 pages (256 KiB) of one process, or a piece of up to 256 KiB of one of CRIU's image files. A page can be stored as a
// difference: what of it differs from its base, a page that is stored in full in a block of an ancestor, or of the checkpoint
// itself where it was moved from an ancestor. Raw lengths are before compression, stored lengths after it. A round is one copy of the memory, or of what changed since the round before; of
// several copies of a page the newest is live, the others are superseded. A checkpoint can refer to blocks of earlier
// checkpoints, its origins, by their number in the manifest's list counted from 1; origin 0 is the checkpoint itself.
// Its parent is the one that it was made on; a chain is a checkpoint with its parent, the parent's parent, and so on.
//
// Numbers are little-endian. Everything in a shard begins at a multiple of 64 bytes, and what is between is zero. Checksums are
// XXH3-64.
//
// # Shard
//
//	+--------+---------+---------+-- … --+-------+--------+
//	| header | block 0 | block 1 |       | index | footer |
//	+--------+---------+---------+-- … --+-------+--------+
//	0        64                          ^ index offset   ^ size
//
//	header, 64 bytes                            footer, 64 bytes
//	 0  magic "STASISSH"                         0  magic "STASISSF"
//	 8  version of this header, 1, u32           8  version of this footer, 1, u32
//	12  number of this shard u32                12  number of this shard u32
//	16  number of shards u32                    16  offset of the index u64
//	20  page size u32                           24  length of the index as stored u64
//	24  id of the checkpoint, 16 bytes          32  length of the index before compression u64
//	40  zero                                    40  checksum of the index as stored u64
//	56  checksum of bytes 0-55 u64              48  first 8 bytes of the checkpoint's id
//	                                            56  checksum of bytes 0-55 u64
//
// The index ends where the footer begins, and the footer ends the file.
//
// # Block
//
//	+-------------+---------------------------+------+---------+------+
//	| header (64) | extents (12 each)         | zero | payload | zero |
//	+-------------+---------------------------+------+---------+------+
//
//	header                                      extent, for pages and differences
//	 0  magic "SBLK"                             0  address u64
//	 4  kind u8: 1 pages, 2 piece of a file,     8  number of pages u32
//	    3 differences (format 2)
//	 5  codec u8: see package codec
//	 6  flags u16, zero
//	 8  first 8 bytes of the checkpoint's id
//	16  pid, or number of the file, u32
//	20  number of extents u32, 0 for files
//	24  offset in the file u64, else 0
//	32  stored length of the payload u32
//	36  raw length of the payload u32
//	40  number of this shard u32
//	44  zero
//	48  offset of this block in the shard u64
//	56  checksum u64
//
// The checksum covers the header, the extents and the payload with all padding: it is that of the header and the extents as
// they are stored, with the checksum of the payload (and its padding) in the place of the checksum itself. As the header says
// where the block belongs, a block in a wrong place does not pass.
//
// The payload is the pages of all extents, one after the other, or the piece of the file, compressed with the block's codec. A
// block that would not shrink has codec 0. Pages that are zero are in no block.
//
// The payload of a block of differences is, for each page of the extents, a list of runs of bytes that differ from the base, and
// then the new bytes of all runs of all pages, one after the other:
//
//	for each page: u number of runs, then for each: u distance to the end of the run before (the first: to the page's
//	    beginning); u length
//	bytes
//
// u is an unsigned LEB128 number. What the bases are is in the index, so that nobody needs a block's payload to know whom it
// depends on. A base is always a page of a block of kind 1: a difference is never one from a difference, and a page that changes
// from checkpoint to checkpoint stays a difference from the same base until it differs too much.
//
// # Index
//
// An index says which blocks of its shard are wanted and what for; superseded blocks and pages are not in it. All indexes of a
// checkpoint together never have a page twice. An index is one Zstandard frame, or, where its two lengths are equal, stored as
// it is. In it are variable-length numbers: u (unsigned LEB128) and s (signed, zigzag). What stands in a list of columns is
// first the first column of all items, then the second of all items, and so on.
//
//	u number of processes, then for each: u difference of its pid to the one before (the first to 0)
//	u number of CRIU's image files, then for each: u length of the name, name, u size        (shard 0 only)
//	u number of zero ranges, then for each: s difference of the process's position in the above list to the one before;
//	    s difference of the first page to the end of the one before; u number of pages     (shard 0 only)
//	u number of groups, then for each:
//	    u origin, u number of the shard, u number of blocks; then columns over the blocks, which are sorted by offset:
//	        kind<<4 | codec, one byte
//	        u distance to the end of the one before, in units of 64 bytes
//	        u stored length
//	        u raw length
//	        pages: number of extents in the block's header, one byte; u number of pieces
//	        differences: number of extents, one byte; number of pages, one byte; u number of pieces
//	        file: u its number; u offset in it
//	        checksum of the block, 8 bytes
//	    then columns over the pieces of all blocks:
//	        s difference of the process's position to the one before
//	        s difference of the first page (address / 4096) to the end of the one before
//	        u number of pages
//	        s difference of the first page's number in the block to the end of the one before, from 0 for each block
//	    then columns over those pages of blocks of differences that are in pieces, block by block, each page once, ascending:
//	        s difference of the number of the base's block to the one before. Blocks are counted from 0 through all groups of
//	            all indexes, shard by shard
//	        page of the base's block, one byte
//
// A piece says that some pages of a block belong at an address of a process. Pieces of different processes may share pages of a
// block, and so may different addresses: equal pages are mostly stored once. Groups of origin 0 have the blocks of the shard that
// the index is in, others those of an ancestor; they can be in the index of any shard, and one shard of an ancestor can have
// several. A block of pages without pieces is there because it has a base.
//
// So the indexes of a checkpoint are all that is needed to find every byte of it, however long its chain is: of its ancestors
// only blocks are read, never indexes. What the parent's index has is taken over when the checkpoint is finished.
//
// # Manifest
//
// JSON, described by docs/manifest.schema.json and by [Manifest]. Its format is 2 where an index has differences, else 1, so that
// older readers read what they can. It has a checksum of its own, and for each shard the size and
// the checksum of index and footer. So everything that a restore reads hangs from the manifest: it covers the indexes, which
// cover the blocks, those of ancestors among them: an ancestor that was replaced or damaged does not pass. What is covered by
// nothing is superseded blocks.
//
// A reader refuses a format version that is newer than its own ([VersionError]) and finds every other difference from what was
// written ([DamageError]): reader.Open that of manifest, headers, indexes and footers, ReadBlock that of blocks.
//
// # Concurrency and memory
//
// PutPages and PutFile compare, compress and hash in the caller's goroutine and write to whichever shard is free. All readers'
// methods may be called at once, each with a Buffer of its own. Neither side holds data between calls: a Writer has some 50
// bytes for each block, 8 for each extent and each difference, 32 for each run of pages that it only refers to, and 4 MiB to
// find equal pages; a Checkpoint has 40 for each block and 20 for each extent, and while it is opened 100 more for each block. To compare with the parent, and to read
// differences, each goroutine keeps the last four blocks that it read for that, at most 2 MiB. Families has 8 bytes for each block
// and each difference, 8 more for each difference that is wanted, and keeps at most 32 MiB of differences that it read and that were
// not asked for yet.
package image
