// Package plan decides what the indexes of a new checkpoint say. From [Records] of what was put, and the tables of the parent, it finds out
// which copy of each page counts, what may be left to ancestors and what has to be moved, and lays that out in indexes. It reads and
// writes no blocks. Nothing here may be called at once, but Records that are filled by several goroutines say who guards what.
package plan
