// Package ondisk is the bytes of shards: headers, blocks, indexes and footers, encoded, and decoded within bounds. The comment of
// package image draws them. It opens no files and knows nothing of whole checkpoints; everything may be called at once.
package ondisk
